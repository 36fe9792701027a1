"""Learning rate of fine-tuning: nnU-Net's decay, with a warm-up and a rate for each parameter group."""

import torch
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler


class WarmupPolyLRScheduler(PolyLRScheduler):
    """nnU-Net's polynomial decay from epoch to epoch, times a linear rise over the first steps, times the rate of each parameter group.

    Args:
        optimizer: its parameter groups may have a factor under "rate"; the default is 1.
        initial_lr: the highest learning rate.
        max_steps: number of epochs.
        steps_per_epoch: training steps in an epoch.
        warmup_steps: training steps of the rise.
        restart: epoch at which the learning rate rises again.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        initial_lr: float,
        max_steps: int,
        *,
        steps_per_epoch: int = 1,
        warmup_steps: int = 0,
        restart: int = 0,
    ) -> None:
        self.steps_per_epoch, self.warmup_steps, self.restart = steps_per_epoch, warmup_steps, restart
        super().__init__(optimizer, initial_lr, max_steps)

    def step(self, current_step: int | None = None) -> None:
        """Set the learning rates of the first step of an epoch."""
        epoch = self.ctr if current_step in (None, -1) else current_step
        super().step(current_step)
        self.decayed: float = self.optimizer.param_groups[0]["lr"]
        since = epoch - self.restart if epoch >= self.restart else epoch
        self.next_step = since * self.steps_per_epoch
        self._set_rates()

    def before_step(self) -> None:
        """Set the learning rates of the coming training step."""
        self._set_rates()
        self.next_step += 1

    def _set_rates(self) -> None:
        rise = min(1.0, (self.next_step + 1) / (self.warmup_steps + 1))
        for group in self.optimizer.param_groups:
            group["lr"] = self.decayed * rise * group.get("rate", 1.0)
        self._last_lr = [group["lr"] for group in self.optimizer.param_groups]
