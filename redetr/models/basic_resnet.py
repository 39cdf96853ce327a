"""The backbone of models that earlier versions trained from scratch, so that their weights load.

A run that begins now uses `SmallResNet`, which learns faster.
"""

from torch import Tensor, nn

from redetr.choices import BASIC_RESNET
from redetr.errors import InputError
from redetr.models.backbone import init_convolutions
from redetr.models.group_norm import GroupNorm
from redetr.models.recompute import runner

_GROUPS = 8
_NUM_BLOCKS = (1, 2, 2)  # of each stage


class _BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut.

    The scale of the second norm starts at 0, so that the block starts as its shortcut.
    """

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = GroupNorm(_GROUPS, outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = GroupNorm(_GROUPS, outputs)
        nn.init.zeros_(self.norm2.weight)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1:
            self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Returns `[B, outputs, h / stride, w / stride]` for `x` `[B, inputs, h, w]`."""
        out = self.norm1(self.conv1(x)).relu_()
        out = self.norm2(self.conv2(out))
        return out.add_(self.shortcut(x)).relu_()


class BasicResNet(nn.Module):
    """Residual stages at strides 4, 8 and 16 with GroupNorm.

    The map of stride 4 is returned only if `strides` has it.
    """

    recompute = False

    def __init__(self, widths: tuple[int, int, int], strides: tuple[int, ...] = (8, 16)):
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, widths[0], 3, 2, 1, bias=False),
            GroupNorm(_GROUPS, widths[0]),
            nn.ReLU(inplace=True),
        )
        stages = []
        inputs = widths[0]
        for width, num_blocks in zip(widths, _NUM_BLOCKS, strict=True):
            blocks = [_BasicBlock(inputs, width, stride=2)]
            for _ in range(num_blocks - 1):
                blocks.append(_BasicBlock(width, width, stride=1))
            stages.append(nn.Sequential(*blocks))
            inputs = width
        self.stages = nn.ModuleList(stages)
        self.strides = (4, 8, 16) if 4 in strides else (8, 16)
        self.num_channels = list(widths[-len(self.strides) :])
        init_convolutions(self)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Returns a feature map `[B, num_channels[i], h, w]` per stride."""
        run = runner(self.recompute)
        x = self.stem(images)
        features = []
        for stage in self.stages:
            for block in stage.children():
                x = run(block, x)
            features.append(x)
        return features[-len(self.strides) :]


def widths_of_name(name: str) -> tuple[int, int, int]:
    """The widths in the name of such a backbone, as in "basic:32,64,128". Raises InputError if they
    are not three multiples of 8."""
    parts = name.removeprefix(BASIC_RESNET).split(",")
    widths = [int(part) for part in parts if part.isdecimal()]
    are_multiples = all(width > 0 and width % _GROUPS == 0 for width in widths)
    if len(parts) != 3 or len(widths) != 3 or not are_multiples:
        raise InputError(
            f"backbone {name!r}: give three widths that are multiples of {_GROUPS}, such as "
            f"{BASIC_RESNET}32,64,128"
        )
    first, second, third = widths
    return first, second, third
