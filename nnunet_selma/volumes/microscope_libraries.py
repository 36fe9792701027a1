"""Libraries that read the files of one vendor of microscopes each (an extra: `pip install nnunet-selma[microscopes]`)."""

from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from nnunet_selma.errors import SelmaError


class MicroscopeLibrary(NamedTuple):
    """A library that may not be installed."""

    module: str
    needed: str
    """Begin of a sentence, as in "Nikon ND2 needs nd2"."""

    def missing(self) -> str | None:
        """A part of a sentence where the library is not installed; None where it is. Imports nothing."""
        if find_spec(self.module) is not None:
            return None
        return f"{self.needed}; install it with: pip install 'nnunet-selma[microscopes]'"

    def check(self, path: Path) -> None:
        """Raise `SelmaError`, which names the file, if the library is not installed."""
        if missing := self.missing():
            raise SelmaError(f"{path}: {missing}")
