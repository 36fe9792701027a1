"""What a pretext task is."""

from abc import ABC, abstractmethod

from torch import Tensor, nn


class Pretext(nn.Module, ABC):
    """A self-supervised loss: it owns its heads and its teacher, if any, and is given the network to train.

    The same pretext works with every network that maps (batch, channel, *patch) to the same shape.
    """

    @abstractmethod
    def forward(self, network: nn.Module, patches: Tensor) -> dict[str, Tensor]:
        """Named loss terms of a batch, (batch, channel, *patch); their sum is minimised."""

    def after_step(self, network: nn.Module) -> None:
        """Called after each optimiser step: moving average of a teacher, schedules."""

    def diagnostics(self, network: nn.Module, patches: Tensor) -> dict[str, float]:
        """What tells a user whether it learns, measured on every validation batch; logged and drawn under these names."""
        return {}

    @abstractmethod
    def reseed(self, seed: int) -> None:
        """Start the pretext's own randomness anew; called at the start of every epoch and of every validation."""
