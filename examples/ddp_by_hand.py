"""One training step on two "GPUs", small enough to follow: the same gradient by hand, with DDP, and
in one process.

Rank 0 holds an image with 2 objects, rank 1 one with 4. The ranks are two processes that talk over
gloo: no GPU needed.
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

torch.set_default_dtype(torch.float64)  # so that what is equal is equal in every digit shown

# Per image: query -> box (cx, cy, w, h) of the object that matching gave it. The other queries of
# the 100 are "no object" and have no box loss. Untrained, the head below predicts (0.5, 0.5, 0.5,
# 0.5) for all of them: the L1 distances of image 0 are 0.25 and 0.30.
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
    """The whole model: 8 weights that turn a decoder state of 2 numbers into a box. The same in
    every process."""
    head = nn.Linear(2, 4, bias=False)
    nn.init.zeros_(head.weight)
    return head


def l1_sum(head: nn.Module, image: int) -> Tensor:
    """|predicted - target| summed over the matched queries of an image, not yet divided by
    anything."""
    states = torch.randn(100, 2, generator=torch.Generator().manual_seed(image))
    queries, boxes = list(MATCHED[image]), torch.tensor(list(MATCHED[image].values()))
    return (head(states).sigmoid()[queries] - boxes).abs().sum()


def gradient(head: nn.Linear, loss: Tensor) -> Tensor:
    head.zero_grad()
    loss.backward()
    return head.weight.grad.flatten()


def rank_main(rank: int, folder: Path) -> None:
    """What each process runs. It sees its own image only."""
    dist.init_process_group(
        "gloo", init_method=(folder / "store").as_uri(), rank=rank, world_size=2
    )
    head = box_head()
    replica = DistributedDataParallel(
        head
    )  # from here on, backward() leaves the mean over ranks in .grad
    own = len(MATCHED[rank])
    total = torch.tensor(own)
    dist.all_reduce(total)  # 6 on both ranks: the one number that a rank cannot know by itself
    right = gradient(
        head, l1_sum(replica, rank) / (total / 2)
    )  # the mean over 2 ranks of sums / 3 is the sum / 6
    wrong = gradient(
        head, l1_sum(replica, rank) / own
    )  # objects weigh 1/4 on rank 0 and 1/8 on rank 1, not 1/6
    torch.save([right, wrong], folder / f"{rank}.pt")
    dist.destroy_process_group()
    # At once: while Python tidies up, PyTorch 2.14 sometimes aborts the process.
    os._exit(0)


def with_ddp() -> list[Tensor]:
    """What rank 0 found, right and wrong; after DDP's mean, rank 1 has the same."""
    with (
        tempfile.TemporaryDirectory() as folder
    ):  # the ranks meet in a file there: no port that could be taken
        mp.spawn(rank_main, (Path(folder),), nprocs=2)
        return torch.load(Path(folder) / "0.pt")


if __name__ == "__main__":
    head = box_head()
    raw = l1_sum(head, 0).item()
    print(f"L1 loss of image 0 alone     {raw:.2f} / 2 = {raw / 2:.4g}")
    print(f"L1 loss of image 0 on rank 0 {raw:.2f} / 3 = {raw / 3:.4g}\n")
    by_hand = (gradient(head, l1_sum(head, 0) / 3) + gradient(head, l1_sum(head, 1) / 3)) / 2
    ddp, wrong = with_ddp()
    alone = gradient(head, (l1_sum(head, 0) + l1_sum(head, 1)) / 6)
    for name, values in (
        ("by hand", by_hand),
        ("DDP, 2 processes", ddp),
        ("1 process", alone),
        ("own counts", wrong),
    ):
        print(f"{name:17}", *(f"{value:9.6f}" for value in values.tolist()))
    print(
        f"\nDivided by each rank's own count, it is {(wrong - alone).norm() / alone.norm():.1%} "
        "off."
    )
