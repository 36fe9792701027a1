"""`python -m benchmarks [name ...] [--quick]`: run, write results, refresh the table."""

import argparse
import sys
import time
from collections.abc import Iterable
from pathlib import Path

from benchmarks import around_the_network, judging, loading, microscopes, table, training, whole_volume
from benchmarks.pairs import Comparison, compare
from nnunet_selma.running.json_files import write_json

_HERE = Path(__file__).resolve().parent
PAGE = _HERE.parent / "docs" / "performance.md"


def comparisons(quick: bool = False) -> list[Comparison]:
    """All benchmarks; quick ones are too small to tell anything."""
    return [
        *training.comparisons(quick),
        *loading.comparisons(quick),
        *loading.conversion_comparisons(quick),
        *judging.comparisons(quick),
        *whole_volume.comparisons(quick),
        *around_the_network.comparisons(quick),
        *microscopes.comparisons(quick),
    ]


def distinct(chosen: Iterable[Comparison]) -> list[Comparison]:
    """The benchmarks without those that do the same work as an earlier one, as many do when all are as small as possible."""
    kept: list[Comparison] = []
    for comparison in chosen:
        if comparison.work not in [earlier.work for earlier in kept]:
            kept.append(comparison)
    return kept


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmarks whose names begin with one of the words given; all of them without."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks")
    parser.add_argument("names", nargs="*", help="beginnings of names; none for all")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="as small as possible, one pair each, and each work once: shows that they run, tells nothing",
    )
    parser.add_argument(
        "--results", type=Path, default=_HERE / "results", help="folder for the results (default: %(default)s)"
    )
    chosen = parser.parse_args(arguments)
    every = comparisons(chosen.quick)
    selected = [one for one in every if not chosen.names or one.name.startswith(tuple(chosen.names))]
    if chosen.quick:
        selected = distinct(selected)
    chosen.results.mkdir(parents=True, exist_ok=True)
    machine = table.machine()
    started = time.monotonic()
    for number, one in enumerate(selected):
        print(
            f"[{number + 1}/{len(selected)}, {(time.monotonic() - started) / 60:.0f} min] {one.name}: {one.ours.label} / {one.other.label}",
            flush=True,
        )
        result = compare(one, apart=not chosen.quick, say=lambda line: print(line, flush=True))
        low, high = result.spread
        print(f"  ratio {result.median:.2f} ({low:.2f} to {high:.2f}), target {one.target:.2g}", flush=True)
        write_json(chosen.results / f"{one.name}.json", {**result.as_json(), "machine": machine})
    if not chosen.quick:
        table.refresh(PAGE, chosen.results, [one.name for one in every])
    return 0


if __name__ == "__main__":
    sys.exit(main())
