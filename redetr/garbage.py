"""When Python looks for reference cycles among its objects, which takes as long as there are
many."""

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """In the block, Python does not look for reference cycles: where millions of objects are made
    that stay, there are none, and the search takes a third of the time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@contextmanager
def quick_imports() -> Iterator[None]:
    """Around the imports of a command, of which PyTorch is one: takes a quarter off their time.

    Python does not look for reference cycles in the block, nor later among the objects that modules
    hold at its end, which live as long as the process. About 9 MB that it would have freed stay in
    memory. This concerns the whole process, so the command line does it, and `import redetr` does
    not. It does nothing where PyTorch was imported before.
    """
    if "torch" in sys.modules:
        yield
        return
    with no_garbage_collection():
        yield
        gc.freeze()
