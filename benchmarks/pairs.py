"""Two ways of doing one thing, measured in turn, so that a machine that slows down slows both.

Each side lives in a process of its own, started once, with its own environment; while one is measured the other waits and computes
nothing. What counts is the ratio of each pair, and over the pairs its median and its spread.
"""

import multiprocessing
import os
import statistics
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

Measure = Callable[[], float]
"""Does the work once and returns what it cost: seconds, bytes, …"""


@dataclass(frozen=True, kw_only=True)
class Side:
    """One way of doing it."""

    label: str
    start: Callable[..., Measure]
    """A function at the top of a module: prepares everything, and returns what is measured."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, str | None] = field(default_factory=dict)
    """Variables that are set, or with None unset, before the process starts."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two sides, what is compared, and what the project wants to reach."""

    name: str
    what: str
    ours: Side
    other: Side
    unit: str = "s"
    target: float
    """Wanted ratio, other to ours."""
    repetitions: int = 6
    note: str = ""

    @property
    def work(self) -> list[tuple[Callable[..., Measure], dict[str, Any]]]:
        """Functions of both sides with their arguments; the environment is left out."""
        return [(side.start, dict(side.arguments)) for side in (self.ours, self.other)]


@dataclass(frozen=True, kw_only=True)
class Result:
    """What came out: costs pair by pair, and the ratio of the other side to ours (above 1: ours is better)."""

    name: str
    what: str
    ours: str
    other: str
    unit: str
    target: float
    costs_ours: list[float]
    costs_other: list[float]
    note: str

    @property
    def ratios(self) -> list[float]:
        """Other to ours, pair by pair."""
        return [other / ours for ours, other in zip(self.costs_ours, self.costs_other, strict=True)]

    @property
    def median(self) -> float:
        """The median ratio."""
        return statistics.median(self.ratios)

    @property
    def spread(self) -> tuple[float, float]:
        """First and third quartile of the ratio; lowest and highest where there are few."""
        ratios = sorted(self.ratios)
        if len(ratios) < 4:
            return ratios[0], ratios[-1]
        first, _, third = statistics.quantiles(ratios, n=4)
        return first, third

    def as_json(self) -> dict[str, Any]:
        """Everything, with the ratios."""
        return {**asdict(self), "ratios": self.ratios, "median_ratio": self.median, "spread": list(self.spread)}


def compare(comparison: Comparison, *, apart: bool = True, say: Callable[[str], None] = lambda _: None) -> Result:
    """Measure pair by pair; `apart` gives each side a process of its own (without it the environment is not changed)."""
    costs: tuple[list[float], list[float]] = ([], [])
    with _started(comparison.ours, apart) as ours, _started(comparison.other, apart) as other:
        for repetition in range(comparison.repetitions):
            # the side that begins changes, so that neither always follows the other
            for index in (0, 1) if repetition % 2 == 0 else (1, 0):
                costs[index].append((ours, other)[index]())
            say(f"  {costs[0][-1]:.4g} against {costs[1][-1]:.4g} {comparison.unit}: {costs[1][-1] / costs[0][-1]:.2f}")
    return Result(
        name=comparison.name,
        what=comparison.what,
        ours=comparison.ours.label,
        other=comparison.other.label,
        unit=comparison.unit,
        target=comparison.target,
        costs_ours=costs[0],
        costs_other=costs[1],
        note=comparison.note,
    )


@contextmanager
def _started(side: Side, apart: bool) -> Iterator[Measure]:
    if not apart:
        yield side.start(**side.arguments)
        return
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    before = {name: os.environ.get(name) for name in side.environment}
    _set(side.environment)
    process = context.Process(target=_serve, args=(there, side.start, dict(side.arguments)))
    process.start()
    _set(before)

    def answer() -> float:
        while not here.poll(1):
            if not process.is_alive():
                raise RuntimeError(f"{side.label}: the measuring process ended with code {process.exitcode}")
        cost: float = here.recv()
        return cost

    def measure() -> float:
        here.send("measure")
        return answer()

    try:
        answer()  # prepared
        yield measure
    finally:
        if process.is_alive():
            here.send("end")
        process.join(30)
        process.kill()


def _serve(connection: Any, start: Callable[..., Measure], arguments: dict[str, Any]) -> None:
    # what nnU-Net prints does not belong between the figures
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    measure = start(**arguments)
    connection.send(0.0)
    while connection.recv() == "measure":
        connection.send(measure())


def _set(environment: Mapping[str, str | None]) -> None:
    for name, value in environment.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
