"""The errors a user can cause or meet. The command line prints their message as one line and exits
with `exit_code`."""


class RedetrError(Exception):
    """Base of all errors that are told to the user in one line, without a traceback."""

    exit_code = 1


class InputError(RedetrError):
    """What the user gave is wrong: the message names what, where (file, annotation id) and what to
    do."""


class LostError(RedetrError):
    """A process that this one needs is gone: another rank, or a loader process. The message names
    it."""


class DivergedError(RedetrError):
    """A loss or gradient is not finite: the message names the step, the loss terms and the
    images."""

    exit_code = 3


class StoppedError(RedetrError):
    """A signal ended the run after its state was saved."""

    exit_code = 75
