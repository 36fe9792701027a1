"""Names of channels and scenes as a file states them, apart from those that programs make up."""

import re
from collections.abc import Sequence

_COUNTS = re.compile(r"(?:channel|ch?|image|scene|series|xypos|position)?[ _:#-]*(?:\d+:)*(\d+)", re.IGNORECASE)
"""A name that only counts, as "Channel:0:1", "Image:0", "C1" or "3", and its number. Wavelengths look the same but for the number."""
_UNNAMED = "(name not specified)"
"""Name that Imaris shows for a channel without one."""


def stated_names(names: Sequence[object], numbers: Sequence[int] | None = None) -> tuple[str, ...]:
    """The names, if a person chose them; empty where one is missing, or only gives its number, counted from 0 or 1.

    Args:
        names: a name for each channel, or for each scene.
        numbers: number of each in the file, from 0; None: their places in the row.
    """
    texts = tuple("" if name is None else str(name).strip() for name in names)
    places = range(len(texts)) if numbers is None else numbers
    return () if any(map(_is_made_up, texts, places)) else texts


def _is_made_up(name: str, number: int) -> bool:
    counts = _COUNTS.fullmatch(name)
    return name in ("", _UNNAMED) or (counts is not None and int(counts[1]) in (number, number + 1))


def distinct_names(names: Sequence[str]) -> tuple[str, ...]:
    """The names, with their numbers added where two are equal, so that each name is that of one scene."""
    if len(set(names)) == len(names):
        return tuple(names)
    return tuple(f"{name} #{number}" for number, name in enumerate(names))
