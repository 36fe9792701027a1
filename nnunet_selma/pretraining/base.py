"""Interface of pretext tasks, and functions that read a network's features."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from nnunet_selma.errors import SelmaError
from nnunet_selma.networks.parts import pretrained_module
from nnunet_selma.nnunet.settings import Settings

_FORMER_MODULE = "nnunet_selma.pretexts."
"""Beginning of the names of pretexts in plans of earlier versions."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """Network, data and run for which a pretext is made."""

    network: nn.Module
    """The network to train, without the wrappers of DistributedDataParallel and torch.compile."""
    settings: Settings
    """All settings of the plans."""
    patch: tuple[int, ...]
    """Shape of a patch, (z, y, x) or (y, x)."""
    spacing: tuple[float, ...]
    """Voxel size along these axes."""
    channels: int
    """Channels of a patch."""
    steps: int
    """Training steps of the whole run."""
    device: torch.device
    """Device of patches and network."""


@dataclass(frozen=True)
class Reconstruction:
    """Reconstruction of masked patches; tensors are (batch, channel, *patch)."""

    visible: Tensor
    """Input of the network, in the unit of the target."""
    target: Tensor
    output: Tensor
    mask: Tensor
    """True where voxels were masked, bool (batch, 1, *patch)."""


class Pretext(nn.Module, ABC):
    """A self-supervised loss with its heads and its teacher, if any; the network to train is an argument.

    A pretext works with every network that maps (batch, channel, *patch) to the same shape or, where `trains_decoder` is False, with
    every network whose encoder returns feature maps.
    """

    trains_decoder = True
    """False: only the network's `pretrained_part` is trained; the rest stays random and is not carried over."""
    uses_skips = True
    """False: the decoder reads the coarsest map alone."""
    renamed: ClassVar[Mapping[str, str]] = {"called": "compiled_parts", "asks_every_step": "deep_supervision"}
    """Name in earlier versions to present name of what a subclass may define; the former one would be ignored in silence."""
    deep_supervision = False
    """True: every decoder step has a loss, so that the heads of all steps are trained."""
    mirrors = True
    """False: patches are not mirrored, because the pretext predicts their orientation."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.steps, self.steps_done = task.steps, 0
        self.generator = torch.Generator(task.device)
        self.reseed(0)

    def reseed(self, seed: int) -> None:
        """Seed the pretext's random generators; called at the start of every epoch and of every validation."""
        self.generator.manual_seed(seed)
        self.rng = np.random.default_rng(seed)

    @abstractmethod
    def forward(self, network: nn.Module, patches: Tensor, structures: Tensor) -> dict[str, Tensor]:
        """Named loss terms of a batch; their sum is minimised.

        Args:
            network: maps (batch, channel, *patch) to the same shape.
            patches: (batch, channel, *patch), normalised as the plans say.
            structures: number of each patch's biological structure in the structure table, (batch,); -1 is unknown.
        """

    def after_step(self, network: nn.Module) -> None:
        """Count the optimiser step; a pretext with a teacher moves it here, and calls this too."""
        self.steps_done += 1

    def compiled_parts(self, network: nn.Module) -> list[nn.Module]:
        """Modules that a step calls, for torch.compile; a subclass that calls other parts returns these."""
        return [network if self.trains_decoder else pretrained_module(network)]

    def reconstruct(self, network: nn.Module, patches: Tensor) -> Reconstruction | None:
        """The network's reconstruction of masked patches; None for a pretext that reconstructs nothing."""
        return None

    def diagnostics(self, network: nn.Module, patches: Tensor) -> dict[str, float]:
        """Measurements on a validation batch, to be logged and drawn under these names."""
        return {}

    def embed(self, network: nn.Module, patches: Tensor) -> Tensor:
        """One vector per patch, (batch, feature), used to detect collapse.

        Features are pooled over space first, because instance norm hides collapse at single voxels.
        """
        return pooled(deepest_features(network, patches))

    def get_extra_state(self) -> dict[str, int]:
        """State beyond the weights that a continued run needs."""
        return {"steps_done": self.steps_done}

    def set_extra_state(self, state: dict[str, int]) -> None:
        """Restore the state that `get_extra_state` returned."""
        self.steps_done = state["steps_done"]


def pretext_named(name: str) -> type[Pretext]:
    """The pretext class with this name, `package.module.Class`.

    Raises:
        SelmaError: no such module or class, or it is no pretext.
    """
    if name.startswith(_FORMER_MODULE):
        name = f"nnunet_selma.pretraining.{name.removeprefix(_FORMER_MODULE)}"
    module, _, last = name.rpartition(".")
    try:
        kind = getattr(import_module(module), last)
    except (ImportError, ValueError, AttributeError) as error:
        raise SelmaError(
            f"pretraining.pretext is {name}, which cannot be imported ({error}); write package.module.Class, and put the module's "
            "folder on PYTHONPATH"
        ) from error
    if not (isinstance(kind, type) and issubclass(kind, Pretext)):
        raise SelmaError(
            f"pretraining.pretext is {name}, which is no subclass of nnunet_selma.pretraining.base.Pretext"
        )
    for former, present in kind.renamed.items():
        if hasattr(kind, former):
            raise SelmaError(
                f"pretraining.pretext is {name}, which defines {former}; this method is now called {present}, rename it"
            )
    return kind


def deepest_features(network: nn.Module, patches: Tensor) -> Tensor:
    """Coarsest feature map of the part of a network that is pretrained, (batch, feature, *grid)."""
    return coarsest(pretrained_module(network)(patches))


def coarsest(maps: Tensor | Sequence[Tensor]) -> Tensor:
    """The last of an encoder's maps, which are sorted fine to coarse, or its only one."""
    return maps if isinstance(maps, Tensor) else maps[-1]


def pooled(features: Tensor) -> Tensor:
    """One vector a patch, (batch, 2 × feature): mean and maximum over the grid of (batch, feature, *grid).

    The mean alone would hardly differ between patches, because instance norm makes it the same before the activation.
    """
    flat = features.float().flatten(2)
    return torch.cat([flat.mean(2), flat.amax(2)], dim=1)


@torch.no_grad()
def map_shapes(task: Task, encoder: nn.Module) -> list[tuple[int, ...]]:
    """(feature, *grid) of each map that an encoder returns for one patch, fine to coarse."""
    training = encoder.training
    maps = encoder.eval()(torch.zeros(1, task.channels, *task.patch, device=task.device))
    encoder.train(training)
    return [tuple(features.shape[1:]) for features in ([maps] if isinstance(maps, Tensor) else maps)]


def feature_shape(task: Task) -> tuple[int, ...]:
    """(feature, *grid) of `deepest_features` of one patch."""
    return map_shapes(task, pretrained_module(task.network))[-1]
