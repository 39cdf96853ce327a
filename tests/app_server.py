"""`redetr app` in a process of its own, with a small model that finds something."""

import json
import os
import re
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import anyio
import torch
from starlette.types import ASGIApp, Receive
from torch import Tensor, nn

from redetr.checkpoint import save_weights
from redetr.config import TrainConfig
from tests.forked import Fork
from tests.test_explain import CLASSES, IDS, OPTIONS, picture, small_detector


def write_checkpoint(
    path: Path, trained_on: Path, form: str = "redetr_n", masks: bool = False
) -> Path:
    """Random weights of a small model, whose answers differ.

    Scores of the last layer of the fast form are spread from about 0.2 to 0.8; of the faithful
    form, classes and boxes that its queries find in `picture()`.
    """
    extra = {"masks": True} if masks else {}
    detector = small_detector(form, **extra)
    model = detector.model
    if form == "detr_r50":
        heads = (model.class_embed, model.bbox_embed.layers[-1])
        hooks = [head.register_forward_hook(_spread) for head in heads]
        detector.predict(picture())
        for hook in hooks:
            hook.remove()
    else:
        last = model.class_embed[-1]
        with torch.no_grad():
            last.bias.zero_()
            last.weight.mul_(2)
    options = tuple(f"{name}={json.dumps(value)}" for name, value in OPTIONS[form].items())
    config = replace(
        TrainConfig(model=form, masks=masks),
        image_size=64,
        model_options=options,
        data=str(trained_on),
    )
    about = {
        "config": config.to_dict(),
        "class_names": CLASSES,
        "category_ids": IDS,
        "step": 0,
        "best": {},
    }
    save_weights(path, model.state_dict(), about)
    return path


@torch.no_grad()
def _spread(head: nn.Linear, inputs: tuple[Tensor], outputs: Tensor) -> None:
    """Gives the outputs of the head in the last layer a mean of 0 and a deviation of 1."""
    last = outputs[-1]
    deviation, mean = torch.std_mean(last.flatten(0, -2), 0)
    head.weight /= deviation[:, None]
    head.bias.copy_((head.bias - mean) / deviation)


# One line for each attack, and where the weights come from.
_TOLD = (
    "threshold: ",
    "WARNING:  Invalid HTTP request received.",
    "Expected boundary character",
    "weights: ",
)


@dataclass
class Server:
    process: Fork
    port: int
    checkpoint: Path
    folder: Path  # all that it writes

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    def ask(
        self, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None
    ) -> tuple[int, str]:
        """Status and text of the answer."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, body, headers or {})
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()

    def predict(self, content: bytes, threshold: Any = 0.0) -> tuple[int, Any]:
        """Status and JSON of the endpoint's answer."""
        status, text = self.ask("POST", f"/api/predict?threshold={threshold}", content)
        return status, json.loads(text)


@contextmanager
def serving(checkpoint: Path, *flags: Any) -> Iterator[Server]:
    """The server on a free port.

    In the end, Ctrl-C must stop it without a word, and no upload may be left on disk.
    """
    with tempfile.TemporaryDirectory() as folder:
        arguments = [
            "app",
            checkpoint,
            "--port",
            0,
            "--device",
            "cpu",
            "--precision",
            "fp32",
            *flags,
        ]
        process = Fork(arguments, {"TMPDIR": folder, "HOME": folder})
        try:
            started = re.match(
                r"open http://127.0.0.1:(\d+)/ in a browser", process.first_line(timeout=300)
            )
            assert started, process.communicate()[1]
            yield Server(process, int(started[1]), checkpoint, Path(folder))
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=120)
            told = [line for line in errors.splitlines() if not line.startswith(_TOLD)]
            assert not told, "\n".join(told)
            assert process.returncode == 0
            assert not [path for path in Path(folder).iterdir() if path.is_file()]
        finally:
            process.kill()
            process.communicate()


def ask_within(app: ASGIApp, method: str, path: str, headers: dict[str, str] | None = None,
               receive: Receive | None = None) -> tuple[int, str]:  # fmt: skip
    """Status and text of the answer of an application in this process, to what `receive` gives."""
    return anyio.run(answer_within, app, method, path, headers, receive)


async def answer_within(app: ASGIApp, method: str, path: str, headers: dict[str, str] | None = None,
                        receive: Receive | None = None) -> tuple[int, str]:  # fmt: skip
    """`ask_within` for several requests at once."""
    raw = {"host": "localhost"} | (headers or {})
    scope = {
        "type": "http",
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "server": ("localhost", 80),
        "path": path,
        "query_string": b"",
        "headers": [(name.encode(), value.encode()) for name, value in raw.items()],
    }
    sent: list[Any] = []

    async def nothing() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    await app(scope, receive or nothing, send)
    return sent[0]["status"], b"".join(message.get("body", b"") for message in sent[1:]).decode()


async def silence() -> Any:
    """What a client sends that sends nothing, and does not go away."""
    await anyio.sleep_forever()


def sending(body: bytes, leaves: bool = False) -> Receive:
    """What a client sends with an upload, after which it waits or `leaves`."""
    upload = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Any:
        if upload:
            return upload.pop()
        return {"type": "http.disconnect"} if leaves else await silence()

    return receive


def peak_memory(server: Server) -> int:
    """The most bytes that the server has had in memory so far."""
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    (kb,) = re.findall(r"VmHWM:\s+(\d+) kB", status)
    return 1024 * int(kb)


def artefacts(own: Path) -> Path:
    """Where screenshots go."""
    folder = Path(os.environ.get("REDETR_ARTEFACTS") or own)
    folder.mkdir(parents=True, exist_ok=True)
    return folder
