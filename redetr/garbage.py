"""Controls when Python searches for reference cycles, which takes longer the more objects there
are."""

import gc
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from redetr.errors import INTERRUPTED


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """A context without searches for reference cycles. Code that creates millions of lasting
    objects has none, and would spend a third of its time on the searches."""
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
    with no_garbage_collection(), _ending_at_once():
        yield
        gc.freeze()


@contextmanager
def _ending_at_once() -> Iterator[None]:
    """In the block, Ctrl-C ends the process, unless it is ignored or handled by others."""
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, _end)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _end(number: int, frame: Any) -> None:
    os._exit(INTERRUPTED)
