"""GroupNorm that is fast in bf16 on a CPU, too."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class GroupNorm(nn.GroupNorm):
    """GroupNorm of `[B, C, h, w]`; in bf16 on a CPU it is computed in fp32.

    For `channels_last` maps in bf16, PyTorch's gradient takes three times as long as in fp32, with
    the conversions counted: 15% of a training step of `redetr_n`. The cost is memory: what is kept
    for the gradient is in fp32.
    """

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype == torch.bfloat16 and x.device.type == "cpu":
            weight = self.weight.float()  # those of a model in bf16 are bf16, too
            bias = self.bias.float()
            y = F.group_norm(x.float(), self.num_groups, weight, bias, self.eps)
            return y.to(x.dtype)
        return super().forward(x)
