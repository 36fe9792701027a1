"""Names of channels and scenes as a file states them, apart from those that programs make up."""

import re
from collections.abc import Sequence

_MADE_UP = re.compile(r"(channel|image|scene|series|xypos|position)?[ _:-]*\d+(:\d+)*", re.IGNORECASE)
"""A name that only counts, as "Channel:0:1", "Image:0" or "3"."""


def stated_names(names: Sequence[object]) -> tuple[str, ...]:
    """The names where each is more than a number; empty where one is missing or made up."""
    texts = tuple("" if name is None else str(name).strip() for name in names)
    return () if any(not text or _MADE_UP.fullmatch(text) for text in texts) else texts


def distinct_names(names: Sequence[str]) -> tuple[str, ...]:
    """The names, with their numbers added where two are equal, so that each name is that of one scene."""
    if len(set(names)) == len(names):
        return tuple(names)
    return tuple(f"{name} #{number}" for number, name in enumerate(names))
