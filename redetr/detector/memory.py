"""Memory that a CPU computes in: kept between large arrays, where the C library would give it
back."""

import ctypes
import sys

# mallopt's names for them (malloc.h), and the largest value it takes.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_LARGEST = 2**31 - 1


def keep_memory() -> None:
    """What this process frees stays with it for its next arrays. For glibc; elsewhere nothing
    changes.

    glibc gives blocks of 32 MB and more back to the system and takes them again page by page, each
    time: a fifth of the time of an answer of DETR-R50 on a CPU. The process holds until its end
    what it took at most. For the whole process, so not done by `import redetr`: the command line
    does it, and a program of yours may.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", lambda name, value: 0)  # musl has none
    # Older versions take 32 MB at the most. The trim threshold alone would fix the other one at 128
    # kB.
    if mallopt(_MMAP_THRESHOLD, _LARGEST) or mallopt(_MMAP_THRESHOLD, 32 << 20):
        mallopt(_TRIM_THRESHOLD, _LARGEST)
