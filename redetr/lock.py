"""One run, or one `predict`, at a time in a folder, over all hosts that share it.

The lock is a file with the name of its holder. The kernel locks it, for as long as the process
lives, for all processes of a host and, on most shared disks, for those of other hosts. Where a disk
does not pass locks on, a holder on another host is known to live by the time of the file, which it
renews every few seconds.
"""

import errno
import json
import os
import platform
import tempfile
import threading
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from redetr.distributed import Dist
from redetr.errors import InputError, LostError
from redetr.files import require_folder

try:
    import fcntl
except ImportError:  # on Windows
    fcntl = None  # type: ignore[assignment]

_BEAT_S = 10.0
_SILENCE_S = 45.0  # without a beat: the host of the holder is dead, or cut off
_PATIENCE_S = 120.0  # for a holder that is about to end, or seems to be dead
_PAUSE_S = 0.5
# Errors for a file that is gone; the last one if another host removed it from an NFS disk.
_GONE = (errno.ENOENT, errno.ENOTDIR, errno.ESTALE)


@dataclass(frozen=True)
class Holder:
    """Who holds a lock."""

    host: str
    process: int
    kernel: str  # equal for two processes if the lock of the kernel certainly works between them
    job: str | None  # the batch system's or torchrun's; a restarted job has the same one
    since: str

    @classmethod
    def this_process(cls) -> "Holder":
        boot_id = Path("/proc/sys/kernel/random/boot_id")
        host = platform.node()
        kernel = boot_id.read_text().strip() if boot_id.exists() else host
        run_id = os.environ.get("TORCHELASTIC_RUN_ID")
        if run_id == "none":  # torchrun's default, the same for all runs
            run_id = None
        job = os.environ.get("SLURM_JOB_ID") or run_id
        since = datetime.now().isoformat(" ", "seconds")
        return cls(host, os.getpid(), kernel, job, since)

    def __str__(self) -> str:
        job = f" (job {self.job})" if self.job else ""
        return f"process {self.process} on {self.host}{job}"


class FolderLock:
    """Keeps others that take the lock of this `name` out of `folder` while the context lasts. Only
    rank 0 takes it; all ranks learn whether it could, and raise InputError with its holder if not.
    Communicates.

    The folder is created; at the end it is removed if it is still empty. `activity` stands in
    messages between the holder and its time.
    """

    def __init__(
        self,
        folder: Path,
        dist: Dist,
        name: str = "run.lock",
        activity: str = "has been training there since",
    ):
        self.path = folder / name
        self._dist = dist
        self._activity = activity
        self._me = Holder.this_process()
        self._file = -1
        self._is_new = False
        self._ended = threading.Event()
        self._beats = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> "FolderLock":
        try:
            self._dist.doing(f"taking the lock of {self.path.parent}")
            problem = self._dist.main_only(self._problem)()
            self._dist.meet()
            problems = self._dist.gather([problem])
        except BaseException:
            self.__exit__()
            raise
        if problems[0] is not None:
            raise InputError(problems[0])
        return self

    def __exit__(self, *_: Any) -> None:
        if self._file < 0:
            return
        self._ended.set()
        self._beats.join()
        if self._is_current(self._file) and _read(self._file) == self._me:
            self.path.unlink(missing_ok=True)
        os.close(self._file)
        if self._is_new:
            with suppress(OSError):
                self.path.parent.rmdir()

    def require_held(self) -> None:
        """Raises LostError if another run has taken the folder over, because this one was suspended
        or cut off for too long, or if the file of the lock was removed: then another run may have
        begun there."""
        if self._file < 0:
            return
        holder = _read(self._file)
        if holder is not None and holder != self._me:
            raise LostError(
                f"{self.path.parent}: another run has taken over ({self._described(holder)}): this "
                "one was suspended or cut off for too long, and will not save anything more"
            )
        if not self._is_current(self._file):
            text = "was removed while this run held it; this run will not save anything more"
            raise LostError(text, where=self.path)

    def _problem(self) -> str | None:
        """Takes the lock; returns why it could not."""
        folder = self.path.parent
        try:
            require_folder(folder)
            self._is_new = not folder.exists()
            folder.mkdir(parents=True, exist_ok=True)
            holder = self._take()
        except InputError as error:
            return str(error)
        except OSError as error:
            reason = error.strerror or error
            return f"{error.filename or folder}: {reason}: give another --output"
        if holder is not None:
            described = self._described(holder)
            return f"{folder}: {described}: wait for it, stop it, or give another --output"
        self._beats.start()
        return None

    def _described(self, holder: Holder) -> str:
        return f"{holder} {self._activity} {holder.since}"

    def _take(self) -> Holder | None:
        """Takes the lock, or returns who does not let go of it."""
        deadline = time.monotonic() + _PATIENCE_S
        last_beat = 0
        while True:
            file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
            has_lock, is_certain = _try_lock(file)
            is_current = self._is_current(file)
            holder = _read(file)
            beat = os.fstat(file).st_mtime_ns
            is_silent = _now_on(self.path.parent) - beat > _SILENCE_S * 1e9
            is_on_this_kernel = holder is not None and holder.kernel == self._me.kernel
            lost_its_lock = is_certain and is_on_this_kernel
            is_dead = holder is None or is_silent or lost_its_lock
            if has_lock and is_current and is_dead:
                content = json.dumps(asdict(self._me)).encode()
                os.ftruncate(file, 0)
                os.pwrite(file, content, 0)
                self._file = file
                return None
            os.close(file)
            if time.monotonic() > deadline:
                return holder or Holder("an unknown host", 0, "", None, "an unknown time")
            if holder is not None:
                keeps_lock = not has_lock and not is_silent
                has_beaten = last_beat not in (0, beat)
                is_alive = keeps_lock or has_beaten
                is_same_job = self._me.job is not None and holder.job == self._me.job
                if is_alive and not is_same_job:
                    return holder
                last_beat = beat
            time.sleep(_PAUSE_S)

    def _is_current(self, file: int) -> bool:
        """Whether `file` still has its name: a holder removes it when it ends.

        The file at the path is not opened: when it is closed, the lock of the kernel would end.
        """
        try:
            return os.path.samestat(os.fstat(file), os.stat(self.path))
        except OSError as error:
            if error.errno not in _GONE:
                raise
            return False

    def _beat(self) -> None:
        # By its descriptor where that is possible: the path may be that of another run by now.
        file: int | Path = self._file if os.utime in os.supports_fd else self.path
        while not self._ended.wait(_BEAT_S):
            with suppress(OSError):  # a disk that fails now may be back at the next beat
                os.utime(file)


def _try_lock(file: int) -> tuple[bool, bool]:
    """Whether no other process has the lock of the kernel, and whether that is certain.

    The loader processes do not inherit a lock of this kind: it ends with this process even where
    they outlive it.
    """
    if fcntl is None:
        return True, False
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False, True
    except OSError:  # a disk without locks
        return True, False
    return True, True


def _read(file: int) -> Holder | None:
    """Who holds the lock; None if the file is gone, or is empty or not whole because its holder
    died as it wrote."""
    try:
        return Holder(**json.loads(os.pread(file, 4096, 0)))
    except (ValueError, RecursionError, TypeError):
        return None
    except OSError as error:
        if error.errno not in _GONE:
            raise
        return None


def _now_on(folder: Path) -> int:
    """The time on the disk of a folder, whose host may have another clock, ns."""
    with tempfile.TemporaryFile(dir=folder) as file:
        return os.fstat(file.fileno()).st_mtime_ns
