"""One training of the study, in this process: data arranged and planned, a pretraining, a fine-tuning that is measured on its way.

Everything that was done lies in files under its name, so that a study that was interrupted goes on where it was.
"""

import os
import random
import shutil
import time
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib import import_module
from io import StringIO
from pathlib import Path
from typing import Any

import torch

from benchmarks.pretraining.arms import Arm, merged
from nnunet_selma.finetuning.pretrained import CHECKPOINT, SUMMARY
from nnunet_selma.nnunet.folders import Folders
from nnunet_selma.nnunet.pipeline import ANNOTATED, UNLABELLED
from nnunet_selma.recipes.challenge import Arm as Prepared
from nnunet_selma.recipes.challenge import Challenge
from nnunet_selma.recipes.challenge.data import ChallengeData, arrange
from nnunet_selma.recipes.recipes import RECIPES, run_length
from nnunet_selma.running.json_files import read_json, write_json
from nnunet_selma.trainers import TRAINERS

STEPS_PER_EPOCH = 32
LABELLED = "cfos_neuron"
"""Structure whose patches the label-efficiency curve counts."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A set of runs on the same data."""

    name: str
    test_cubes: tuple[str, ...]
    """Cubes that nothing of this stage has seen."""
    octants: tuple[int, ...] = tuple(range(8))
    """Octants of the test cubes that are measured."""
    pretraining_steps: int = 1024
    points: tuple[int, ...] = (32, 64, 128, 256, 512, 1024)
    """Steps of fine-tuning after which the network is measured; the last is the length of the run."""


SCREENING = Stage(
    name="screening",
    test_cubes=("cfos_neuron_695", "microglia_1874", "microglia_4923"),
    octants=(0, 2, 4, 6),
    pretraining_steps=512,
    points=(64, 128, 512),
)
CONFIRMATION = Stage(name="confirmation", test_cubes=("cfos_neuron_1147", "microglia_3941", "microglia_7082"))


@dataclass(frozen=True, kw_only=True)
class Study:
    """Where data come from, and where everything is written."""

    sources: tuple[Path, ...]
    """Downloads with annotated patches."""
    unlabelled: tuple[Path, ...]
    """Further volumes to pretrain on."""
    output: Path
    """Workspace of the study."""
    results: Path
    """Folder of the result files."""
    device: str = "cpu"
    """Where networks are trained and measured: "cpu" or "cuda"."""

    def challenge(self, stage: Stage) -> Challenge:
        """The data of a stage, arranged once, in a workspace of nnU-Net's."""
        root = self.output / stage.name
        arranged = root / "arranged.json"
        if arranged.is_file():
            data = ChallengeData.below(root / "data", tile=96, tiles_per_volume=1)
        else:
            data = arrange(
                self.sources, self.unlabelled, root / "data", test_patches=None, test_groups=stage.test_cubes
            )
            write_json(arranged, {"test_cubes": stage.test_cubes})
        ours = Prepared(name="ours", recipe=RECIPES["ours"], changes={})
        return Challenge(data=data, output=root, arms=[ours], say=print)

    def prepare(self, stage: Stage) -> None:
        """Convert, plan and preprocess the data of a stage, once."""
        done = self.output / stage.name / "prepared.json"
        if not done.is_file():
            self.folders(stage)  # sets the environment
            self.challenge(stage).prepare()
            write_json(done, {"stage": stage.name})

    def folders(self, stage: Stage) -> Folders:
        """nnU-Net's folders of a stage, which are set in the environment too."""
        pipeline = self.challenge(stage).pipeline
        os.environ.update({**pipeline.environment, "OMP_NUM_THREADS": "1", "nnUNet_n_proc_DA": "0"})
        torch.set_num_threads(1)
        return pipeline.folders

    def trainer(self, stage: Stage, kind: str, name: str, dataset_id: int, changes: dict[str, dict[str, Any]]) -> Any:
        """A trainer of the package with small plans and these settings."""
        folders = self.folders(stage)
        base = "nnUNetPlans_from510_store" if dataset_id == UNLABELLED else "nnUNetPlans"
        source = folders.plans(folders.dataset(dataset_id), base)
        plans = RECIPES["ours"].plans(read_json(source), name, "tiny", changes) | {"continue_training": False}
        dataset = read_json(source.parent / "dataset.json")
        with redirect_stdout(StringIO()):
            return getattr(import_module(TRAINERS[kind]), kind)(
                plans, "3d_fullres", "all", dataset, torch.device(self.device)
            )

    def pretrain(self, stage: Stage, arm: Arm, seed: int) -> Path:
        """Pretrain an arm, unless it was; returns the checkpoint."""
        steps = arm.steps or stage.pretraining_steps
        length = run_length(max(1, steps // 128), min(128, steps), every=1000) | {"seed": seed}
        changes = merged(arm.settings, {"pretraining": length})
        trainer = self.trainer(stage, str(arm.pretext), arm.pretraining_name(seed), UNLABELLED, changes)
        folder = Path(trainer.output_folder)
        if not (folder / "seconds.json").is_file():
            started = time.monotonic()
            with redirect_stdout(StringIO()):
                trainer.run_training()
                trainer.perform_actual_validation()
            write_json(folder / "seconds.json", {"seconds": round(time.monotonic() - started, 1)})
        return folder / CHECKPOINT

    def result(self, stage: Stage, arm: Arm, seed: int, labels: int | None) -> Path:
        """The file that holds what came out of a run."""
        folder = "labels" if labels is not None else stage.name
        return self.results / folder / f"{arm.name.replace(' ', '-').replace(',', '')}_{labels or 'all'}_{seed}.json"

    def finetune(self, stage: Stage, arm: Arm, seed: int, labels: int | None = None) -> None:
        """Fine-tune an arm from its pretraining and measure it at every point of the stage, unless that was done."""
        from benchmarks.pretraining.measuring import measure, test_cases, training_cases

        result = self.result(stage, arm, seed, labels)
        if result.is_file():
            return
        pretraining, checkpoint = None, "none"
        if arm.pretext is not None:
            path = self.pretrain(stage, arm, seed)
            summary = read_json(path.parent / SUMMARY)
            last = {
                key: summary["history"][key][-1]
                for key in ("reconstruction_error", "trivial_error")
                if key in summary["history"]
            }
            pretraining = {
                "steps": arm.steps or stage.pretraining_steps,
                **read_json(path.parent / "seconds.json"),
                "final": last,
                "learnt": summary.get("learnt"),
            }
            checkpoint = str(path)
        points = stage.points if labels is None else tuple(point for point in stage.points if point <= 512)[-1:]
        length = run_length(max(points) // STEPS_PER_EPOCH, STEPS_PER_EPOCH) | {"seed": seed, "pretrained": checkpoint}
        changes = merged(arm.settings, {"finetuning": length})
        trainer = self.trainer(stage, arm.finetuning, f"{result.stem}_{result.parent.name}", ANNOTATED, changes)
        with redirect_stdout(StringIO()):
            trainer.initialize()
        if labels is not None:
            keys = drawn_patches(
                sorted(trainer.dataset_class.get_identifiers(trainer.preprocessed_dataset_folder)), labels, seed
            )
            trainer.do_split = lambda: (keys, keys)
        trainer.disable_checkpointing = True
        data = self.challenge(stage).data
        started, measured = time.monotonic(), []
        with redirect_stdout(StringIO()):
            trainer.on_train_start()
            tested, fitted = test_cases(data.images, data.references, trainer, stage.octants), training_cases(trainer)
            for steps, loss in trained(trainer):
                if steps in points:
                    point = measure(trainer, tested, fitted, topology=steps >= 512)
                    measured.append({"steps": steps, "training_loss": loss, **point})
        result.parent.mkdir(parents=True, exist_ok=True)
        write_json(
            result,
            {
                "stage": result.parent.name,
                "arm": arm.name,
                "seed": seed,
                "labels": labels,
                "pretext": arm.pretext,
                "trainer": arm.finetuning,
                "changes": {key: dict(value) for key, value in arm.changes.items()},
                "pretraining": pretraining,
                "seconds": round(time.monotonic() - started, 1),
                "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
                "points": measured,
            },
        )
        shutil.rmtree(trainer.output_folder, ignore_errors=True)


def trained(trainer: Any) -> Iterator[tuple[int, float]]:
    """Train epoch by epoch; yields the steps so far and the mean loss of the epoch."""
    while trainer.current_epoch < trainer.num_epochs:
        trainer.on_epoch_start()
        trainer.on_train_epoch_start()
        losses = [float(trainer.train_step(next(trainer.dataloader_train))["loss"]) for _ in range(STEPS_PER_EPOCH)]
        trainer.current_epoch += 1
        yield trainer.current_epoch * STEPS_PER_EPOCH, sum(losses) / len(losses)


def drawn_patches(cases: list[str], count: int, seed: int) -> list[str]:
    """So many patches of the structure that is counted, another choice for each seed, the same for every arm."""
    candidates = [case for case in cases if case.startswith(LABELLED)]
    if len(candidates) < count:
        raise ValueError(f"{count} annotated patches were asked for, and there are {len(candidates)} of {LABELLED}")
    return sorted(random.Random(seed).sample(candidates, count))
