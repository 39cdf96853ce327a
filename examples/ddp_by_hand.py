"""The gradient of one training step on two "GPUs", small enough to follow: computed by hand, with
DDP, and in one process.

Rank 0 has an image with 2 objects, rank 1 has one with 4. The ranks are two processes that
communicate over gloo, so this runs without a GPU.
"""
# ruff: noqa: T201, TID251 - this file prints, and shows torch.distributed itself

import os
import tempfile
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

# In double precision, equal gradients agree in every digit that is printed.
torch.set_default_dtype(torch.float64)

# For each image, the matched queries and the boxes (cx, cy, w, h) of their objects. The rest of the
# 100 queries predict "no object" and have no box loss. The untrained head below predicts the box
# (0.5, 0.5, 0.5, 0.5) for every query, so the L1 distances in image 0 are 0.25 and 0.30.
MATCHED = [
    {17: (0.40, 0.45, 0.56, 0.46), 33: (0.60, 0.40, 0.45, 0.55)},
    {
        4: (0.3, 0.35, 0.2, 0.25),
        42: (0.7, 0.4, 0.3, 0.6),
        58: (0.55, 0.8, 0.4, 0.15),
        91: (0.2, 0.65, 0.1, 0.35),
    },
]


def box_head() -> nn.Linear:
    """The whole model: 8 weights that turn a decoder state of 2 numbers into a box. Every process
    starts with the same weights."""
    head = nn.Linear(2, 4, bias=False)
    nn.init.zeros_(head.weight)
    return head


def l1_sum(head: nn.Module, image: int) -> Tensor:
    """The sum of |predicted - target| over the matched queries of an image, not yet divided."""
    generator = torch.Generator().manual_seed(image)
    states = torch.randn(100, 2, generator=generator)
    predicted = head(states).sigmoid()  # [100, 4]
    queries = list(MATCHED[image])
    targets = torch.tensor(list(MATCHED[image].values()))
    distances = (predicted[queries] - targets).abs()
    return distances.sum()


def gradient(head: nn.Linear, loss: Tensor) -> Tensor:
    """The gradient of the loss with respect to the 8 weights, `[8]`."""
    head.zero_grad()
    loss.backward()
    return head.weight.grad.flatten()


def rank_main(rank: int, folder: Path) -> None:
    """Saves the gradient of image `rank` to `folder`. Each process runs this."""
    store = (folder / "store").as_uri()
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    head = box_head()
    # From here on, backward() leaves the mean over the ranks in .grad.
    replica = DistributedDataParallel(head)

    count = len(MATCHED[rank])
    # The sum over both ranks, 6, is the only number that a rank cannot know by itself.
    total = torch.tensor(count)
    dist.all_reduce(total)

    # The mean over 2 ranks of (sum / 3) is the sum over both images / 6.
    right = gradient(head, l1_sum(replica, rank) / (total / 2))
    # Here an object weighs 1/4 on rank 0 and 1/8 on rank 1, instead of 1/6.
    wrong = gradient(head, l1_sum(replica, rank) / count)

    torch.save([right, wrong], folder / f"{rank}.pt")
    dist.destroy_process_group()
    # Skips Python's clean-up, during which PyTorch 2.14 sometimes aborts the process.
    os._exit(0)


def gradients_with_ddp() -> list[Tensor]:
    """The right and the wrong gradient of rank 0. Those of rank 1 are equal, as DDP averages."""
    with tempfile.TemporaryDirectory() as name:
        # The ranks meet in a file in this folder: a port might be in use.
        folder = Path(name)
        mp.spawn(rank_main, (folder,), nprocs=2)
        return torch.load(folder / "0.pt")


def main() -> None:
    head = box_head()
    distance = l1_sum(head, 0).item()
    print(f"L1 loss of image 0 alone     {distance:.2f} / 2 = {distance / 2:.4g}")
    print(f"L1 loss of image 0 on rank 0 {distance:.2f} / 3 = {distance / 3:.4g}\n")

    on_rank_0 = gradient(head, l1_sum(head, 0) / 3)
    on_rank_1 = gradient(head, l1_sum(head, 1) / 3)
    by_hand = (on_rank_0 + on_rank_1) / 2
    ddp, wrong = gradients_with_ddp()
    one_process = gradient(head, (l1_sum(head, 0) + l1_sum(head, 1)) / 6)

    rows = {
        "by hand": by_hand,
        "DDP, 2 processes": ddp,
        "1 process": one_process,
        "counts per rank": wrong,
    }
    for name, values in rows.items():
        print(f"{name:17}", *(f"{value:9.6f}" for value in values.tolist()))
    error = (wrong - one_process).norm() / one_process.norm()
    print(f"\nIf each rank divides by its own count, the gradient is {error:.1%} off.")


if __name__ == "__main__":
    main()
