"""A trained nnU-Net, and the logits of a box, computed tile by tile as nnU-Net computes those of a whole volume."""

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
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
from nnunet_selma.prediction.grids import Layer
from nnunet_selma.prediction.model_folder import check_model_folder
from nnunet_selma.prediction.plan_entries import check_entries
from nnunet_selma.prediction.sums import Sums
from nnunet_selma.prediction.tiling import within
from nnunet_selma.running.json_files import read_json
from nnunet_selma.volumes.base import ShapeZYX

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


@dataclass(frozen=True)
class Window:
    """A part of the image as the network sees it."""

    box: Box
    """The part; network axes, resampled. It exceeds the volume where nnU-Net pads with zeros."""
    voxels: torch.Tensor
    """Normalised and resampled voxels, (c, z, y, x)."""


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

    @property
    def channel_names(self) -> tuple[str, ...]:
        """Names of the image channels, in the order of the network's inputs."""
        return _names_of_channels(read_json(self.folder / "dataset.json"))

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


def _names_of_channels(description: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of the channels in a dataset.json; older ones call them modalities."""
    return tuple((description.get("modality") or description.get("channel_names") or {}).values())


@contextmanager
def trainers_registered() -> Iterator[None]:
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
            with trainers_registered():
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
        return _names_of_channels(self._predictor.dataset_json)

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
    def has_regions(self) -> bool:
        """True if the classes may overlap: nnU-Net's regions."""
        return bool(self._predictor.label_manager.has_regions)

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
    def add_tiles(self, sums: Sums, layers: Sequence[Layer], window: Window, *, batch: int, half: bool = True) -> None:
        """Add the logits of layers of tiles to sums, fold by fold.

        Args:
            sums: their box holds the layers' planes; they may lie on the CPU while the network is on a GPU.
            layers: the layers, in nnU-Net's order.
            window: the image around the tiles, on any device.
            batch: tiles that go through the network together. Those of a batch are of one layer, so that they do not depend on where a run
                was interrupted.
            half: on a GPU, compute the network in half precision as nnU-Net does.
        """
        folds = self._predictor.list_of_parameters
        network = getattr(self._predictor.network, "_orig_mod", self._predictor.network)
        weight = self._weight.to(sums.weights.device)
        for fold, weights in enumerate(folds):
            if len(folds) > 1:  # those of a single fold are in the network since it was built
                network.load_state_dict(weights)
            with torch.autocast("cuda", enabled=half and self.device.type == "cuda"):
                for layer in layers:
                    for first in range(0, len(layer.tiles), batch):
                        tiles = layer.tiles[first : first + batch]
                        for tile, logits in zip(tiles, self._predict(window, tiles), strict=True):
                            sums.add(fold, tile, logits.to(weight.device), weight)

    def _predict(self, window: Window, tiles: Sequence[Box]) -> torch.Tensor:
        """Logits of tiles, (tile, head, z, y, x)."""
        patches = torch.stack([window.voxels[(slice(None), *within(tile, window.box))] for tile in tiles])
        patches = patches.reshape(len(tiles), -1, *self.patch).to(self.device, non_blocking=True)
        prediction: torch.Tensor = self._predictor._internal_maybe_mirror_and_predict(patches)
        return prediction.reshape(len(tiles), -1, *self.tile)

    def empty_sums(self, box: Box, *, half: bool = True, device: torch.device | None = None) -> Sums:
        """Sums of no tile for all folds, on the device of the network if not stated otherwise; in half precision as nnU-Net's, or in single."""
        dtype = torch.half if half else torch.float32
        return Sums.empty(box, self.heads, len(self.settings.folds), dtype, device or self.device)

    def fits(self, tensor_bytes: float) -> bool:
        """True if so many bytes fit into half of the free memory of the device; always on a CPU, whose memory is planned before."""
        if self.device.type != "cuda":
            return self.device.type == "cpu"
        free, _ = torch.cuda.mem_get_info(self.device)
        return tensor_bytes < free / 2

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

    def labels(self, logits: torch.Tensor) -> torch.Tensor:
        """Labels (z, y, x) from logits (head, z, y, x) on any device, by nnU-Net's rule: argmax of classes, threshold of regions."""
        manager = self._predictor.label_manager
        result = torch.zeros(
            logits.shape[1:], dtype=torch.uint8 if self.label_dtype.itemsize == 1 else torch.int32, device=logits.device
        )
        if manager.has_regions:
            return result.copy_(manager.convert_logits_to_segmentation(logits))
        highest = logits[0]
        for head in range(1, len(logits)):  # of equal logits the first wins, as in numpy's argmax
            higher = logits[head] > highest
            result.masked_fill_(higher, head)
            if head + 1 < len(logits):
                highest = torch.where(higher, logits[head], highest)
        return result

    def probabilities(self, logits: torch.Tensor) -> torch.Tensor:
        """Probabilities of each class but background, 0 to 255, (class, z, y, x), from logits (head, z, y, x) on any device."""
        manager = self._predictor.label_manager
        first = 0 if manager.has_regions else 1
        probabilities: torch.Tensor = manager.apply_inference_nonlin(logits)[first:]
        return (probabilities * 255).round().to(torch.uint8)


def all_finite(logits: torch.Tensor) -> bool:
    """True if no value is NaN or infinite: their sum, in a wider type, is neither then."""
    wider = torch.float32 if logits.dtype == torch.half else torch.float64
    return bool(torch.isfinite(logits.sum(dtype=wider)))
