"""Entry program of a container: `python -m nnunet_selma.sharing.serve`.

Edition 2024: one case, and out. Edition 2026: a server that is asked for one case after another.

    GET /health     200, at once, also while the model is loaded or a case is computed
    POST /invoke    201 when the segmentation of the case in the input folder is written; 400 with a sentence for a case that cannot be
                    segmented, 500 for any other error

Cases are computed beside the main thread, which so takes a signal to stop at once. PyTorch is imported there too, so that the server
answers before that.
"""

import argparse
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir
from threading import Lock, Thread
from typing import TYPE_CHECKING, Any, TypeVar

from nnunet_selma.errors import SelmaError, sentence_of
from nnunet_selma.sharing.editions import EDITIONS, PORT, Edition

if TYPE_CHECKING:
    from nnunet_selma.sharing.segmenting import Segmenter

Result = TypeVar("Result")
_FAILED, _STOPPED = 2, 143
"""Exit codes: it could not be done; a signal stopped it."""


class _Stop(BaseException):
    """Raised in the main thread by a signal to stop."""


@dataclass(frozen=True)
class Work:
    """Folders of the cases, and the model, which is loaded in the background."""

    edition: Edition
    input: Path
    output: Path
    segmenter: "Future[Segmenter]"
    busy: Lock

    @property
    def segmentation(self) -> Path:
        """The file that is written."""
        return self.output / self.edition.output

    def segment(self) -> None:
        """Segment the case in the input folder, once the model is loaded and the case before is done; raises what goes wrong."""
        with self.busy:
            self.segmentation.unlink(missing_ok=True)  # of the case before
            segmenter = self.segmenter.result()
            from nnunet_selma.sharing.cases import find_case  # not beside the imports of the other thread

            segmenter.segment(find_case(self.input, self.edition), self.segmentation, self.edition.dtype)


class Handler(BaseHTTPRequestHandler):
    """Answers of the server."""

    server_version, sys_version = "nnunet-selma", ""

    def __init__(self, work: Work, *connection: Any) -> None:
        self._work = work
        super().__init__(*connection)

    def do_GET(self) -> None:
        """Say that the server is there."""
        if self._asked("/invoke"):
            self._answer(405, "/invoke takes POST")
        elif self._asked("/health"):
            self._answer(200, "healthy")
        else:
            self._answer(404, f"{self.path}: there are /health and /invoke")

    def do_POST(self) -> None:
        """Segment the case in the input folder."""
        self.rfile.read(int(self.headers.get("Content-Length") or 0))  # says nothing
        if not self._asked("/invoke"):
            self._answer(404, f"{self.path}: POST takes /invoke")
            return
        try:
            self._work.segment()
        except Exception as error:  # noqa: BLE001 - the server stays for the next case
            _complain_of(error)
            self._answer(400 if isinstance(error, SelmaError) else 500, _sentence(error))
        else:
            self._answer(201, "the segmentation is written")

    def _asked(self, path: str) -> bool:
        return self.path.split("?")[0].rstrip("/") == path

    def _answer(self, code: int, text: str) -> None:
        content = f"{text}\n".encode("utf-8", "backslashreplace")
        self.send_response(code)
        self.send_header("Content-Type", "text/plain; charset=utf-8")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_request(self, code: Any = "-", size: Any = "-") -> None:
        """Log requests but those for health, which come again and again."""
        if not self._asked("/health"):
            _say(f"{self.command} {self.path}: {int(code)}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program; returns the exit code.

    0: done, or a server that was stopped; 2: it could not be done; 143: a signal stopped a case.
    """
    chosen = command_parser().parse_args(arguments)
    edition = EDITIONS[chosen.edition]
    os.environ.setdefault("MPLBACKEND", "agg")
    signal.signal(signal.SIGTERM, _stop)
    try:
        with TemporaryDirectory(prefix="nnunet-selma-", dir=chosen.scratch, ignore_cleanup_errors=True) as scratch:
            work = _work(chosen, edition, Path(scratch))
            try:
                if edition.server:
                    _run_server(work, chosen.port)
                else:
                    _in_background(work.segment).result()
            finally:  # before the temporary files, whose removal may take longer than the platform waits
                for part in work.segmentation.parent.glob("*.partial"):
                    part.unlink(missing_ok=True)
            return 0
    except (_Stop, KeyboardInterrupt):
        return 0 if edition.server else _STOPPED
    except Exception as error:  # noqa: BLE001 - a container that ends must say why
        _complain_of(error)
        return _FAILED


def _run_server(work: Work, port: int) -> None:
    """Answer until a signal comes; raises what goes wrong while the model is loaded."""
    with ThreadingHTTPServer(("", port), partial(Handler, work)) as server:
        _say(f"listening on port {server.server_port}")
        # in a thread: it waits for the server to end, which may not have begun
        end = Thread(target=server.shutdown, daemon=True)
        work.segmenter.add_done_callback(lambda loaded: end.start() if loaded.exception() else None)
        server.serve_forever()
    work.segmenter.result()


def _work(chosen: argparse.Namespace, edition: Edition, scratch: Path) -> Work:
    """The work of this process; begins to load the model."""

    def load() -> "Segmenter":
        from nnunet_selma.sharing.segmenting import Segmenter

        return Segmenter(chosen.model, device=chosen.device, max_memory=chosen.max_memory, scratch=scratch, say=_say)

    return Work(edition, chosen.input, chosen.output, _in_background(load), Lock())


def _in_background(function: Callable[[], Result]) -> "Future[Result]":
    """The result to come of a function that is called in a thread, for which nothing waits at the end of the program."""
    future: Future[Result] = Future()

    def call() -> None:
        try:
            result = function()
        except BaseException as error:  # noqa: BLE001 - is raised where the result is asked for
            future.set_exception(error)
        else:
            future.set_result(result)

    Thread(target=call, daemon=True).start()
    return future


def _stop(*_: Any) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise _Stop


def _sentence(error: Exception) -> str:
    if isinstance(error, OSError | MemoryError):
        error = sentence_of(error)
    if isinstance(error, SelmaError):
        return str(error)
    return f"an unexpected error, {type(error).__name__}: {' '.join(str(error).split())}; the log says where"


def _complain_of(error: Exception) -> None:
    """Write an error to the log, with the place in the code where it is not one of input, files or memory."""
    if not isinstance(error, SelmaError | OSError | MemoryError):
        traceback.print_exception(error)
    _complain(_sentence(error))


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _complain(sentence: str) -> None:
    sys.stderr.write(f"nnunet-selma: {sentence}\n")
    sys.stderr.flush()


def command_parser() -> argparse.ArgumentParser:
    """The parser of the program's arguments."""
    parser = argparse.ArgumentParser(
        prog="python -m nnunet_selma.sharing.serve",
        description="Segment a case as a container of the challenge does.",
    )
    parser.add_argument("--edition", type=int, choices=sorted(EDITIONS), required=True)
    parser.add_argument("--input", type=Path, default=Path("/input"), help="(default: %(default)s)")
    parser.add_argument("--output", type=Path, default=Path("/output"), help="(default: %(default)s)")
    parser.add_argument(
        "--model", type=Path, required=True, help="folder with prediction.json, as nnunet-selma container packs it"
    )
    parser.add_argument("--port", type=int, default=PORT, help="of 2026; 0: any free one (default: %(default)s)")
    parser.add_argument(
        "--device", choices=("cpu", "cuda", "mps"), help="(default: cuda if there is a GPU, else mps, else cpu)"
    )
    parser.add_argument(
        "--max-memory",
        type=float,
        metavar="GB",
        help="memory of a prediction (default: half of what the container may use)",
    )
    parser.add_argument(
        "--scratch", type=Path, default=Path(gettempdir()), help="folder for temporary files (default: %(default)s)"
    )
    return parser


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # Python would wait for threads of a case that was stopped
