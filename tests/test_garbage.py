import gc
import sys

import pytest

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
