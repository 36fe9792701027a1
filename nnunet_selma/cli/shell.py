"""Terminal and environment of the commands: progress bars, nnU-Net's folders, error messages."""

import codecs
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from io import TextIOWrapper
from typing import TYPE_CHECKING, Any

from nnunet_selma.errors import SelmaError
from nnunet_selma.nnunet.folders import FOLDER_VARIABLES, Folders
from nnunet_selma.running.devices import available_device, usual_device
from nnunet_selma.running.progress import Advance

if TYPE_CHECKING:
    import torch


def progress(items: Sequence[Any], label: str) -> Iterable[Any]:
    """A bar with rate and time left; nothing where there are no items."""
    from tqdm import tqdm

    with tqdm(items, desc=label, dynamic_ncols=True, mininterval=1.0, disable=not len(items)) as bar:
        _bars.append(bar)
        yield from bar


@contextmanager
def meter(total: int, label: str, unit: str) -> Iterator[Advance]:
    """A bar with rate in units a second and time left; nothing where there is nothing to do."""
    from tqdm import tqdm

    looks = {"unit": unit, "unit_scale": True, "dynamic_ncols": True, "mininterval": 1.0}
    with tqdm(total=total, desc=label, disable=not total, **looks) as bar:
        _bars.append(bar)

        def step(amount: int, word: str) -> None:
            bar.set_postfix_str(word, refresh=False)
            bar.update(amount)

        yield step


_bars: list[Any] = []


def complain(sentence: str) -> None:
    """Say what is wrong, below all bars."""
    for bar in _bars:  # an error leaves the bar open, and the cursor behind it
        bar.close()
    print(f"nnunet-selma: {sentence}", file=sys.stderr)


_PLAIN = str.maketrans(
    {
        "×": "x",
        "µ": "u",
        "μ": "u",
        "±": "+-",
        "≥": ">=",
        "≤": "<=",
        "–": "-",
        "—": "-",
        "…": "...",
        "→": "->",
        "²": "2",
        "³": "3",
        "α": "alpha",
        "β": "beta",
    }
)


def show_every_character() -> None:
    """Let the terminal show text that its encoding cannot write: × as x, µ as u, letters without a likeness as their code.

    Python would stop with an error instead: on terminals that are not UTF-8, and for names of files that are not.
    """
    codecs.register_error("nnunet_selma.plain", _in_plain_characters)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="nnunet_selma.plain")
    # nnU-Net's commands, which are other processes, print such text too
    os.environ["PYTHONIOENCODING"] = f"{sys.stdout.encoding}:backslashreplace"


def _in_plain_characters(error: UnicodeError) -> tuple[str, int]:
    """Characters to write in place of those that cannot be written, and the place where they end."""
    assert isinstance(error, UnicodeEncodeError)
    plain = error.object[error.start : error.end].translate(_PLAIN)
    return plain.encode("ascii", "backslashreplace").decode("ascii"), error.end


def discard_output() -> None:
    """Write to nowhere from now on, because nobody reads the output any more."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(nowhere, stream.fileno())


def folders() -> Folders:
    """nnU-Net's folders, from the environment; raises `SelmaError` where a variable is not set."""
    missing = [name for name in FOLDER_VARIABLES if not os.environ.get(name)]
    if missing:
        raise SelmaError(f'{", ".join(missing)} not set; run: eval "$(nnunet-selma env FOLDER)"')
    return Folders.from_environment(os.environ)


def computing_device(name: str | None) -> "torch.device":
    """The device of --device, or nnU-Net's where it is not given; it is printed. Raises `SelmaError` if this machine has none such."""
    device = available_device(name or usual_device())
    print(f"device: {device}", flush=True)
    return device
