"""Memory of computations on a CPU, kept between large arrays.

The C library would give it back to the system each time.
"""

import ctypes
import sys

# mallopt's names for them (malloc.h), and the largest value it takes.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_LARGEST = 2**31 - 1


def keep_memory() -> None:
    """Keeps the memory that this process frees for its next arrays. Only glibc is affected.

    glibc returns blocks of 32 MB and more to the system and gets them back page by page, each time:
    a fifth of the time of an answer of DETR-R50 on a CPU. The process keeps until its end the most
    that it has used. This concerns the whole process, so `import redetr` does not do it: the
    command line does, and so does `redetr.load`, unless it is called with `keep_memory=False`.
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
