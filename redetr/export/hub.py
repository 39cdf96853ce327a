"""Pushes a folder to the Hugging Face hub, or to another server with its protocol."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from redetr.download import quiet_hub
from redetr.errors import InputError, first_line

_NAME = re.compile(r"[\w.-]+/[\w.-]+")


def require_name(name: str) -> None:
    """Raises InputError for a name without its owner."""
    if not _NAME.fullmatch(name):
        raise InputError(
            f"{name!r} is not a name on the hub", remedy="give OWNER/NAME, such as me/cups"
        )


def require_access() -> None:
    """Raises InputError if there is no token, if it is not valid, or if the hub cannot be
    reached."""
    hub = _huggingface_hub()
    if not hub.get_token():
        text = "no token for the hub"
        raise InputError(text, remedy="run `hf auth login` once, or set HF_TOKEN")
    with _explained():
        hub.HfApi().whoami()


def push(folder: Path, files: list[str], name: str, private: bool) -> str:
    """Commits these files of a folder to the repository `name`, which is created if it does not
    exist; returns its URL. Other files in the repository are kept. Raises InputError if the hub
    refuses or cannot be reached."""
    hub = _huggingface_hub()
    with _explained(name):
        api = hub.HfApi()
        repository = api.create_repo(name, private=private, exist_ok=True)
        message = "Weights and model card of redetr"
        api.upload_folder(
            repo_id=name, folder_path=folder, allow_patterns=files, commit_message=message
        )
        return str(repository)


@contextmanager
def _explained(name: str | None = None) -> Iterator[None]:
    """Turns errors of the client and its HTTP library into an InputError of one line."""
    from huggingface_hub import errors

    # A broken connection raises an error of the HTTP library, whichever that is.
    transport: type[Exception] = errors.HfHubHTTPError.__bases__[0]
    try:
        with quiet_hub():
            yield
    except errors.HFValidationError as error:
        raise InputError(first_line(error)[:160], where=name) from error
    except errors.HfHubHTTPError as error:
        status = getattr(error.response, "status_code", None)
        remedy = None
        if status == 401:
            remedy = "the token is not valid: run `hf auth login`, or set HF_TOKEN"
        elif status in (403, 404):
            remedy = "the token has no write permission there: use one that has"
        text = f"the hub refuses ({first_line(error)[:160]})"
        raise InputError(text, where=name, remedy=remedy) from error
    except (OSError, transport) as error:
        text = f"cannot reach the hub ({first_line(error)[:160]})"
        remedy = "check the connection; --to writes the folder without it"
        raise InputError(text, where=name, remedy=remedy) from error


def _huggingface_hub() -> Any:
    try:
        import huggingface_hub
    except ImportError:
        remedy = 'pip install "redetr[hub]"'
        raise InputError("pushing needs huggingface-hub", remedy=remedy) from None
    return huggingface_hub
