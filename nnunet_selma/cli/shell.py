"""Terminal and environment of the commands: progress bars, nnU-Net's folders, error messages."""

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from nnunet_selma.errors import SelmaError
from nnunet_selma.nnunet.folders import FOLDER_VARIABLES, Folders
from nnunet_selma.running.progress import Advance


def progress(items: Sequence[Any], label: str) -> Iterable[Any]:
    """A bar with rate and time left."""
    from tqdm import tqdm

    with tqdm(items, desc=label, dynamic_ncols=True, mininterval=1.0) as bar:
        _bars.append(bar)
        yield from bar


@contextmanager
def meter(total: int, label: str, unit: str) -> Iterator[Advance]:
    """A bar with rate in units a second and time left."""
    from tqdm import tqdm

    with tqdm(total=total, desc=label, unit=unit, unit_scale=True, dynamic_ncols=True, mininterval=1.0) as bar:
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


def folders() -> Folders:
    """nnU-Net's folders, from the environment; raises `SelmaError` where a variable is not set."""
    missing = [name for name in FOLDER_VARIABLES if not os.environ.get(name)]
    if missing:
        raise SelmaError(f'{", ".join(missing)} not set; run: eval "$(nnunet-selma env FOLDER)"')
    return Folders.from_environment(os.environ)
