"""Keeps freed memory in the process between computations on a CPU.

Otherwise, the C library would return large arrays to the system each time.
"""

import ctypes
import sys

# The names that mallopt gives to its settings (malloc.h), and the largest value it accepts.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_LARGEST = 2**31 - 1


def keep_memory() -> None:
    """Lets this process reuse the memory that it frees for its next arrays. Only affects glibc.

    By default, glibc returns blocks of 32 MB and more to the system and gets them back page by page
    each time, which on a CPU is a fifth of the inference time of DETR-R50 and a tenth of a training
    step of `redetr_n`. In exchange, the process keeps its peak memory until it ends. As this
    affects the whole process, `import redetr` does not do it: the command line does, and so do
    `redetr.load` and `redetr.train`, unless they are called with `keep_memory=False`.
    """
    if sys.platform != "linux":
        return
    library = ctypes.CDLL(None)
    if not hasattr(library, "mallopt"):  # musl
        return
    is_set = library.mallopt(_MMAP_THRESHOLD, _LARGEST)
    if not is_set:  # older versions accept at most 32 MB
        is_set = library.mallopt(_MMAP_THRESHOLD, 32 << 20)
    if is_set:  # the trim threshold alone would fix the other one at 128 kB
        library.mallopt(_TRIM_THRESHOLD, _LARGEST)
