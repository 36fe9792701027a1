"""How well a network segments the test cubes, with and without a fitted decision threshold.

Each octant is predicted in tiles of the patch size that lie side by side, over the largest box in its middle that they fill exactly: 96³
of 100³ voxels with tiles of 32³.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from sklearn.metrics import average_precision_score
from torch import Tensor

from nnunet_selma.evaluation.metrics.pair import Pair
from nnunet_selma.finetuning.calibration import Sample, fit
from nnunet_selma.networks.parts import bare
from nnunet_selma.volumes import open_volume
from nnunet_selma.volumes.base import Array

_CALIBRATION_CASES = 5
_TILES_AT_ONCE = 9


@dataclass(frozen=True)
class Case:
    """A preprocessed image and its truth."""

    name: str
    image: Array
    """(channel, z, y, x), normalised as the plans say."""
    truth: Array
    """(z, y, x), 0 and 1."""

    @property
    def structure(self) -> str:
        """The prefix of the name, as in cfos_neuron."""
        return "_".join(word for word in self.name.split("_") if not word.isdigit())

    @property
    def cube(self) -> str:
        """The name without the number of the octant."""
        return self.name.rpartition("_")[0]


def test_cases(images: Path, references: Path, trainer: Any, octants: Sequence[int]) -> list[Case]:
    """The test cases of some octants, preprocessed with the trainer's plans by nnU-Net; those without any foreground are left out."""
    preprocessor = trainer.configuration_manager.preprocessor_class(verbose=False)
    cases = []
    for path in sorted(references.glob("*.nii.gz")):
        if int(path.name.removesuffix(".nii.gz").rpartition("_")[2]) not in octants:
            continue
        truth = open_volume(path).read() > 0
        name = path.name.removesuffix(".nii.gz")
        image, _, _ = preprocessor.run_case(
            [str(images / f"{name}_0000.nii.gz")],
            None,
            trainer.plans_manager,
            trainer.configuration_manager,
            trainer.dataset_json,
        )
        if image.shape[1:] != truth.shape:
            raise ValueError(f"{name}: preprocessing changed the shape from {truth.shape} to {image.shape[1:]}")
        if truth.any():
            cases.append(Case(name, np.asarray(image), truth))
    return cases


def training_cases(trainer: Any) -> list[Case]:
    """Some of the cases that the trainer trains on, without augmentation; evenly spread over the names."""
    keys = sorted(trainer.do_split()[0])
    chosen = [
        keys[number] for number in np.unique(np.linspace(0, len(keys) - 1, _CALIBRATION_CASES).round().astype(int))
    ]
    dataset = trainer.dataset_class(trainer.preprocessed_dataset_folder, chosen)
    cases = []
    for key in chosen:
        image, labels, _, _ = dataset.load_case(key)
        cases.append(Case(key, np.asarray(image), np.asarray(labels)[0] > 0))
    return cases


@torch.inference_mode()
def logit_difference(trainer: Any, image: Array) -> Tensor:
    """Logit of foreground minus that of background, (z, y, x), of an image (channel, z, y, x) in tiles of the patch size."""
    network = bare(trainer.network)

    def difference(tiles: Tensor) -> Tensor:
        logits: Tensor = network(tiles.to(trainer.device)).float().cpu()
        return logits[:, 1] - logits[:, 0]

    return in_tiles(difference, image, trainer.configuration_manager.patch_size)


def in_tiles(predict: Callable[[Tensor], Tensor], image: Array, patch: Sequence[int]) -> Tensor:
    """Predictions of tiles (tile, channel, *patch) that lie side by side, put together, (z, y, x).

    Tiles are predicted in batches: alone, each would take PyTorch four times as long on a CPU.
    """
    box = torch.from_numpy(np.ascontiguousarray(image[(slice(None), *middle(image.shape[1:], patch))]))
    grid = [edge // size for edge, size in zip(box.shape[1:], patch, strict=True)]
    tiles = rearrange(box, "c (i z) (j y) (k x) -> (i j k) c z y x", z=patch[0], y=patch[1], x=patch[2])
    predicted = torch.cat([predict(batch) for batch in torch.split(tiles, _TILES_AT_ONCE)])
    whole: Tensor = rearrange(predicted, "(i j k) z y x -> (i z) (j y) (k x)", i=grid[0], j=grid[1])
    return whole


def middle(shape: Sequence[int], patch: int | Sequence[int]) -> tuple[slice, ...]:
    """The largest box in the middle of a volume whose edges are multiples of a patch's."""
    sizes = [patch] * len(shape) if isinstance(patch, int) else patch
    lengths = [edge // size * size or edge for edge, size in zip(shape, sizes, strict=True)]
    starts = [(edge - length) // 2 for edge, length in zip(shape, lengths, strict=True)]
    return tuple(slice(start, start + length) for start, length in zip(starts, lengths, strict=True))


def measure(trainer: Any, tested: Sequence[Case], fitted: Sequence[Case], *, topology: bool) -> dict[str, Any]:
    """One point of a curve: the offset that training cases ask for, and the numbers of each test case.

    Args:
        trainer: whose network is measured; it is left in training mode.
        tested: test cases.
        fitted: training cases on which the threshold is fitted.
        topology: whether clDice and Betti errors are computed too.
    """
    patch = trainer.configuration_manager.patch_size
    trainer.network.eval()
    trainer.set_deep_supervision_enabled(False)
    samples = []
    for case in fitted:
        difference = logit_difference(trainer, case.image).flatten()
        labels = torch.from_numpy(case.truth[middle(case.truth.shape, patch)].astype(np.int64)).flatten()
        samples.append(Sample(case.name, torch.stack([torch.zeros_like(difference), difference]), labels))
    offset = fit(samples).offsets[1]
    cases = {}
    for case in tested:
        truth = case.truth[middle(case.truth.shape, patch)]
        if truth.any():
            scores = _numbers(logit_difference(trainer, case.image).numpy(), truth, offset, topology=topology)
            cases[case.name] = {"structure": case.structure, "cube": case.cube, **scores}
    trainer.set_deep_supervision_enabled(trainer.enable_deep_supervision)
    trainer.network.train()
    return {"offset": offset, "cases": cases}


def _numbers(difference: Array, truth: Array, offset: float, *, topology: bool) -> Mapping[str, float | None]:
    marked, calibrated = difference > 0, difference + offset > 0
    scores: dict[str, float | None] = dict.fromkeys(("cldice", "betti_0", "betti_1"))
    if topology:
        pair = Pair(calibrated, truth)
        predicted, true = pair.betti
        cldice = pair.centrelines.cldice_2026
        scores = {
            "cldice": None if np.isnan(cldice) else cldice,
            "betti_0": float(abs(predicted[0] - true[0])),
            "betti_1": float(abs(predicted[1] - true[1])),
        }
    return {
        "average_precision": float(average_precision_score(truth.ravel(), difference.ravel())),
        "dice": _dice(marked, truth),
        "dice_calibrated": _dice(calibrated, truth),
        "predicted_over_true": float(marked.sum() / truth.sum()),
        **scores,
    }


def _dice(mask: Array, truth: Array) -> float:
    return float(2 * np.count_nonzero(mask & truth) / (np.count_nonzero(mask) + np.count_nonzero(truth)))
