"""Entropy of a model's prediction, and its labels: from files of `predict-volume`, or computed on boxes alone."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import nibabel
import numpy as np
import torch
from numpy.typing import NDArray

from nnunet_selma.annotation.brains import Brain
from nnunet_selma.annotation.choosing import BACKGROUND
from nnunet_selma.annotation.layout import NOT_ANNOTATED
from nnunet_selma.errors import SelmaError, counted
from nnunet_selma.morphology.blocks import Box
from nnunet_selma.prediction.grids import BlockWork, Grids, make_grids, network_axes, spacing_in_plans
from nnunet_selma.prediction.intensities import (
    Intensities,
    Normalisation,
    configured_normalisation,
    join_parts,
)
from nnunet_selma.prediction.model import Model, ModelSettings, Window, all_finite
from nnunet_selma.prediction.resampling import Limits
from nnunet_selma.prediction.tiling import lengths, within
from nnunet_selma.running.cores import compute_threads
from nnunet_selma.running.json_files import read_json
from nnunet_selma.volumes import Volume, inventory, open_volume
from nnunet_selma.volumes.base import Array, ShapeZYX, by_times
from nnunet_selma.volumes.nifti import is_nifti
from nnunet_selma.volumes.segmented import class_names, label_image, open_labels

_SAMPLED_SLICES = 32
"""Slices of a brain whose intensities stand for all, in models that normalise an image by its mean and deviation."""
_ENDING = re.compile(r"_probabilities\.ome\.zarr$")


@dataclass(frozen=True)
class Answer:
    """The prediction of a box."""

    labels: NDArray[np.uint8]
    """Predicted class of each voxel, (z, y, x)."""
    entropy: NDArray[np.float32]
    """Entropy of each voxel's probabilities, nats, (z, y, x); for classes that may overlap the mean over the classes."""

    def scores(self, classes: Mapping[int, str]) -> dict[str, float]:
        """Entropy of the voxels predicted as each class and as background, per voxel of the box."""
        values = {**classes, 0: BACKGROUND}
        return {
            name: float(np.sum(self.entropy, where=self.labels == value, dtype=np.float64)) / self.entropy.size
            for value, name in values.items()
        }


class Prediction(Protocol):
    """A source of predictions."""

    fingerprint: str | None
    """Hash of the model; None where the files do not tell."""

    def classes(self, brain: Brain) -> Mapping[int, str]:
        """Value to name of each class but background."""

    def answers(self, brain: Brain, boxes: Sequence[Box]) -> Iterator[tuple[int, Answer]]:
        """Yield the number of each box and its prediction, in any order."""


def entropy(probabilities: NDArray[np.float32], *, overlapping: bool) -> NDArray[np.float32]:
    """Entropy in nats of probabilities (class, …): of all classes, which add up to 1, or the mean over classes that may overlap."""
    terms = _surprise(probabilities).sum(axis=0)
    if overlapping:
        terms = (terms + _surprise(1 - probabilities).sum(axis=0)) / len(probabilities)
    return np.asarray(terms, np.float32)


def _surprise(probabilities: NDArray[np.float32]) -> NDArray[np.float32]:
    """-p log p, 0 at 0."""
    return np.asarray(-probabilities * np.log(np.maximum(probabilities, np.finfo(np.float32).tiny)), np.float32)


class StoredPrediction:
    """Predictions that `predict-volume --probabilities` has written.

    Args:
        files: for each brain, by its name, `OUT_probabilities.ome.zarr`; `OUT.ome.zarr` with the labels lies beside it.

    Raises:
        SelmaError: a file cannot be opened, the labels are missing, or the models differ.
    """

    def __init__(self, files: Mapping[str, Path]) -> None:
        self._files = dict(files)
        models = {self._model(path) for path in self._files.values()}
        if len(models) > 1:
            raise SelmaError(
                f"{', '.join(map(str, self._files.values()))}: were predicted by different models; predict all brains with one"
            )
        (self.fingerprint,) = models

    def _stem(self, path: Path) -> str:
        """`OUT` of `OUT_probabilities.ome.zarr`."""
        stem, renamed = _ENDING.subn("", path.resolve().name)
        if not renamed:
            raise SelmaError(f"{path}: is not named as predict-volume --probabilities does, OUT_probabilities.ome.zarr")
        return stem

    def _labels(self, path: Path) -> Path:
        """Label image that belongs to probabilities."""
        stem, folder = self._stem(path), path.resolve().parent
        for name in (f"{stem}.ome.zarr", f"{stem}.zarr", stem):
            if (folder / name).is_dir() and (image := label_image(folder / name)) is not None:
                return image
        raise SelmaError(
            f"{path}: {stem}.ome.zarr with the labels is not beside it; keep what predict-volume writes together"
        )

    def _model(self, path: Path) -> str | None:
        record = path.resolve().parent / f"{self._stem(path)}_{self._labels(path).name}.json"
        if not record.is_file():
            return None
        model = read_json(record).get("facts", {}).get("model")
        return None if model is None else str(model)

    def classes(self, brain: Brain) -> Mapping[int, str]:
        """Value to name of each class but background."""
        path = self._files[brain.name]
        names = class_names(self._labels(path))
        count = inventory(path).channels
        return {value: name for value, name in names.items() if value} or {
            i + 1: f"class {i + 1}" for i in range(count)
        }

    @lru_cache(maxsize=2)  # noqa: B019  a prediction lives as long as the command
    def _opened(self, path: Path, shape: ShapeZYX) -> tuple[list[Volume], Volume]:
        count = inventory(path).channels
        volumes = [open_volume(path, channel=channel if count > 1 else None) for channel in range(count)]
        labels = open_labels(self._labels(path))
        for volume in (volumes[0], labels):
            if volume.shape != shape:
                raise SelmaError(
                    f"{volume.path}: has {by_times(volume.shape)} voxels (z, y, x), the brain {by_times(shape)}; give what was predicted from it"
                )
        return volumes, labels

    def answers(self, brain: Brain, boxes: Sequence[Box]) -> Iterator[tuple[int, Answer]]:
        """Yield the number of each box and its prediction, read from the files.

        Classes may overlap in all boxes if they do so in any, so that the scores of boxes can be compared.
        """
        volumes, labels = self._opened(self._files[brain.name], brain.shape)
        # probabilities of classes that exclude each other add up to 255 and the rounding of each
        most = 255 + len(volumes)
        overlapping = any(bool((_stored(volumes, box).sum(axis=0) > most).any()) for box in boxes)
        for number, box in enumerate(boxes):
            stored = _stored(volumes, box)
            if not overlapping:
                stored = np.concatenate([np.maximum(0, 255 - stored.sum(axis=0))[None], stored])
            probabilities = (stored / np.float32(255)).astype(np.float32)
            values = labels.read(*box)
            _check_values(int(values.max(initial=0)), brain.path)
            yield number, Answer(values.astype(np.uint8), entropy(probabilities, overlapping=overlapping))


def _stored(volumes: Sequence[Volume], box: Box) -> NDArray[np.int32]:
    """Probabilities of a box in 1/255, (class, z, y, x)."""
    return np.stack([volume.read(*box) for volume in volumes]).astype(np.int32)


class ModelPrediction:
    """Predictions of a model, computed on boxes alone with nnU-Net's sliding window inside each.

    A box is extended to the model's patch where it is smaller, and is resampled by itself. Models that normalise an image by its mean and
    deviation get those of some slices, spread evenly over the brain. `predict-volume`, which sees all of the brain, differs by that, and by
    its tiles.

    Args:
        settings: settings of the model.
        device: as PyTorch names it.

    Raises:
        SelmaError: the model cannot be loaded.
    """

    def __init__(self, settings: ModelSettings, device: str) -> None:
        self._settings, self._device = settings, device
        settings.check_complete()
        self.fingerprint: str | None = settings.fingerprint()

    @cached_property
    def _model(self) -> Model:
        return Model(self._settings, self._device)

    def classes(self, brain: Brain) -> Mapping[int, str]:
        """Value to name of each class but background."""
        classes = self._model.classes
        _check_values(max(classes), self._settings.folder)
        return classes

    def answers(self, brain: Brain, boxes: Sequence[Box]) -> Iterator[tuple[int, Answer]]:
        """Yield the number of each box and its prediction."""
        if len(brain.channels) != len(self._model.channels):
            raise SelmaError(
                f"{brain.path}: the model was trained on {counted(len(self._model.channels), 'channel')}, and "
                f"{counted(len(brain.channels), 'channel')} came; choose them with --channel, in the model's order"
            )
        normalisation = self._normalisation(brain)
        around = [self._around(brain, box) for box in boxes]
        for number, voxels in brain.read_boxes(around):
            yield number, self._predict(brain, voxels, within(boxes[number], around[number]), normalisation)

    @lru_cache(maxsize=2)  # noqa: B019  a prediction lives as long as the command
    def _normalisation(self, brain: Brain) -> Normalisation:
        planes = np.unique(np.linspace(0, brain.shape[0] - 1, _SAMPLED_SLICES).astype(int))
        everything = slice(0, brain.shape[1]), slice(0, brain.shape[2])
        parts = (Intensities.measure(brain.read((slice(z, z + 1), *everything))) for z in planes.tolist())
        return configured_normalisation(
            self._model.configuration, self._model.intensity_properties, join_parts(parts, 0)
        )

    def _turn(self, brain: Brain) -> tuple[tuple[int, int, int], tuple[bool, bool, bool]]:
        """Axis of the brain that becomes each network axis, and whether the brain's axes are flipped, as in `predict-volume`."""
        path = brain.first.path
        return network_axes(self._model.plans, nibabel.load(path).affine if is_nifti(path) else brain.first.affine)

    def _grids(self, brain: Brain, shape: ShapeZYX) -> Grids:
        z, y, x = (slice(0, length) for length in shape)
        spacing = spacing_in_plans(brain.spacing_um_zyx, self._model.plans)
        model = self._model
        return make_grids(
            model.configuration, *self._turn(brain), (z, y, x), spacing, model.tile, model.settings.step_size
        )

    def _around(self, brain: Brain, box: Box) -> Box:
        """The box, extended to the model's patch as far as the brain goes."""
        transpose, _ = self._turn(brain)
        scale = self._grids(brain, brain.shape).scale
        bounds = []
        for axis, (b, length) in enumerate(zip(box, brain.shape, strict=True)):
            patch = int(np.ceil(self._model.tile[transpose.index(axis)] / scale[axis]))
            edge = min(length, max(patch, b.stop - b.start))
            start = min(max(0, b.start - (edge - (b.stop - b.start)) // 2), length - edge)
            bounds.append(slice(start, start + edge))
        z, y, x = bounds
        return z, y, x

    def _predict(self, brain: Brain, voxels: Array, box: Box, normalisation: Normalisation) -> Answer:
        """The prediction of a box within voxels (c, z, y, x) that are read around it."""
        model = self._model
        shape: ShapeZYX = voxels.shape[1:]  # type: ignore[assignment]
        grids = self._grids(brain, shape)
        column = grids.column(box)
        assert column is not None
        work = grids.work(column, box)
        assert work is not None
        image = normalisation.apply(grids.array_to_network(voxels))
        planes = slice(work.layers[0].planes.start, work.layers[-1].planes.stop)
        window = Window((planes, *column.across), torch.zeros((len(voxels), *lengths((planes, *column.across)))))
        seen = grids.image_box(column, planes)
        needed = grids.forward.needed(seen)
        apart = grids.forward.across
        axes = tuple(axis + 1 for axis in range(3) if axis != apart)
        limits = Limits(*(f(image, axis=axes).reshape(len(image), -1) for f in (np.min, np.max)))
        resampled = grids.forward.apply(image[(slice(None), *needed)], seen, limits, threads=compute_threads())
        window.voxels[(slice(None), *within(seen, window.box))] = torch.from_numpy(np.ascontiguousarray(resampled))
        logits = self._logits(work, window)
        if grids.backward.changes:
            logits = torch.from_numpy(grids.backward.apply(logits.numpy(), work.result, threads=compute_threads()))
        return Answer(
            np.ascontiguousarray(grids.array_to_volume(model.labels(logits).numpy()).astype(np.uint8)),
            np.ascontiguousarray(grids.array_to_volume(self._entropy(logits))),
        )

    def _logits(self, work: BlockWork, window: Window) -> torch.Tensor:
        """Logits of a box, (head, z, y, x), network axes, resampled; summed up in half precision as by nnU-Net where that is enough."""
        first, second, third = work.logits
        planes = window.box[0]
        summed = (slice(min(first.start, planes.start), max(first.stop, planes.stop)), second, third)
        for half in (True, False):
            sums = self._model.empty_sums(summed, half=half)
            self._model.add_tiles(sums, work.layers, window, batch=self._model.batch, half=half)
            parts = list(sums.means(work.logits))
            if all(map(all_finite, parts)):
                return torch.cat([part.cpu() for part in parts], dim=1).float()
        raise SelmaError(f"{self._settings.folder}: the network computes NaN or infinite numbers; train again")

    def _entropy(self, logits: torch.Tensor) -> NDArray[np.float32]:
        overlapping = self._model.has_regions
        probabilities = torch.sigmoid(logits) if overlapping else torch.softmax(logits, 0)
        return entropy(probabilities.numpy(), overlapping=overlapping)


def _check_values(highest: int, path: Path) -> None:
    if highest >= NOT_ANNOTATED:
        raise SelmaError(
            f"{path}: has a class {highest}; in labels that are handed over, {NOT_ANNOTATED} means not annotated"
        )


def first_answer(prediction: Prediction, brain: Brain, box: Box) -> Answer:
    """The prediction of a single box."""
    ((_, answer),) = islice(prediction.answers(brain, [box]), 1)
    return answer


def measured(prediction: Prediction, brain: Brain, boxes: Sequence[Box]) -> Iterator[tuple[int, dict[str, float]]]:
    """Yield the number of each box, and the score of each class."""
    classes: Any = prediction.classes(brain)
    for number, answer in prediction.answers(brain, boxes):
        yield number, answer.scores(classes)
