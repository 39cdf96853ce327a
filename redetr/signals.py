"""What SIGTERM and Ctrl-C do to a run: it ends in order, or at once when Ctrl-C comes twice."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from redetr.distributed import Dist
from redetr.errors import INTERRUPTED, StoppedError

_UNWINDING_S = 3.0  # that the main thread has to end by itself


class StopSignals:
    """The signals that ask a run to stop.

    While the run is set up, there is nothing to save: the first one raises KeyboardInterrupt. Once
    `steps_begun` is set, it is noted in `received`, and the loop ends after its step. A second
    Ctrl-C raises KeyboardInterrupt.
    """

    def __init__(self) -> None:
        self.received = False
        self.steps_begun = False
        self.ended = threading.Event()
        self._interrupts = 0
        # torchrun passes on the Ctrl-C that its processes have from the terminal already.
        self._most_interrupts = 3 if "TORCHELASTIC_RUN_ID" in os.environ else 2

    def handle(self, number: int, frame: Any) -> None:
        """The handler of both signals."""
        self.received = True
        if number == signal.SIGINT:
            self._interrupts += 1
        if not self.steps_begun or self._interrupts >= self._most_interrupts:
            raise KeyboardInterrupt

    def watch(self, arriving: int) -> None:
        """Reads the numbers of signals as they arrive, until one is 0.

        Python calls a handler only when the main thread returns from a computation or a wait. If
        that does not happen soon after the last Ctrl-C, the process ends here.
        """
        interrupts = 0
        while True:
            numbers = os.read(arriving, 64)
            interrupts += numbers.count(signal.SIGINT)
            if 0 in numbers:
                return
            if interrupts >= self._most_interrupts and not self.ended.wait(_UNWINDING_S):
                os._exit(INTERRUPTED)


@contextmanager
def stop_signals() -> Iterator[StopSignals]:
    """Catches SIGTERM and SIGINT for the time of a run. Outside of the main thread, where Python
    cannot, nothing is caught."""
    stop = StopSignals()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    arriving, arrived = os.pipe()
    os.set_blocking(arrived, False)
    watcher = threading.Thread(target=stop.watch, args=(arriving,), daemon=True)
    watcher.start()
    wakeup_before = signal.set_wakeup_fd(arrived, warn_on_full_buffer=False)
    handlers_before = {}
    for number in (signal.SIGTERM, signal.SIGINT):
        handlers_before[number] = signal.signal(number, stop.handle)
    try:
        yield stop
    finally:
        for number, handler in handlers_before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(wakeup_before)
        stop.ended.set()
        os.write(arrived, b"\0")
        watcher.join()
        os.close(arriving)
        os.close(arrived)


@contextmanager
def sigterm_as_ctrl_c() -> Iterator[None]:
    """Makes SIGTERM, by which services are stopped, raise KeyboardInterrupt. Outside of the main
    thread, where Python cannot, nothing changes."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def deferred_ctrl_c() -> Iterator[None]:
    """Lets the block finish what it writes: the KeyboardInterrupt of a SIGINT or SIGTERM in it is
    raised at its end. Outside of the main thread, which alone is interrupted, nothing changes."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    received = []

    def note(number: int, frame: Any) -> None:
        received.append(number)

    handlers_before = {}
    try:
        for signal_number in (signal.SIGINT, signal.SIGTERM):
            handlers_before[signal_number] = signal.signal(signal_number, note)
        yield
    finally:
        for signal_number, handler in handlers_before.items():
            signal.signal(signal_number, handler)
    if received:
        raise KeyboardInterrupt


class EvaluationStop:
    """Ends an evaluation on all ranks after the same batch, once any of them has received a signal.
    Called after each batch.

    Like the message of a training step, what ranks tell each other travels while the next batch is
    computed. Communicates.
    """

    def __init__(self, stop: StopSignals, dist: Dist, num_batches: int, message: str):
        """`num_batches` are those of all ranks; `message` is that of the StoppedError."""
        self._stop = stop
        self._dist = dist
        self._rounds = num_batches // dist.world_size  # that no rank is without a batch in
        self._message = message
        self._votes: Callable[[], Tensor] | None = None

    def __call__(self, num_images: int) -> None:
        if not self._rounds:
            return
        self._rounds -= 1
        self._count()
        self._votes = self._dist.gather_rows([float(self._stop.received)])
        if not self._rounds:
            self._count()

    def _count(self) -> None:
        if self._votes is None:
            return
        votes = self._votes()
        if votes.any():
            raise StoppedError(self._message)
