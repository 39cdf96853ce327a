import gc
import os
import signal
import sys

import pytest

from redetr.errors import INTERRUPTED
from redetr.garbage import no_garbage_collection, quick_imports


@pytest.fixture
def collecting():
    """Python looks for reference cycles, as it does outside of tests, and nothing is frozen."""
    was_enabled = gc.isenabled()
    gc.enable()
    yield
    gc.unfreeze()
    if not was_enabled:
        gc.disable()


def test_nothing_is_collected_in_the_block(collecting):
    with no_garbage_collection():
        assert not gc.isenabled()
        with no_garbage_collection():
            pass
        assert not gc.isenabled()
    assert gc.isenabled()
    with pytest.raises(ValueError), no_garbage_collection():
        raise ValueError
    assert gc.isenabled()


def test_what_is_imported_is_never_looked_at_again(collecting, monkeypatch):
    frozen = gc.get_freeze_count()
    with quick_imports():  # PyTorch is there: the objects of this process are not its modules'
        assert gc.isenabled()
    assert gc.get_freeze_count() == frozen
    monkeypatch.delitem(sys.modules, "torch")
    with quick_imports():
        assert not gc.isenabled()
    assert gc.isenabled()
    assert gc.get_freeze_count() > frozen + 1000


def test_ctrl_c_among_imports_ends_at_once(collecting, monkeypatch):
    """NumPy, interrupted while it was imported, ended in a RecursionError of its own."""
    child = os.fork()
    if child == 0:
        try:
            del sys.modules["torch"]
            signal.signal(signal.SIGINT, signal.default_int_handler)
            with quick_imports():
                os.kill(os.getpid(), signal.SIGINT)
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == INTERRUPTED
    monkeypatch.delitem(sys.modules, "torch")
    with quick_imports():
        pass
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
