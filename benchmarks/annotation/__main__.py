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
from benchmarks.pretraining.__main__ import add_study_options, fine_tune_as_pretrained, study_from

_ROOT = Path(__file__).resolve().parents[2]
RESULTS = _ROOT / "benchmarks" / "results" / "annotation"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the study, or write its tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=("run", "tables"))
    add_study_options(parser, RESULTS)
    parser.add_argument("--structures", nargs="+", choices=tuple(BUDGETS), default=tuple(BUDGETS))
    parser.add_argument("--starts", nargs="+", choices=tuple(STARTS), default=tuple(STARTS))
    parser.add_argument("--seeds", type=int, nargs="+", default=(0, 1, 2))
    chosen = parser.parse_args(arguments)
    if chosen.stage == "tables":
        from benchmarks.annotation.tables import write_page

        write_page(chosen.results, _ROOT / "docs" / "results.md")
        return
    if not chosen.data:
        parser.error("run needs --data, with the folder of DELiVR's annotated patches first")
    study = LoopStudy(study=study_from(chosen), delivr=chosen.data[0].resolve())
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
