"""Interface of pretext tasks, and functions that read a network's features."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from nnunet_selma.networks.parts import pretrained_part
from nnunet_selma.nnunet.settings import Settings


@dataclass(frozen=True, kw_only=True)
class Task:
    """Context in which a pretext is made."""

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
    """Where patches and network are."""


@dataclass(frozen=True)
class Reconstruction:
    """A network's answer to masked patches, each (batch, channel, *patch) but the mask."""

    visible: Tensor
    """Input of the network, in the unit of its answer."""
    target: Tensor
    output: Tensor
    mask: Tensor
    """True where voxels were hidden, bool (batch, 1, *patch)."""


class Pretext(nn.Module, ABC):
    """A self-supervised loss: it owns its heads and its teacher, if any, and is given the network to train.

    The same pretext works with every network that maps (batch, channel, *patch) to the same shape, or, where `trains_decoder` is
    False, with every network whose encoder gives feature maps.
    """

    trains_decoder = True
    """False: only what `pretrained_part` names is trained; the rest of the network stays random and is not carried over."""
    uses_skips = True
    """False: the decoder reads the coarsest map alone."""
    asks_every_step = False
    """True: every step of the decoder answers, and the heads of all of them are trained."""
    mirrors = True
    """False: patches are not mirrored, because the pretext asks how they lie."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.steps, self.steps_done = task.steps, 0
        self.generator = torch.Generator(task.device)
        self.reseed(0)

    def reseed(self, seed: int) -> None:
        """Start the pretext's own randomness anew; called at the start of every epoch and of every validation."""
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
        """Called after each optimiser step: moving average of a teacher; who overrides it calls this too."""
        self.steps_done += 1

    def called(self, network: nn.Module) -> list[nn.Module]:
        """Modules that a step calls, which are compiled where nnU-Net compiles its network: a subclass that calls parts of it returns these."""
        return [network]

    def reconstruct(self, network: nn.Module, patches: Tensor) -> Reconstruction | None:
        """The network's reconstruction of masked patches; None for a pretext that reconstructs nothing."""
        return None

    def diagnostics(self, network: nn.Module, patches: Tensor) -> dict[str, float]:
        """Measurements on a validation batch that tell a user whether the network learns; logged and drawn under these names."""
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
        """As `get_extra_state` gave it."""
        self.steps_done = state["steps_done"]


def deepest_features(network: nn.Module, patches: Tensor, part: str | None = None) -> Tensor:
    """The coarsest feature map of a part of the network, by default of the one that is pretrained, (batch, feature, *grid)."""
    return coarsest(network.get_submodule(part or pretrained_part(network))(patches))


def coarsest(maps: Tensor | Sequence[Tensor]) -> Tensor:
    """The last of the maps that an encoder gives, fine to coarse, or its only one."""
    return maps if isinstance(maps, Tensor) else maps[-1]


def pooled(features: Tensor) -> Tensor:
    """One vector a patch, (batch, 2 × feature): mean and maximum over the grid of (batch, feature, *grid).

    The mean alone says little of a patch: before the activation instance norm has made it the same for all.
    """
    flat = features.float().flatten(2)
    return torch.cat([flat.mean(2), flat.amax(2)], dim=1)


@torch.no_grad()
def feature_shape(task: Task, part: str | None = None) -> tuple[int, ...]:
    """(feature, *grid) of what `deepest_features` gives of one patch."""
    training = task.network.training
    patch = torch.zeros(1, task.channels, *task.patch, device=task.device)
    shape = tuple(deepest_features(task.network.eval(), patch, part).shape[1:])
    task.network.train(training)
    return shape
