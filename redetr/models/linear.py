"""Linear layers, on a CPU as convolutions.

PyTorch takes convolutions from oneDNN and matrix products in fp32 from MKL, which is made for
Intel's processors: on an AMD EPYC, the same numbers took 11 ms by MKL and 4.9 ms by oneDNN (8,400
positions of width 256). A shape that is new costs oneDNN a plan, which 300 positions outweigh.
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
    """Whether `x` is `[B, S, D]` in fp32, untraced, and its convolutions are left to oneDNN."""
    return (
        not torch.compiler.is_compiling()  # first: a compiled graph cannot ask for the threads
        and x.device.type == "cpu"
        and x.dtype == torch.float32
        and x.dim() == 3
        and x.is_contiguous()
        and torch.get_num_threads() > 1  # a single one computes them as matrix products
        and torch.backends.mkldnn.is_available()
        and not torch.is_autocast_enabled("cpu")
    )
