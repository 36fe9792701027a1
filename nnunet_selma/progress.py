"""How long work shows itself: the library walks through its items with whatever the caller gives it."""

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

T = TypeVar("T")
Progress = Callable[[Sequence[T], str], Iterable[T]]
"""Takes the items and what they are called, and yields them."""


def silent(items: Sequence[T], _: str) -> Iterable[T]:
    """Progress that shows nothing."""
    return items
