"""Progress of long work: the caller hands in how it is shown, and the library walks through its items with it."""

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TypeVar

TaskT = TypeVar("TaskT")
ResultT = TypeVar("ResultT")
Work = Callable[[TaskT], Generator[int, None, ResultT]]
"""Does a task: yields the number of steps since the last yield, and returns its result."""

ItemT = TypeVar("ItemT")
Progress = Callable[[Sequence[ItemT], str], Iterable[ItemT]]
"""Shows a label and the progress through items; yields the items."""


def silent(items: Sequence[ItemT], _: str) -> Iterable[ItemT]:
    """Progress that shows nothing."""
    return items


Advance = Callable[[int, str], None]
"""Shows the amount done since the last call, and a word about the state."""
Meter = Callable[[int, str, str], AbstractContextManager[Advance]]
"""Shows progress of a total amount with a label and a unit; for work whose pieces differ in size."""


@contextmanager
def silent_meter(_total: int, _label: str, _unit: str) -> Iterator[Advance]:
    """A meter that shows nothing."""
    yield lambda _amount, _word: None


def do_task(work: Work[TaskT, ResultT], task: TaskT, report: Callable[[int], object]) -> ResultT:
    """Do a task to its end, reporting its steps as they are done; returns its result."""
    steps = work(task)
    while True:
        try:
            report(next(steps))
        except StopIteration as end:
            result: ResultT = end.value
            return result
