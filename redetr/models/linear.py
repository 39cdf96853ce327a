"""Linear layers, computed as convolutions on a CPU.

PyTorch computes convolutions by oneDNN, and matrix products in fp32 by MKL, which is made for
Intel's processors. On an AMD EPYC, the same numbers took 11 ms by MKL and 4.9 ms by oneDNN (8,400
positions of width 256). oneDNN plans for each new shape, which pays off from 300 positions on.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Returns `F.linear`: `[B, S, out]` for `x` `[B, S, in]` and `weight` `[out, in]`."""
    if not _as_convolution(x):
        return F.linear(x, weight, bias)
    row = x.mT.unsqueeze(2)  # [B, in, 1, S]: a map of one row in channels_last
    out = F.conv2d(row, weight[:, :, None, None], bias)
    return out.squeeze(2).mT


class Linear(nn.Linear):
    """`torch.nn.Linear` by `linear`."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


def _as_convolution(x: Tensor) -> bool:
    """Whether oneDNN would compute convolutions of `x`: `[B, S, D]` in fp32, and not traced."""
    return (
        not torch.compiler.is_compiling()  # comes first: a compiled graph cannot ask for threads
        and x.device.type == "cpu"
        and x.dtype == torch.float32
        and x.dim() == 3
        and x.numel() > 0  # there is no empty convolution
        and x.is_contiguous()
        and torch.get_num_threads() > 1  # with one thread, convolutions are matrix products
        and torch.backends.mkldnn.is_available()
        and not torch.is_autocast_enabled("cpu")
    )
