"""`python -m benchmarks.pretraining STAGE --data DELIVR SELMA3D_CROPS --unlabelled MORE`: run a stage of the study, or go on with it.

Stages: screening, confirmation, labels (1, 2, 5 and 10 annotated patches), answers (what confirmed pretrainings answer without any label),
tables (docs/results.md and its figures, from the results).
"""

import argparse
import multiprocessing
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from pathlib import Path
from typing import Any

from benchmarks.pretraining.arms import ARMS, BASELINE, Arm, arm_named

_ROOT = Path(__file__).resolve().parents[2]
RESULTS = _ROOT / "benchmarks" / "results" / "pretraining"
CONFIRMED = (
    BASELINE,
    "new default",
    "random head, a tenth as fast",
    "old default, longer",
    "multi-task, as slow",
    "random",
    "random head, a tenth as fast, no warm-up",
)
"""Arms that are confirmed; the first four are drawn."""
FEW = (BASELINE, "new default", "random", "random head, a tenth as fast")
"""Arms that are fine-tuned on few labels; the first three are drawn."""
LABELS = (1, 2, 5, 10)
SCREENED = tuple(name for name, arm in ARMS.items() if name not in CONFIRMED or arm.pretext is None)
"""Arms that are screened."""
Entry = tuple[Arm, int, int | None]
"""Arm, seed, and the number of annotated patches, None for all."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a stage."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=("screening", "confirmation", "labels", "answers", "tables"))
    add_study_options(parser, RESULTS)
    parser.add_argument("--arms", nargs="+", help="names of arms (default: those of the stage)")
    parser.add_argument("--labels", type=int, nargs="+", default=LABELS, help="annotated patches, of the stage labels")
    parser.add_argument("--seeds", type=int, nargs="+", help="default: 0 1 for screening, 0 to 4 else")
    chosen = parser.parse_args(arguments)
    if chosen.stage == "tables":
        publish(chosen.results)
        return
    usual = {"screening": SCREENED, "labels": FEW, "answers": ("new default", "old default, longer")}.get(
        chosen.stage, CONFIRMED
    )
    arms = [arm_named(name) for name in chosen.arms or usual]
    run(chosen, arms, chosen.seeds or (range(2 if chosen.stage == "screening" else 5)))


def add_study_options(parser: argparse.ArgumentParser, results: Path) -> None:
    """Add the options of a study: data, folders, device and number of processes; `results` is the usual folder of the result files."""
    parser.add_argument(
        "--data", type=Path, nargs="+", default=[], help="downloads with annotated patches; that of DELiVR first"
    )
    parser.add_argument("--unlabelled", type=Path, nargs="+", default=[], help="further volumes to pretrain on")
    parser.add_argument("-o", dest="output", type=Path, default=Path("study"), help="workspace (default: %(default)s)")
    parser.add_argument(
        "--results", type=Path, default=results, help="folder of the result files (default: %(default)s)"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="(default: %(default)s)")
    parser.add_argument("--processes", type=int, default=2, help="trainings at the same time, with one thread each")


def study_from(chosen: argparse.Namespace) -> Any:
    """The study of the options that `add_study_options` adds."""
    from benchmarks.pretraining.running import Study

    return Study(
        sources=tuple(path.resolve() for path in chosen.data),
        unlabelled=tuple(path.resolve() for path in chosen.unlabelled),
        output=chosen.output.resolve(),
        results=chosen.results.resolve(),
        device=chosen.device,
    )


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
        learning_curves(confirmed, docs / "curves.png", [name for name in CONFIRMED[:4] if name in ran])
    if few:
        label_efficiency(few, docs / "few-labels.png", FEW[:3])


def run(chosen: argparse.Namespace, arms: Sequence[Arm], seeds: Sequence[int]) -> None:
    """Pretrain what the arms share, then fine-tune, in several processes; what was done is passed by."""
    from benchmarks.pretraining.running import CONFIRMATION, SCREENING

    stage = SCREENING if chosen.stage == "screening" else CONFIRMATION
    study = study_from(chosen)
    study.prepare(stage)
    if chosen.stage == "answers":
        from benchmarks.pretraining.answers import write_answers

        print(write_answers(study, stage, arms, seeds))
        return
    labels: Sequence[int | None] = chosen.labels if chosen.stage == "labels" else (None,)
    runs: list[Entry] = [(arm, seed, count) for count in labels for seed in seeds for arm in arms]
    waiting = [entry for entry in runs if not study.result(stage, *entry).is_file()]
    with ProcessPoolExecutor(chosen.processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        fine_tune_as_pretrained(study, stage, waiting, pool)


def fine_tune_as_pretrained(study: Any, stage: Any, waiting: Sequence[Entry], pool: Executor) -> None:
    """Pretrain what the waiting runs share, once each, and submit a run as soon as its pretraining is finished; say how far it is.

    Raises:
        SystemExit: a training failed, after all others have run.
    """
    runs_of: dict[str, list[Entry]] = {}
    for arm, seed, labels in waiting:
        runs_of.setdefault(arm.pretraining_name(seed) if arm.pretext else "", []).append((arm, seed, labels))
    pending: dict[Future[Any], str] = {
        pool.submit(study.finetune, stage, arm, seed, labels): "" for arm, seed, labels in runs_of.pop("", [])
    }
    pending |= {pool.submit(study.pretrain, stage, runs[0][0], runs[0][1]): name for name, runs in runs_of.items()}
    total, finished, failures, started = len(waiting) + len(runs_of), 0, list[str](), time.monotonic()
    while pending:
        for done in wait(pending, return_when=FIRST_COMPLETED).done:
            runs = runs_of.get(pending.pop(done), [])
            finished += 1
            if failure := done.exception():
                failures.append(f"{type(failure).__name__}: {failure}")
                print(failures[-1], flush=True)
                finished += len(runs)
            else:
                pending |= {pool.submit(study.finetune, stage, arm, seed, labels): "" for arm, seed, labels in runs}
            minutes = (time.monotonic() - started) / 60
            print(
                f"{finished}/{total} trainings, {minutes:.1f} min, about {minutes / finished * (total - finished):.0f} min left",
                flush=True,
            )
    if failures:
        raise SystemExit(f"{len(failures)} trainings failed, the first with {failures[0]}")


if __name__ == "__main__":
    main()
