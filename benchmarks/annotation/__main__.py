"""`python -m benchmarks.annotation run --data DELIVR SELMA3D_CROPS --unlabelled MORE`: simulate annotation loops, or go on with it.

`tables` writes what came out into docs/results.md. DELiVR's folder comes first in `--data`.
"""

import argparse
import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from benchmarks.annotation.brains import BUDGETS
from benchmarks.annotation.running import STARTS, LoopStudy, loop
from benchmarks.annotation.strategies import STRATEGIES
from benchmarks.pretraining.__main__ import fine_tune_as_pretrained
from benchmarks.pretraining.running import Study

_ROOT = Path(__file__).resolve().parents[2]
RESULTS = _ROOT / "benchmarks" / "results" / "annotation"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the study, or write its tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=("run", "tables"))
    parser.add_argument(
        "--data", type=Path, nargs="+", default=[], help="downloads with annotated patches, DELiVR's first"
    )
    parser.add_argument("--unlabelled", type=Path, nargs="+", default=[], help="further volumes to pretrain on")
    parser.add_argument("-o", dest="output", type=Path, default=Path("study"), help="workspace (default: %(default)s)")
    parser.add_argument(
        "--results", type=Path, default=RESULTS, help="folder of the result files (default: %(default)s)"
    )
    parser.add_argument("--structures", nargs="+", choices=tuple(BUDGETS), default=tuple(BUDGETS))
    parser.add_argument("--starts", nargs="+", choices=tuple(STARTS), default=tuple(STARTS))
    parser.add_argument("--seeds", type=int, nargs="+", default=(0, 1, 2))
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="(default: %(default)s)")
    parser.add_argument("--processes", type=int, default=2, help="trainings at the same time, with one thread each")
    chosen = parser.parse_args(arguments)
    if chosen.stage == "tables":
        from benchmarks.annotation.tables import write_page

        write_page(chosen.results, _ROOT / "docs" / "results.md")
        return
    if not chosen.data:
        parser.error("run needs --data, with the folder of DELiVR's annotated patches first")
    study = LoopStudy(
        study=Study(
            sources=tuple(path.resolve() for path in chosen.data),
            unlabelled=tuple(path.resolve() for path in chosen.unlabelled),
            output=chosen.output.resolve(),
            results=chosen.results.resolve(),
            device=chosen.device,
        ),
        delivr=chosen.data[0].resolve(),
    )
    for structure in chosen.structures:
        study.prepare(structure)
        for seed in chosen.seeds:
            loops = [
                (loop(structure, strategy, start), seed, None) for start in chosen.starts for strategy in STRATEGIES
            ]
            with ProcessPoolExecutor(chosen.processes, mp_context=multiprocessing.get_context("spawn")) as pool:
                fine_tune_as_pretrained(study, study.stage, loops, pool)


if __name__ == "__main__":
    main()
