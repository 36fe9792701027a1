"""How well a pretext's own answer, an intensity, tells structures from their surroundings before any label is seen."""

from collections.abc import Sequence
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.metrics import average_precision_score

from benchmarks.pretraining.arms import Arm, merged
from benchmarks.pretraining.measuring import Case, in_tiles, middle, test_cases
from benchmarks.pretraining.running import Stage, Study
from nnunet_selma.networks.parts import bare
from nnunet_selma.nnunet.pipeline import ANNOTATED, UNLABELLED
from nnunet_selma.pretraining.inpainting import standardised
from nnunet_selma.recipes.recipes import run_length


def answers(study: Study, stage: Stage, arms: Sequence[Arm], seeds: Sequence[int]) -> dict[str, dict[str, float]]:
    """Average precision of the answers of finished pretrainings, mean over octants and seeds: arm to cube to value; and of raw intensities."""
    plain = merged(arms[0].settings, {"finetuning": {**run_length(1, 1), "pretrained": "none"}})
    fine_tuned = study.trainer(stage, "SelmaFinetuneTrainer", "answers", ANNOTATED, plain)
    data = study.challenge(stage).data
    cases = test_cases(data.images, data.references, fine_tuned, stage.octants)
    values = {"intensity of the image": by_cube(cases, [case.image[0][middle(case.truth.shape, 32)] for case in cases])}
    for arm in arms:
        runs = [_answered(study, stage, arm, seed, cases) for seed in seeds]
        values[arm.name] = {cube: float(np.mean([run[cube] for run in runs])) for cube in runs[0]}
    return values


@torch.inference_mode()
def _answered(study: Study, stage: Stage, arm: Arm, seed: int, cases: Sequence[Case]) -> dict[str, float]:
    checkpoint = study.pretrain(stage, arm, seed)
    length = run_length(1, 1) | {"seed": seed}
    with redirect_stdout(StringIO()):
        trainer = study.trainer(
            stage,
            str(arm.pretext),
            arm.pretraining_name(seed),
            UNLABELLED,
            merged(arm.settings, {"pretraining": length}),
        )
        trainer.initialize()
    network = bare(trainer.network)
    network.load_state_dict(torch.load(checkpoint, weights_only=False)["network_weights"])
    network.eval()

    def answer(tiles: torch.Tensor) -> torch.Tensor:
        if arm.settings["inpainting"]["standardise"]:
            tiles = standardised(tiles, torch.ones_like(tiles, dtype=torch.bool))
        result: torch.Tensor = network(tiles.to(trainer.device)).float().cpu()
        return result[:, 0]

    return by_cube(cases, [in_tiles(answer, case.image, (32, 32, 32)).numpy() for case in cases])


def by_cube(cases: Sequence[Case], scores: Sequence[Any]) -> dict[str, float]:
    """Average precision of scores (z, y, x) against the truth in the middle of each case, mean over the octants of a cube."""
    by_name: dict[str, list[float]] = {}
    for case, score in zip(cases, scores, strict=True):
        truth = case.truth[middle(case.truth.shape, 32)]
        if truth.any():
            by_name.setdefault(case.cube, []).append(
                float(average_precision_score(truth.ravel(), np.asarray(score).ravel()))
            )
    return {cube: float(np.mean(values)) for cube, values in by_name.items()}


def write_answers(study: Study, stage: Stage, arms: Sequence[Arm], seeds: Sequence[int]) -> Path:
    """Write what `answers` gives beside the results; returns the file."""
    from nnunet_selma.running.json_files import write_json

    path = study.results / f"answers_{stage.name}.json"
    write_json(path, answers(study, stage, arms, seeds))
    return path
