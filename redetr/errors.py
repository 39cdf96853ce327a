"""The errors a user can cause or meet. The command line prints each as one line and exits with its
`exit_code`."""

import errno
import os
import re

INTERRUPTED = 130  # the exit code of a program that Ctrl-C has ended, in every shell

_CREDENTIALS = re.compile(r"(?<=://)[^\s/]*@")  # of a URL

_CUDA_EXHAUSTED = re.compile("CU(BLAS|DNN)_STATUS_ALLOC_FAILED|CUDA error: out of memory")

# What to do about an error of the operating system.
_REMEDIES = {
    errno.EACCES: "change its permissions, or give another path",
    errno.EPERM: "change its permissions, or give another path",
    errno.EROFS: "give a path that can be written",
    errno.EEXIST: "give another path, or remove that file",
    errno.ENOTDIR: "give another path: a part of it is a file",
    errno.ENOENT: "give another path",
    errno.ENOSPC: "free some space",
}


def without_password(text: str) -> str:
    """The text with `***` for the user and password of each URL in it: lines on a terminal are
    pasted into reports."""
    return _CREDENTIALS.sub("***@", text)


class RedetrError(Exception):
    """An error that is shown to the user as one line, without a traceback.

    `str()` of it is `where: item: text; remedy`, without the parts that are not given, and without
    passwords of URLs. Code that needs a part reads the attribute: a path may hold a colon or a
    semicolon itself.
    """

    exit_code = 1

    def __init__(
        self,
        text: str,
        *,
        where: str | os.PathLike | None = None,
        item: str = "",
        remedy: str | None = None,
    ):
        super().__init__(text)  # also what pickle passes on; the attributes follow by themselves
        self.text = text  # what is wrong
        self.where = where  # the file, folder or data set
        self.item = item  # in that file, such as "annotation 17"
        self.remedy = remedy  # what to do about it

    def __str__(self) -> str:
        line = self.text
        if self.item:
            line = f"{self.item}: {line}"
        if self.where is not None:
            line = f"{os.fspath(self.where)}: {line}"
        if self.remedy:
            line = f"{line}; {self.remedy}"
        return without_password(line)


class InputError(RedetrError):
    """The user's input is wrong: the error names what, where (file, annotation id) and what to
    do."""


class UsageError(InputError):
    """An argument of a command is missing, which the parser could not know."""

    exit_code = 2  # as of the parser


class NoMasksError(InputError):
    """Data was opened for masks and has boxes only."""


class LostError(RedetrError):
    """A process that this one needs is gone: another rank, or a loader process. The message names
    it."""


class LostRankError(LostError):
    """Another rank died, or did not answer. The message names this rank."""


class DivergedError(RedetrError):
    """A loss or gradient is not finite: the message names the step, the loss terms and the
    images."""

    exit_code = 3


class StoppedError(RedetrError):
    """A signal ended the run: its state is saved, or it had not begun its first step."""

    exit_code = 75


def explained(error: OSError) -> InputError:
    """An error of the operating system as one of ours, with what to do about it."""
    reason = error.strerror or first_line(error)
    if error.filename is None:
        reason = f"cannot read or write: {reason}"
    return InputError(reason, where=error.filename, remedy=_REMEDIES.get(error.errno or 0))


def first_line(error: BaseException) -> str:
    """The first line of the message of an error, or the name of its class if it has none."""
    message = str(error).strip() or type(error).__name__
    return message.splitlines()[0]


def is_not_installed(error: Exception, package: str) -> bool:
    """Whether an import failed because the package is missing, not because it is broken, or because
    one that it needs is missing."""
    if not isinstance(error, ModuleNotFoundError):
        return False
    missing = error.name or ""
    return missing.split(".")[-1] == package


def import_failure(error: ImportError, package: str) -> str:
    """Why a package cannot be imported, as the rest of a sentence that begins with its name."""
    if is_not_installed(error, package):
        return "is not installed"
    return f"cannot be imported ({first_line(error)})"


def exhausted_memory(error: Exception) -> str | None:
    """Says which memory could not be allocated; None if that is not what happened.

    PyTorch has a class of its own for the GPU's memory, but not for the host's. Libraries of CUDA
    that need memory for themselves have none.
    """
    if type(error).__name__ == "OutOfMemoryError" or _CUDA_EXHAUSTED.search(str(error)):
        return "out of GPU memory"
    if isinstance(error, MemoryError) or "DefaultCPUAllocator" in str(error):
        return "out of host memory"
    return None
