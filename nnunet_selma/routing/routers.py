"""Which of several models a volume goes to: the structure that a classifier sees in its patches.

Team bioAI of SELMA3D 2024 told c-Fos+ cells from everything else with a DenseNet, because it had a model for either (paper, section
4.2.2). Here a router is such a DenseNet, trained on annotated patches (`router_training.py`), or the head of a pretraining by
`SelmaSSLTrainer_MultiTask`, which learnt to name structures on the way. A volume is of the class with the largest mean probability over
a grid of at most 27 patches. Memory: these patches, and a slab of the volume as thick as one.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from itertools import groupby, product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nnunet_selma.errors import SelmaError
from nnunet_selma.finetuning.pretrained import CHECKPOINT
from nnunet_selma.networks import MONAI_MISSING
from nnunet_selma.nnunet.checkpoints import PRETEXT, check_finite, unpickled
from nnunet_selma.pretraining.base import deepest_features, pooled
from nnunet_selma.running.json_files import read_json
from nnunet_selma.running.whole_files import whole_file
from nnunet_selma.structures import PREFIXES, named
from nnunet_selma.volumes import Volume, to_intensities
from nnunet_selma.volumes.base import Array, ShapeZYX

OTHER = "other"
"""The class of everything that no other class names."""
_LEAST_DEVIATION = 1e-6
_ALONG_AN_AXIS = 3
"""Patches of the grid at most."""
AT_ONCE = 2
"""Patches that go through the network together, as many as in nnU-Net's smallest batches."""
_PLANES = 64
"""Planes that are read together for mean and deviation."""


def class_named(text: str) -> str:
    """The class that a user means: `other`, or the prefix of a structure; raises `SelmaError` that lists the known ones."""
    return OTHER if text == OTHER else named(text).prefix


class Router(ABC):
    """Says which class each of some patches shows."""

    classes: tuple[str, ...]
    """Prefixes of structures, and `other`."""
    patch_zyx: ShapeZYX
    channels: int
    """Channels of a volume that the router reads, from the first."""
    device: torch.device

    @abstractmethod
    def probabilities(self, patches: Tensor) -> Tensor:
        """Probabilities (batch, class) of patches (batch, channel, z, y, x), each channel normalised by its volume's mean and deviation."""


class DenseNetRouter(Router):
    """MONAI's DenseNet (an optional extra) with random weights; it sees the first channel, each patch standardised by itself.

    Raises:
        SelmaError: MONAI is missing.
    """

    def __init__(
        self, classes: Sequence[str], patch_zyx: Sequence[int], architecture: Mapping[str, Any], device: torch.device
    ) -> None:
        try:
            from monai.networks.nets import DenseNet
        except ImportError as error:
            raise SelmaError(f"a router of nnunet-selma train-router: {MONAI_MISSING}") from error
        self.classes, self.architecture = tuple(classes), dict(architecture)
        self.patch_zyx, self.channels, self.device = _three(patch_zyx), 1, device
        self.network: nn.Module = DenseNet(3, 1, len(self.classes), **self.architecture).to(device)

    @torch.no_grad()
    def probabilities(self, patches: Tensor) -> Tensor:
        """As `Router.probabilities`."""
        scores: Tensor = self.network.eval()(standardise(patches))
        return scores.softmax(1)

    def save(self, path: Path) -> None:
        """Write classes, patch, architecture and weights to one file, under a temporary name first."""
        content = {
            "classes": list(self.classes),
            "patch": list(self.patch_zyx),
            "architecture": self.architecture,
            "state": {key: tensor.cpu() for key, tensor in self.network.state_dict().items()},
        }
        try:
            with whole_file(path) as partial:
                torch.save(content, partial)
        except (OSError, RuntimeError) as error:
            raise SelmaError(f"{path}: could not be written ({error}); check the folder and make room") from error


class PretextRouter(Router):
    """The encoder of a pretraining and its linear head over all structures of the table.

    Patches are to be normalised as in that pretraining. Mean and deviation of the volume are enough for that; nothing is resampled, so
    voxels should be as large as they were there.

    Args:
        network: has an `encoder`.
        head: weight and bias, (structure, 2 × feature) and (structure,).
        classes: prefixes of the structures of the head, in its order.
        patch: of the plans, along the axes of the network.
        order: the file's axis that each axis of the network is (`transpose_forward` of the plans).
        channels: of the pretraining.
        device: where to compute.
    """

    def __init__(
        self,
        network: nn.Module,
        head: tuple[Tensor, Tensor],
        classes: Sequence[str],
        *,
        patch: Sequence[int],
        order: Sequence[int],
        channels: int,
        device: torch.device,
    ) -> None:
        self.network, self.classes = network.to(device).eval(), tuple(classes)
        self.weight, self.bias = (tensor.to(device) for tensor in head)
        self.axes = [0, 1, *(2 + axis for axis in order)]
        self.patch_zyx = _three([patch[list(order).index(axis)] for axis in range(3)])
        self.channels, self.device = channels, device

    @torch.no_grad()
    def probabilities(self, patches: Tensor) -> Tensor:
        """As `Router.probabilities`; with all structures of the table, as `MultiTask.classify` has them."""
        features = pooled(deepest_features(self.network, patches.permute(self.axes), "encoder"))
        return nn.functional.linear(features, self.weight, self.bias).softmax(1)


def open_router(path: Path, device: torch.device) -> Router:
    """The router in a file of `train-router`, or that of a finished pretraining in its fold folder; no code that files carry is run.

    Raises:
        SelmaError: nothing there, a damaged or foreign file, a pretraining without the head, or MONAI is missing.
    """
    return _of_pretraining(path, device) if path.is_dir() else _of_file(path, device)


def _of_file(path: Path, device: torch.device) -> DenseNetRouter:
    if not path.is_file():
        raise SelmaError(f"{path}: there is no such router; make one with nnunet-selma train-router")
    content = unpickled(path)
    try:
        classes = [class_named(name) for name in content["classes"]]
        router = DenseNetRouter(classes, content["patch"], content["architecture"], device)
        router.network.load_state_dict(content["state"])
        check_finite(content["state"], str(path))
    except SelmaError:
        raise
    except (TypeError, KeyError, IndexError, ValueError, RuntimeError, AttributeError) as error:
        raise SelmaError(f"{path}: is no router of this version; make one with nnunet-selma train-router") from error
    return router


def _of_pretraining(folder: Path, device: torch.device) -> PretextRouter:
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
    from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    model = folder.resolve().parent
    path, plans_file, dataset_file = folder / CHECKPOINT, model / "plans.json", model / "dataset.json"
    for file in (path, plans_file, dataset_file):
        if not file.is_file():
            raise SelmaError(
                f"{file}: is missing; a router is a file of nnunet-selma train-router, or the fold folder of a finished pretraining with "
                "-tr SelmaSSLTrainer_MultiTask"
            )
    content = unpickled(path)
    weight, bias, classes = _head(content, path)
    check_finite({**content["network_weights"], "structure.weight": weight, "structure.bias": bias}, str(path))
    plans = PlansManager(read_json(plans_file))
    own = plans.get_configuration(content["init_args"]["configuration"])
    _check_supported(own.configuration, path)
    channels = determine_num_input_channels(plans, own, read_json(dataset_file))
    # as SelmaSSLTrainer builds it
    network = get_network_from_plans(
        own.network_arch_class_name,
        own.network_arch_init_kwargs,
        own.network_arch_init_kwargs_req_import,
        channels,
        channels,
        deep_supervision=False,
    )
    try:
        network.load_state_dict(content["network_weights"])
    except RuntimeError as error:
        raise SelmaError(f"{path}: its weights do not fit the network of {plans_file}; copy both again") from error
    return PretextRouter(
        network,
        (weight, bias),
        classes,
        patch=own.patch_size,
        order=plans.transpose_forward,
        channels=channels,
        device=device,
    )


def _head(content: Any, path: Path) -> tuple[Tensor, Tensor, list[str]]:
    """Weight and bias of the head that tells structures apart, and their prefixes: those that the pretraining has seen.

    Raises:
        SelmaError: there is no such head for this table of structures, or it has seen fewer than two.
    """
    state = content.get(PRETEXT) if isinstance(content, Mapping) else None
    if not state or "structure.weight" not in state:
        raise SelmaError(
            f"{path}: holds no classifier of structures; pretrain with -tr SelmaSSLTrainer_MultiTask, or train one with "
            "nnunet-selma train-router"
        )
    weight, bias = state["structure.weight"], state["structure.bias"]
    if len(weight) != len(PREFIXES):
        raise SelmaError(
            f"{path}: tells {len(weight)} structures apart, and this version knows {len(PREFIXES)}; pretrain again"
        )
    seen = state.get("seen", torch.ones(len(PREFIXES), dtype=torch.bool))  # earlier versions did not note it
    classes = [prefix for prefix, known in zip(PREFIXES, seen.tolist(), strict=True) if known]
    if len(classes) < 2:
        raise SelmaError(
            f"{path}: was trained on {' and '.join(classes) or 'no named structure'} alone, so it can tell nothing apart; pretrain on cases named after two structures or more, "
            "or train a router with nnunet-selma train-router"
        )
    return weight[seen], bias[seen], classes


def _check_supported(configuration: Mapping[str, Any], path: Path) -> None:
    schemes = set(configuration["normalization_schemes"])
    if len(configuration["patch_size"]) != 3 or schemes != {"ZScoreNormalization"}:
        raise SelmaError(
            f"{path}: routing takes three-dimensional pretrainings with ZScoreNormalization, and this one has a patch of "
            f"{configuration['patch_size']} and {', '.join(sorted(schemes))}; train a router with nnunet-selma train-router"
        )


def route(router: Router, channels: Sequence[Volume]) -> dict[str, float]:
    """Mean probability of each class over a grid of patches of a case.

    Args:
        router: the classifier.
        channels: the volumes of the case, at least as many as the router looks at; one smaller than a patch goes on mirrored.
    """
    corners = grid(channels[0].shape, router.patch_zyx)
    read = []
    for volume in channels[: router.channels]:
        mean, deviation = _moments(volume)
        raw = read_patches(volume, router.patch_zyx, corners).astype(np.float32)
        read.append((raw - np.float32(mean)) / np.float32(max(deviation, _LEAST_DEVIATION)))
    patches = torch.from_numpy(np.stack(read, axis=1))  # (patch, channel, z, y, x)
    batches = patches.chunk(math.ceil(len(patches) / AT_ONCE))
    mean_of_all = torch.cat([router.probabilities(batch.to(router.device)) for batch in batches]).float().mean(0)
    return dict(zip(router.classes, mean_of_all.cpu().tolist(), strict=True))


def most_probable(probabilities: Mapping[str, float]) -> str:
    """The class that a case is taken for."""
    return max(probabilities, key=lambda name: probabilities[name])


def grid(shape: ShapeZYX, patch_zyx: ShapeZYX) -> list[ShapeZYX]:
    """First corners of patches spread evenly over a volume, at most three along an axis, from border to border."""
    starts = []
    for length, edge in zip(shape, patch_zyx, strict=True):
        count = min(_ALONG_AN_AXIS, -(-length // edge))
        starts.append([round(start) for start in np.linspace(0, max(0, length - edge), count)])
    return [_three(corner) for corner in product(*starts)]


def read_patches(volume: Volume, patch_zyx: ShapeZYX, corners: Sequence[ShapeZYX]) -> Array:
    """Patches (patch, z, y, x) at first corners, in their order along z; what lies behind the border is mirrored.

    Each slab of planes is read once, because a compressed file is decompressed from its start for every read.

    Raises:
        SelmaError: the file is damaged, or holds NaN or no grey values.
    """
    patches = []
    depth, height, width = patch_zyx
    for z, of_slab in groupby(sorted(corners), key=lambda corner: corner[0]):
        slab = _slab(volume, z, depth)
        for _, y, x in of_slab:
            box = slab[:, y : y + height, x : x + width]
            lacking = [(0, edge - length) for edge, length in zip(patch_zyx, box.shape, strict=True)]
            patches.append(np.pad(box, lacking, mode="symmetric"))
    return np.stack(patches)


def _slab(volume: Volume, z: int, depth: int) -> Array:
    return to_intensities(volume.read(z=slice(z, z + depth)), str(volume.path))


def _moments(volume: Volume) -> tuple[float, float]:
    """Mean and standard deviation of all voxels, slab by slab in double precision."""
    total = squares = 0.0
    for z in range(0, volume.shape[0], _PLANES):
        values = _slab(volume, z, _PLANES).astype(np.float64).ravel()
        total, squares = total + float(values.sum()), squares + float(values @ values)
    mean, mean_square = (value / math.prod(volume.shape) for value in (total, squares))
    return mean, math.sqrt(max(0.0, mean_square - mean**2))


def standardise(patches: Tensor) -> Tensor:
    """Patches (batch, channel, z, y, x), each channel of each with mean 0 and deviation 1; of equal voxels, 0."""
    axes = (2, 3, 4)
    centred = patches.float() - patches.float().mean(axes, keepdim=True)
    return centred / centred.std(axes, keepdim=True).clamp(min=_LEAST_DEVIATION)


def _three(values: Sequence[int]) -> ShapeZYX:
    z, y, x = (int(value) for value in values)
    return z, y, x
