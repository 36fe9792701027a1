"""A simulated annotation loop: a strategy chooses cubes, their labels are revealed, a network is trained on them and measured, and so on.

The result file of a round holds the cubes of the next, so that a study that was interrupted goes on where it was.
"""

import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from functools import cache
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.annotation.brains import BUDGETS, DATASETS, Cube, cubes_of, write_dataset
from benchmarks.annotation.strategies import STRATEGIES, Situation
from benchmarks.pretraining.arms import BASELINE, Arm, arm_named, merged
from benchmarks.pretraining.measuring import measure, test_cases, training_cases
from benchmarks.pretraining.running import CONFIRMATION, STEPS_PER_EPOCH, Stage, Study, trained
from nnunet_selma.annotation.uncertainty import Answer, entropy
from nnunet_selma.networks.parts import bare
from nnunet_selma.recipes.recipes import run_length
from nnunet_selma.running.json_files import read_json, write_json

STEPS = 128
"""Steps of each training, from the same start in every round."""
OCTANTS = (0, 3, 5, 6)
"""Octants of the unseen cubes that are measured; no two share a face."""
PRETRAINING_SEED = 0
"""Seed of the one pretraining that all loops start from; a pretraining for each seed would take about as long as all loops."""
STARTS = {"random weights": BASELINE, "pretrained": "new default"}
"""Start of a network to the arm of the pretraining study that it is trained as."""
_AT_ONCE = 8
"""Cubes that a model predicts in one batch."""


@dataclass(frozen=True, kw_only=True)
class Loop(Arm):
    """A strategy, for one structure, with networks of one start."""

    structure: str
    strategy: str


def loop(structure: str, strategy: str, start: str) -> Loop:
    """A strategy for a structure, with networks of a start."""
    arm = arm_named(STARTS[start])
    return Loop(
        name=f"{strategy}, {start}",
        pretext=arm.pretext,
        changes=arm.changes,
        steps=arm.steps,
        structure=structure,
        strategy=strategy,
    )


@dataclass(frozen=True, kw_only=True)
class LoopStudy:
    """Loops on DELiVR; pretraining and test cubes are those of a stage of the pretraining study."""

    study: Study
    delivr: Path
    """DELiVR's annotated patches, as they are downloaded."""
    stage: Stage = CONFIRMATION
    steps: int = STEPS

    def cubes(self, structure: str) -> list[Cube]:
        """The candidates of a structure."""
        return _cubes(self.delivr, self.study.output / "brains", structure)

    def prepare(self, structure: str) -> None:
        """Convert, plan and preprocess the candidates, and what is pretrained on, once."""
        self.study.prepare(self.stage)
        done = self.study.output / f"prepared_{structure}.json"
        if not done.is_file():
            write_dataset(self.study.folders(self.stage), structure, self.cubes(structure))
            replace(self.study.challenge(self.stage).pipeline, annotated_id=DATASETS[structure]).plan("3d_fullres")
            write_json(done, {"structure": structure})

    def pretrain(self, stage: Stage, arm: Loop, seed: int) -> Path:
        """Pretrain what the loops of all seeds start from, unless it was; returns the checkpoint."""
        return self.study.pretrain(stage, arm, PRETRAINING_SEED)

    def result(self, arm: Loop, seed: int, budget: int) -> Path:
        """File of the result of one training."""
        name = f"{arm.name.replace(' ', '-').replace(',', '')}_{budget}_{seed}.json"
        return self.study.results / arm.structure / name

    def finetune(self, stage: Stage, arm: Loop, seed: int, _: None = None) -> None:
        """Run a loop from the first choice to the last training; rounds that were done are passed by."""
        cubes, budgets = self.cubes(arm.structure), BUDGETS[arm.structure]
        number = {cube.case: i for i, cube in enumerate(cubes)}
        taken: list[int] = []
        following = self._choose(cubes, arm, seed, 1, budgets[0], taken, None)
        for at, budget in enumerate(budgets, 1):
            taken = [*taken, *following]
            result = self.result(arm, seed, budget)
            if not result.is_file():
                more = budgets[at] - budget if at < len(budgets) else 0
                self._round(stage, arm, seed, at, cubes, taken, more, result)
            following = [number[case] for case in read_json(result)["next"]]

    def _choose(
        self, cubes: Sequence[Cube], arm: Loop, seed: int, at: int, count: int, taken: Sequence[int], trainer: Any
    ) -> list[int]:
        def scores(numbers: Sequence[int]) -> list[Mapping[str, float]]:
            return answers(trainer, [cubes[number] for number in numbers], arm.structure)

        situation = Situation(
            candidates=[cube.candidate for cube in cubes],
            foreground=[int(np.count_nonzero(cube.label)) for cube in cubes],
            taken=taken,
            scores=None if trainer is None else scores,
            round=at,
            seed=seed,
        )
        return STRATEGIES[arm.strategy](situation, count) if count else []

    def _round(
        self,
        stage: Stage,
        arm: Loop,
        seed: int,
        at: int,
        cubes: Sequence[Cube],
        taken: list[int],
        more: int,
        result: Path,
    ) -> None:
        """Train on the cubes that are taken, measure, choose the next ones, and write it all down."""
        started = time.monotonic()
        checkpoint = "none" if arm.pretext is None else str(self.pretrain(stage, arm, seed))
        length = run_length(self.steps // STEPS_PER_EPOCH, STEPS_PER_EPOCH) | {"seed": seed, "pretrained": checkpoint}
        trainer = self.study.trainer(
            stage,
            arm.finetuning,
            f"{arm.structure}_{result.stem}",
            DATASETS[arm.structure],
            merged(arm.settings, {"finetuning": length}),
        )
        keys = sorted(cubes[number].case for number in taken)
        trainer.do_split = lambda: (keys, keys)
        trainer.disable_checkpointing = True
        data = self.study.challenge(stage).data
        with redirect_stdout(StringIO()):
            trainer.initialize()
            trainer.on_train_start()
            cases = test_cases(data.images, data.references, trainer, OCTANTS)
            tested = [case for case in cases if case.structure == arm.structure]
            (*_, (steps, loss)) = trained(trainer)
            point = measure(trainer, tested, training_cases(trainer), topology=False)
        following = self._choose(cubes, arm, seed, at + 1, more, taken, trainer)
        result.parent.mkdir(parents=True, exist_ok=True)
        write_json(
            result,
            {
                "stage": "annotation",
                "arm": arm.name,
                "seed": seed,
                "labels": len(taken),
                "cubes": [cubes[number].case for number in taken],
                "foreground": float(np.mean([cubes[number].label.mean() for number in taken])),
                "next": [cubes[number].case for number in following],
                "seconds": round(time.monotonic() - started, 1),
                "points": [{"steps": steps, "training_loss": loss, **point}],
            },
        )
        shutil.rmtree(trainer.output_folder, ignore_errors=True)


@cache
def _cubes(delivr: Path, folder: Path, structure: str) -> list[Cube]:
    """Candidates of a structure, found once in a process."""
    with redirect_stdout(StringIO()):
        return cubes_of(delivr, folder, structure)


@torch.inference_mode()
def answers(trainer: Any, cubes: Sequence[Cube], structure: str) -> list[Mapping[str, float]]:
    """Entropy of each class in each cube, by the network of a trainer."""
    network = bare(trainer.network)
    network.eval()
    trainer.set_deep_supervision_enabled(False)
    scores: list[Mapping[str, float]] = []
    for first in range(0, len(cubes), _AT_ONCE):
        batch = torch.from_numpy(np.stack([cube.normalised[None] for cube in cubes[first : first + _AT_ONCE]]))
        probabilities = torch.softmax(network(batch.to(trainer.device)).float().cpu(), dim=1).numpy()
        for of_cube in probabilities:
            answer = Answer(of_cube.argmax(0).astype(np.uint8), entropy(of_cube, overlapping=False))
            scores.append(answer.scores({1: structure}))
    return scores
