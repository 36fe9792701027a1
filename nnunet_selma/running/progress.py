"""How long work shows itself: the library walks through its items with whatever the caller gives it."""

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")
Work = Callable[[Task], Generator[int, None, Result]]
"""Does a task: yields how many steps it has gone on, and returns its result."""

T = TypeVar("T")
Progress = Callable[[Sequence[T], str], Iterable[T]]
"""Takes the items and what they are called, and yields them."""


def silent(items: Sequence[T], _: str) -> Iterable[T]:
    """Progress that shows nothing."""
    return items


Step = Callable[[int, str], None]
"""Takes how much was done since the last time, and a word on where it stands."""
Meter = Callable[[int, str, str], AbstractContextManager[Step]]
"""Takes how much there is to do, what it is called and its unit; for work whose pieces differ in size."""


@contextmanager
def silent_meter(_total: int, _label: str, _unit: str) -> Iterator[Step]:
    """A meter that shows nothing."""
    yield lambda _amount, _word: None
