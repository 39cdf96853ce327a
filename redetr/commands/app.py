"""`redetr app`"""

import logging
import socket
import warnings
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from redetr.commands.arguments import Checkpoint, parse_flags
from redetr.commands.console import OUT, say_detector, say_threshold
from redetr.errors import InputError
from redetr.garbage import quick_imports
from redetr.threads import use_threads

_NEEDED = ("starlette", "uvicorn", "python_multipart")
_GOODBYE_S = 1  # for requests in progress when the server is stopped


@dataclass(frozen=True)
class App:
    """Serve a web page: drop an image on it to see the detections, where the model looked, and how
    training would judge them. Programs get detections over HTTP. Uploads stay on this machine and
    are not kept."""

    checkpoint: Checkpoint
    """A checkpoint, a run folder, a published weight file, or a Transformers folder or hub name."""
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 lets in everyone who can reach this machine, without a
    password."""
    allow_host: tuple[str, ...] = ()
    """Further host names to answer to, such as that of a proxy in front of the server. It always
    answers to localhost; with another --host, also to this machine's name and any IP address."""
    port: int = 7860
    """Port to listen on; 0 = any free port."""
    data: str | None = None
    """Data for "Matching and loss", which shows its train split: digits, crowns, a folder, hf:NAME
    or the URL of archives; default: the training data."""
    device: str = "auto"
    """auto, cpu, cuda, or one GPU of several, such as cuda:1."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto = that of the training run; for weights from elsewhere, bf16 where it is faster.
    Explanations are computed in fp32."""
    threads: int | None = None
    """Compute threads; default: OMP_NUM_THREADS, else one per core."""

    def run(self) -> None:
        with quick_imports():
            from redetr.detector.detector import load
            from redetr.explain import open_judged

        if not 0 <= self.port < 2**16:
            raise InputError(f"--port {self.port} is not between 0 and 65535")
        for package in _NEEDED:
            if not find_spec(package):
                raise InputError(
                    f'{package} is not installed; install it with: pip install "redetr[app]"'
                )
        use_threads(self.threads)
        detector = load(self.checkpoint, device=self.device, precision=self.precision)
        dataset = open_judged(detector, "train", self.data) if self.data else None
        # Damaged and large files are reported to the client.
        warnings.filterwarnings("ignore", module="PIL")
        import uvicorn

        from redetr.app.connections import PromptProtocol
        from redetr.app.server import web_app
        from redetr.signals import sigterm_as_ctrl_c

        names = self._allowed_names()
        say_detector(detector)
        say_threshold(detector)
        app = web_app(
            detector, dataset, title=_title(self.checkpoint), host=self.host, allowed=names
        )
        config = uvicorn.Config(
            app,
            http=PromptProtocol,
            ws="none",
            lifespan="off",
            log_level="warning",
            server_header=False,
            timeout_graceful_shutdown=_GOODBYE_S,
        )
        server = uvicorn.Server(config)
        # Requests in progress are cut off when the server stops, which needs no traceback.
        logging.getLogger("uvicorn.error").addFilter(lambda _: not server.should_exit)
        with self._socket() as listening:
            OUT.print(f"{self._invitation(listening)}; press Ctrl-C to stop", soft_wrap=True)
            with suppress(KeyboardInterrupt), sigterm_as_ctrl_c():
                server.run([listening])

    def _allowed_names(self) -> list[str]:
        """The names of --allow-host. Raises InputError for anything that cannot be a host name."""
        from redetr.app.guard import hostname

        names = [name.lower() for name in self.allow_host]
        for name in names:
            if not name or hostname(name) != name:
                text = f"--allow-host {name!r} is not a host name"
                remedy = "give it without http:// and without a port, as in detector.example"
                raise InputError(text, remedy=remedy)
        return names

    def _socket(self) -> socket.socket:
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        try:
            return socket.create_server((self.host, self.port), family=family)
        except OSError as error:
            where = f"{self.host}, port {self.port}"
            raise InputError(
                f"cannot listen on {where} ({error}): give another --host or --port"
            ) from None

    def _invitation(self, listening: socket.socket) -> str:
        """Where to open the page: 0.0.0.0 and :: stand for all addresses, and are none to open."""
        from redetr.app.server import is_any_address

        port = listening.getsockname()[1]
        if is_any_address(self.host):
            here = f"http://localhost:{port}/"
            elsewhere = f"http://{socket.gethostname()}:{port}/"
            return f"open {here} on this machine, or {elsewhere} from another"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"open http://{host}:{port}/ in a browser"


def _title(checkpoint: str) -> str:
    """What the page calls a checkpoint: the name of its folder, of a file with that of the file,
    or its name on a hub. Files of all runs have the same names."""
    path = Path(checkpoint)
    if path.is_dir():
        return path.resolve().name
    if path.is_file():
        return f"{path.parent.resolve().name}/{path.name}"
    return checkpoint


parse = partial(parse_flags, App, prog="redetr app")
