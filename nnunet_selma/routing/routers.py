"""Routers: classifiers of a volume's structure, by which it goes to one of several models.

Team bioAI of SELMA3D 2024 told c-Fos+ cells from everything else with a DenseNet, because it had a model for either (paper, section
4.2.2). Here a router is such a DenseNet, trained on annotated patches (`router_training.py`), or the structure classifier of a pretraining by
`SelmaSSLTrainer_MultiTask`. The class of a volume has the largest mean probability over a grid of at most 27 patches. Memory holds these
patches, and a slab of the volume as thick as one.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nnunet_selma.errors import SelmaError
from nnunet_selma.finetuning.pretrained import CHECKPOINT
from nnunet_selma.networks import MONAI_MISSING
from nnunet_selma.nnunet.checkpoints import PRETEXT, check_finite, unpickled
from nnunet_selma.pretraining.multitask import classify, structure_classifier
from nnunet_selma.routing.patches import (
    LEAST_DEVIATION,
    as_zyx,
    grid_corners,
    read_patches,
    standardise,
    volume_moments,
)
from nnunet_selma.running.json_files import read_json
from nnunet_selma.running.whole_files import whole_file
from nnunet_selma.structures import named
from nnunet_selma.volumes import Volume
from nnunet_selma.volumes.base import ShapeZYX

OTHER = "other"
"""The class of everything that no other class names."""
AT_ONCE = 2
"""Patches that go through the network together, as many as in nnU-Net's smallest batches."""


def class_named(text: str) -> str:
    """The class with this name: `other`, or the prefix of a structure; raises `SelmaError` that lists the known structures."""
    return OTHER if text == OTHER else named(text).prefix


class Router(ABC):
    """A classifier of patches."""

    classes: tuple[str, ...]
    """Prefixes of structures, and `other`."""
    patch_zyx: ShapeZYX
    channels: int
    """Number of channels that the router reads, from the first."""
    device: torch.device

    @abstractmethod
    def probabilities(self, patches: Tensor) -> Tensor:
        """Class probabilities (batch, class) of patches (batch, channel, z, y, x).

        Each channel of the patches is normalised by the mean and the standard deviation of its volume.
        """


class DenseNetRouter(Router):
    """MONAI's DenseNet (an optional extra) with random weights, for the first channel of patches that are standardised one by one.

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
        self.patch_zyx, self.channels, self.device = as_zyx(patch_zyx), 1, device
        self.network: nn.Module = DenseNet(3, 1, len(self.classes), **self.architecture).to(device)

    @torch.no_grad()
    def probabilities(self, patches: Tensor) -> Tensor:
        """Class probabilities, see `Router.probabilities`."""
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
    """The structure classifier of a pretraining by `SelmaSSLTrainer_MultiTask`.

    Its patches must be normalised as in that pretraining, for which mean and standard deviation of the volume are enough. Nothing is
    resampled, so that voxels should have the size that they had in the pretraining.

    Args:
        network: the pretrained network.
        head: its structure classifier.
        classes: prefixes of the structures of the head, in its order.
        patch: patch size of the plans, along the axes of the network.
        order: axis of the file for each axis of the network (`transpose_forward` of the plans).
        channels: number of input channels of the pretraining.
        device: device to compute on.
    """

    def __init__(
        self,
        network: nn.Module,
        head: nn.Module,
        classes: Sequence[str],
        *,
        patch: Sequence[int],
        order: Sequence[int],
        channels: int,
        device: torch.device,
    ) -> None:
        self.network, self.head, self.classes = network.to(device).eval(), head.to(device), tuple(classes)
        self.axes = [0, 1, *(2 + axis for axis in order)]
        self.patch_zyx = as_zyx([patch[list(order).index(axis)] for axis in range(3)])
        self.channels, self.device = channels, device

    def probabilities(self, patches: Tensor) -> Tensor:
        """Class probabilities, see `Router.probabilities`; for all structures of the table they are those of `MultiTask.classify`."""
        return classify(self.network, self.head, patches.permute(self.axes))


def open_router(path: Path, device: torch.device) -> Router:
    """The router in a file of `train-router`, or in the fold folder of a finished pretraining; no code in these files is run.

    Raises:
        SelmaError: nothing there, a damaged or foreign file, a pretraining without the head, or MONAI is missing.
    """
    return _open_pretraining(path, device) if path.is_dir() else _open_file(path, device)


def _open_file(path: Path, device: torch.device) -> DenseNetRouter:
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


def _open_pretraining(folder: Path, device: torch.device) -> PretextRouter:
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
    try:
        head, classes = structure_classifier(content.get(PRETEXT, {}) if isinstance(content, Mapping) else {})
    except SelmaError as error:
        raise SelmaError(f"{path}: {error}") from error
    check_finite({**content["network_weights"], **head.state_dict()}, str(path))
    plans = PlansManager(read_json(plans_file))
    configuration = plans.get_configuration(content["init_args"]["configuration"])
    _check_supported(configuration.configuration, path)
    channels = determine_num_input_channels(plans, configuration, read_json(dataset_file))
    # the same network as in SelmaSSLTrainer
    network = get_network_from_plans(
        configuration.network_arch_class_name,
        configuration.network_arch_init_kwargs,
        configuration.network_arch_init_kwargs_req_import,
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
        head,
        classes,
        patch=configuration.patch_size,
        order=plans.transpose_forward,
        channels=channels,
        device=device,
    )


def _check_supported(configuration: Mapping[str, Any], path: Path) -> None:
    """Raise `SelmaError` unless a configuration is 3D and normalises by mean and standard deviation."""
    schemes = set(configuration["normalization_schemes"])
    if len(configuration["patch_size"]) != 3 or schemes != {"ZScoreNormalization"}:
        raise SelmaError(
            f"{path}: routing takes three-dimensional pretrainings with ZScoreNormalization, and this pretraining has a patch of "
            f"{configuration['patch_size']} and {', '.join(sorted(schemes))}; train a router with nnunet-selma train-router"
        )


def class_probabilities(router: Router, channels: Sequence[Volume]) -> dict[str, float]:
    """Mean probability of each class over a grid of patches of a case.

    Args:
        router: the classifier.
        channels: the volumes of the case, at least as many as the router reads; a volume smaller than a patch is mirrored at its border.
    """
    corners = grid_corners(channels[0].shape, router.patch_zyx)
    normalised = []
    for volume in channels[: router.channels]:
        moments = volume_moments(volume)
        patches = read_patches(volume, router.patch_zyx, corners).astype(np.float32)
        deviation = max(moments.standard_deviation, LEAST_DEVIATION)
        normalised.append((patches - np.float32(moments.mean)) / np.float32(deviation))
    probabilities = in_batches(router, torch.from_numpy(np.stack(normalised, axis=1)))
    return dict(zip(router.classes, probabilities.float().mean(0).cpu().tolist(), strict=True))


def in_batches(router: Router, patches: Tensor) -> Tensor:
    """Class probabilities (patch, class) of patches (patch, channel, z, y, x), computed `AT_ONCE` patches at a time."""
    batches = patches.chunk(math.ceil(len(patches) / AT_ONCE))
    return torch.cat([router.probabilities(batch.to(router.device)) for batch in batches])


def most_probable(probabilities: Mapping[str, float]) -> str:
    """The class with the largest probability."""
    return max(probabilities, key=lambda name: probabilities[name])
