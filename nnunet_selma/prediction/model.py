"""A trained nnU-Net, and the logits of a box, computed tile by tile as nnU-Net computes those of a whole volume."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from functools import cached_property
from io import StringIO
from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from nnunetv2.utilities.helpers import empty_cache

from nnunet_selma.errors import SelmaError
from nnunet_selma.morphology.blocks import Box
from nnunet_selma.nnunet.checkpoints import check_finite
from nnunet_selma.nnunet.folders import TRAINER_FOLDER
from nnunet_selma.prediction.grids import BoxWork
from nnunet_selma.prediction.model_folder import check_model_folder
from nnunet_selma.prediction.plan_entries import check_entries
from nnunet_selma.prediction.tiling import intersection, lengths, within
from nnunet_selma.running.json_files import read_json
from nnunet_selma.volumes.base import Array, ShapeZYX

_MOST_BATCH = 16
"""Largest number of tiles that go through the network together."""
_TRAINERS = "nnUNet_extTrainer"
"""The variable that tells nnU-Net where to search for trainers."""
_IN_PLANS = (
    "configurations",
    "transpose_forward",
    "transpose_backward",
    "original_median_spacing_after_transp",
)
_INTENSITIES = ("foreground_intensity_properties_per_channel", "foreground_intensity_properties_by_modality")
"""Names of one entry, the second in older plans."""
_IN_CONFIGURATION = (
    "patch_size",
    "spacing",
    "normalization_schemes",
    "use_mask_for_norm",
    "architecture",
    *(f"resampling_fn_{kind}{options}" for kind in ("data", "probabilities") for options in ("", "_kwargs")),
)


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """A trained model, and options of its prediction."""

    folder: Path
    """Folder with plans.json, dataset.json and the fold folders."""
    folds: tuple[str, ...]
    """Folds whose logits are averaged."""
    checkpoint: str = "checkpoint_final.pth"
    """File of the weights in the folder of a fold."""
    mirroring: bool = False
    """Predict each tile mirrored too, as nnUNetv2_predict does by default, which takes eight times as long."""
    step_size: float = 0.5
    """Step of the sliding window, in patches."""

    @property
    def _files(self) -> list[str]:
        return ["plans.json", "dataset.json", *(f"fold_{fold}/{self.checkpoint}" for fold in self.folds)]

    def check_complete(self) -> None:
        """Raise `SelmaError` if a file of the model is missing, or the step size is not above 0 and at most 1."""
        check_model_folder(self.folder, self.folds, self.checkpoint)
        if not 0 < self.step_size <= 1:
            raise SelmaError(f"-step_size {self.step_size}: a step is above 0 and at most 1 patch")

    def checkpoint_of(self, fold: str) -> Path:
        """Path of a fold's weights."""
        return self.folder / f"fold_{fold}" / self.checkpoint

    def check_finite(self) -> None:
        """Raise `SelmaError` if a fold has weights that are NaN or infinite."""
        for path in map(self.checkpoint_of, self.folds):
            try:
                # as nnU-Net reads it
                weights = torch.load(path, map_location="cpu", weights_only=False)["network_weights"]
            except (EOFError, UnpicklingError, OSError, BadZipFile, RuntimeError, KeyError, TypeError) as error:
                raise SelmaError(
                    f"{path}: cannot be read ({type(error).__name__}: {error}); it is no checkpoint of nnU-Net, or was cut short: copy it again"
                ) from error
            check_finite(weights, str(path))

    def fingerprint(self) -> str:
        """Hash of the plans, the dataset's description and the weights, which distinguishes this model from others."""
        digest = hashlib.sha256()
        for name in self._files:
            with (self.folder / name).open("rb") as file:
                while part := file.read(2**22):
                    digest.update(part)
        return digest.hexdigest()[:16]


@contextmanager
def _trainers_registered() -> Iterator[None]:
    """Let nnU-Net find the trainers of this package, which a checkpoint may name; on a cluster's workers the variable is not set."""
    before = os.environ.get(_TRAINERS)
    os.environ[_TRAINERS] = before or str(TRAINER_FOLDER)
    try:
        yield
    finally:
        if before is None:
            del os.environ[_TRAINERS]


class Model:
    """A network with the weights of its folds, and its plans.

    Args:
        settings: settings of the model.
        device: as PyTorch names it.

    Raises:
        SelmaError: the folder is incomplete, its plans are of another nnU-Net, or it is the second stage of a cascade.
    """

    def __init__(self, settings: ModelSettings, device: str) -> None:
        settings.check_complete()
        self.settings = settings
        plans = read_json(settings.folder / "plans.json")
        lacking = [name for name in _IN_PLANS if name not in plans]
        if not any(name in plans for name in _INTENSITIES):
            lacking.append(_INTENSITIES[0])
        if lacking:
            raise SelmaError(
                f"{settings.folder / 'plans.json'}: are no plans of nnU-Net v2, without {', '.join(lacking)}; models of version 1 have to be trained "
                "again"
            )
        self.plans = plans
        check_entries("plans.json", plans, settings.folder / "plans.json")
        self._predictor = self._load(settings)
        self.configuration: dict[str, Any] = self._predictor.configuration_manager.configuration
        check_entries("configuration", self.configuration, settings.folder / "plans.json")
        lacking = [name for name in _IN_CONFIGURATION if name not in self.configuration]
        if lacking:
            raise SelmaError(
                f"{settings.folder / 'plans.json'}: are plans of another version of nnU-Net, without {', '.join(lacking)}; train the model with this "
                "version, or predict with the one that trained it"
            )
        self.intensity_properties: dict[str, Any] = next(plans[name] for name in _INTENSITIES if name in plans)
        self.transpose: tuple[int, int, int] = tuple(plans["transpose_forward"])
        self.to(device)

    def _load(self, settings: ModelSettings) -> Any:
        from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

        with redirect_stdout(StringIO()):  # nnU-Net prints that a CPU is no GPU
            predictor = nnUNetPredictor(
                tile_step_size=settings.step_size,
                use_mirroring=settings.mirroring,
                device=torch.device("cpu"),
                allow_tqdm=False,
                perform_everything_on_device=False,
            )
        try:
            with _trainers_registered():
                predictor.initialize_from_trained_model_folder(
                    str(settings.folder), settings.folds, settings.checkpoint
                )
        except (EOFError, UnpicklingError, OSError, BadZipFile) as error:
            raise SelmaError(
                f"{settings.folder}: {settings.checkpoint} of fold {', '.join(settings.folds)} cannot be read ({type(error).__name__}: {error}); "
                "it is no checkpoint, or was cut short: copy it again"
            ) from error
        except (KeyError, AttributeError, RuntimeError, AssertionError, TypeError, ValueError, ImportError) as error:
            raise SelmaError(
                f"{settings.folder}: this nnU-Net cannot build the model ({type(error).__name__}: {error}); train it with this version, or "
                "predict with the one that trained it"
            ) from error
        for fold, weights in zip(settings.folds, predictor.list_of_parameters, strict=True):
            check_finite(weights, str(settings.checkpoint_of(fold)))
        return predictor

    def to(self, device: str) -> "Model":
        """This model, moved to a device; raises `SelmaError` if the device cannot take it."""
        self.device = torch.device(device)
        for name in ("_weight", "batch"):
            self.__dict__.pop(name, None)  # those of the device before
        if self.device.type == "cuda":
            torch.backends.cudnn.benchmark = True  # as in nnU-Net
        try:
            self._predictor.network = self._predictor.network.to(self.device).eval()
        except (RuntimeError, AssertionError) as error:  # the latter from a PyTorch without CUDA
            raise SelmaError(f"--device {self.device}: cannot take the model here ({error}); choose another") from error
        return self

    @property
    def channels(self) -> tuple[str, ...]:
        """Names of the image channels."""
        description = self._predictor.dataset_json
        return tuple((description.get("modality") or description["channel_names"]).values())

    @property
    def classes(self) -> dict[int, str]:
        """Name of each value in the segmentation but background, in the order of the network's heads."""
        manager, labels = self._predictor.label_manager, self._predictor.dataset_json["labels"]
        if manager.has_regions:
            names = [name for name in labels if name not in ("background", "ignore")]
            return dict(zip((int(value) for value in manager.regions_class_order), names, strict=True))
        name_of = {int(np.ravel(value)[0]): name for name, value in labels.items()}
        return {int(value): name_of[int(value)] for value in manager.foreground_labels}  # in the order of the heads

    @property
    def heads(self) -> int:
        """Output channels of the network."""
        return int(self._predictor.label_manager.num_segmentation_heads)

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights of one fold."""
        return sum(weight.numel() * weight.element_size() for weight in self._predictor.network.state_dict().values())

    @property
    def label_dtype(self) -> np.dtype[Any]:
        """Type of the labels, the one in which nnU-Net writes segmentations."""
        return np.dtype(np.uint8 if len(self._predictor.label_manager.foreground_labels) < 255 else np.uint16)

    @property
    def patch(self) -> tuple[int, ...]:
        """The patch of the plans, two or three axes."""
        return tuple(self.configuration["patch_size"])

    @property
    def tile(self) -> ShapeZYX:
        """The patch as a tile of a volume, nnU-Net's axes: one plane thick for 2D plans."""
        z, y, x = self.patch if len(self.patch) == 3 else (1, *self.patch)
        return z, y, x

    @cached_property
    def _weight(self) -> torch.Tensor:
        from nnunetv2.inference.sliding_window_prediction import compute_gaussian

        # on the CPU first: nnU-Net keeps the last two in a cache that other code may have filled for other devices
        gaussian: torch.Tensor = compute_gaussian(
            self.patch, sigma_scale=1.0 / 8, value_scaling_factor=10, device=torch.device("cpu")
        )
        return gaussian.reshape(self.tile).to(self.device)

    @torch.inference_mode()
    def logits(self, image: torch.Tensor, work: BoxWork, batch: int) -> torch.Tensor:
        """Logits of the box `work.logits`, (head, z, y, x): the weighted mean of the logits of tiles, and the mean over the folds.

        Sums are in half precision and in nnU-Net's order, so that they are equal to nnU-Net's. Voxels that no tile covers are 0.

        Args:
            image: normalised voxels of `work.around`, (c, z, y, x).
            work: boxes on the network's grid.
            batch: tiles that go through the network together.

        Raises:
            SelmaError: logits are NaN or infinite, or a tile does not fit into the device's memory.
        """
        folds = self._predictor.list_of_parameters
        if len(folds) == 1:  # its weights are in the network since it was built
            return self._logits_of_fold(image, work, batch)
        network = getattr(self._predictor.network, "_orig_mod", self._predictor.network)
        total: torch.Tensor | None = None
        for weights in folds:
            network.load_state_dict(weights)
            logits = self._logits_of_fold(image, work, batch)
            total = logits if total is None else total.add_(logits)
        assert total is not None
        return total.div_(len(folds))

    def _logits_of_fold(self, image: torch.Tensor, work: BoxWork, batch: int) -> torch.Tensor:
        """Logits of the loaded fold, on the CPU; if a GPU is full, sums are kept on the CPU and tiles predicted one by one, as in nnU-Net."""
        if self.device.type == "cpu":
            return self._weighted_mean(image, work, batch, self.device)
        where = self.device if self._fits(lengths(work.logits)) else torch.device("cpu")
        try:
            return self._weighted_mean(image, work, batch, where).cpu()
        except RuntimeError:  # as in nnU-Net: cuDNN and cuBLAS have errors of their own for memory that runs out
            empty_cache(self.device)
        try:
            return self._weighted_mean(image, work, 1, torch.device("cpu"))
        except RuntimeError as error:
            raise SelmaError(
                f"{self.settings.folder}: one tile of this model could not be computed on {self.device}, most likely for want of its memory "
                f"({str(error).partition(chr(10))[0]}); take --device cpu"
            ) from error

    def _weighted_mean(self, image: torch.Tensor, work: BoxWork, batch: int, where: torch.device) -> torch.Tensor:
        """Weighted mean of the logits of tiles, with sums on the device `where`."""
        shape = lengths(work.logits)
        total = torch.zeros((self.heads, *shape), dtype=torch.half, device=where)
        count = torch.zeros(shape, dtype=torch.half, device=where)
        weight = self._weight.to(where)
        with torch.autocast("cuda", enabled=self.device.type == "cuda"):
            for first in range(0, len(work.tiles), batch):
                together = work.tiles[first : first + batch]
                for tile, prediction in zip(together, self._predict(image, work.around, together), strict=True):
                    weighted = prediction.to(where)
                    weighted *= weight
                    shared = intersection(tile, work.logits)
                    in_box, in_tile = within(shared, work.logits), within(shared, tile)
                    total[(slice(None), *in_box)] += weighted[(slice(None), *in_tile)]
                    count[in_box] += weight[in_tile]
        count[count == 0] = 1
        total /= count
        if not all(bool(torch.isfinite(plane).all()) for plane in total.unbind(1)):
            raise SelmaError(
                f"{self.settings.folder}: the network computes NaN or infinite numbers, as it does after a training that diverged; train again"
            )
        return total

    def _predict(self, image: torch.Tensor, around: Box, tiles: Sequence[Box]) -> torch.Tensor:
        """Logits of tiles, (tile, head, z, y, x)."""
        patches = torch.stack([image[(slice(None), *within(tile, around))] for tile in tiles])
        patches = patches.reshape(len(tiles), -1, *self.patch).to(self.device, non_blocking=True)
        prediction: torch.Tensor = self._predictor._internal_maybe_mirror_and_predict(patches)
        return prediction.reshape(len(tiles), -1, *self.tile)

    def _fits(self, shape: Sequence[int]) -> bool:
        """True if the sums over a box fit into half of the device's free memory."""
        if self.device.type != "cuda":
            return False
        free, _ = torch.cuda.mem_get_info(self.device)
        return 2 * (self.heads + 1) * int(np.prod(shape)) < free / 2

    @cached_property
    def batch(self) -> int:
        """Number of tiles that go through the network together: 1 on a CPU, where more are no faster.

        On a GPU they fill half of its free memory, judged by the memory that one tile takes.
        """
        if self.device.type != "cuda":
            return 1
        torch.cuda.reset_peak_memory_stats(self.device)
        before = torch.cuda.memory_allocated(self.device)
        try:
            with torch.inference_mode(), torch.autocast("cuda"):
                self._predictor._internal_maybe_mirror_and_predict(
                    torch.zeros((1, len(self.channels), *self.patch), device=self.device)
                )
        except RuntimeError:  # predicting the first tile raises the error that names it
            empty_cache(self.device)
            return 1
        tile_bytes = max(1, torch.cuda.max_memory_allocated(self.device) - before)
        free, _ = torch.cuda.mem_get_info(self.device)
        return int(min(_MOST_BATCH, max(1, free / 2 // tile_bytes)))

    def labels(self, logits: Array) -> Array:
        """Labels (z, y, x) from logits (head, z, y, x), by nnU-Net's rule: argmax of classes, threshold of regions."""
        decide = self._predictor.label_manager.convert_logits_to_segmentation
        # a plane at a time, because nnU-Net returns int64
        return np.stack(
            [np.asarray(decide(logits[:, plane : plane + 1]), self.label_dtype)[0] for plane in range(logits.shape[1])]
        )

    def probabilities(self, logits: Array) -> Array:
        """Probabilities of each class but background, 0 to 255, (class, z, y, x), from logits (head, z, y, x)."""
        manager = self._predictor.label_manager
        first = 0 if manager.has_regions else 1
        result = np.empty((len(logits) - first, *logits.shape[1:]), np.uint8)
        for plane in range(logits.shape[1]):
            probabilities = manager.apply_inference_nonlin(torch.from_numpy(logits[:, plane])).numpy()
            result[:, plane] = np.rint(probabilities[first:] * 255)
        return result
