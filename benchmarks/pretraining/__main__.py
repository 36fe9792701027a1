"""`python -m benchmarks.pretraining STAGE --data DELIVR SELMA3D_CROPS --unlabelled MORE`: run a stage of the study, or go on with it.

Stages: screening, confirmation, labels (1, 2, 5 and 10 annotated patches), answers (what confirmed pretrainings answer without any label),
tables (docs/results.md and its figures, from the results).
"""

import argparse
import multiprocessing
import time
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from pathlib import Path

from benchmarks.pretraining.arms import ARMS, BASELINE, Arm, arm_named

_ROOT = Path(__file__).resolve().parents[2]
RESULTS = _ROOT / "benchmarks" / "results" / "pretraining"
CONFIRMED = (BASELINE, "new default", "old default", "XunDJ, as slow")
"""Arms that are confirmed; the first two of them are fine-tuned on few labels too."""
LABELS = (1, 2, 5, 10)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a stage."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=("screening", "confirmation", "labels", "answers", "tables"))
    parser.add_argument("--data", type=Path, nargs="+", default=[], help="downloads with annotated patches")
    parser.add_argument("--unlabelled", type=Path, nargs="+", default=[], help="further volumes to pretrain on")
    parser.add_argument("-o", dest="output", type=Path, default=Path("study"), help="workspace (default: %(default)s)")
    parser.add_argument(
        "--results", type=Path, default=RESULTS, help="folder of the result files (default: %(default)s)"
    )
    parser.add_argument("--arms", nargs="+", help="names of arms (default: those of the stage)")
    parser.add_argument("--labels", type=int, nargs="+", default=LABELS, help="annotated patches, of the stage labels")
    parser.add_argument("--seeds", type=int, nargs="+", help="default: 0 for screening, 0 1 2 else")
    parser.add_argument("--processes", type=int, default=2, help="trainings at the same time, with one thread each")
    chosen = parser.parse_args(arguments)
    if chosen.stage == "tables":
        publish(chosen.results)
        return
    usual = {"screening": tuple(ARMS), "labels": CONFIRMED[:2], "answers": CONFIRMED[1:3]}.get(chosen.stage, CONFIRMED)
    arms = [arm_named(name) for name in chosen.arms or usual]
    run(chosen, arms, chosen.seeds or ([0] if chosen.stage == "screening" else [0, 1, 2]))


def publish(results: Path) -> None:
    """Write the tables into docs/results.md and draw its figures, as far as there are results."""
    from benchmarks.pretraining.intervals import read_runs
    from benchmarks.pretraining.pictures import label_efficiency, learning_curves
    from benchmarks.pretraining.tables import write_page

    docs = _ROOT / "docs"
    write_page(results, docs / "results.md")
    confirmed, few = (read_runs(results / stage) for stage in ("confirmation", "labels"))
    if confirmed:
        ran = {run.arm for run in confirmed}
        learning_curves(confirmed, docs / "curves.png", [name for name in CONFIRMED if name in ran])
    if few:
        label_efficiency(few, docs / "few-labels.png", CONFIRMED[:2])


def run(chosen: argparse.Namespace, arms: Sequence[Arm], seeds: Sequence[int]) -> None:
    """Pretrain what the arms share, then fine-tune, in several processes; what was done is passed by."""
    from benchmarks.pretraining.running import CONFIRMATION, SCREENING, Study

    stage = SCREENING if chosen.stage == "screening" else CONFIRMATION
    study = Study(
        sources=tuple(path.resolve() for path in chosen.data), unlabelled=tuple(path.resolve() for path in chosen.unlabelled),
        output=chosen.output.resolve(), results=chosen.results.resolve(),
    )  # fmt: skip
    study.prepare(stage)
    if chosen.stage == "answers":
        from benchmarks.pretraining.answers import write_answers

        print(write_answers(study, stage, arms, seeds))
        return
    labels: Sequence[int | None] = chosen.labels if chosen.stage == "labels" else (None,)
    runs = [(arm, seed, count) for count in labels for seed in seeds for arm in arms]
    waiting = [entry for entry in runs if not study.result(stage, *entry).is_file()]
    pretrainings = {arm.pretraining_name(seed): (arm, seed) for arm, seed, _ in waiting if arm.pretext is not None}
    with ProcessPoolExecutor(chosen.processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        pretraining = [pool.submit(study.pretrain, stage, arm, seed) for arm, seed in pretrainings.values()]
        random = [pool.submit(study.finetune, stage, *entry) for entry in waiting if entry[0].pretext is None]
        _finish("pretrainings", pretraining)
        pretrained = [pool.submit(study.finetune, stage, *entry) for entry in waiting if entry[0].pretext is not None]
        _finish("fine-tunings", [*random, *pretrained])


def _finish(title: str, work: Sequence[Future[Path] | Future[None]]) -> None:
    started = time.monotonic()
    for number, done in enumerate(as_completed(work), start=1):
        done.result()
        minutes = (time.monotonic() - started) / 60
        print(
            f"{number}/{len(work)} {title}, {minutes:.1f} min, about {minutes / number * (len(work) - number):.0f} min left", flush=True
        )  # fmt: skip


if __name__ == "__main__":
    main()
