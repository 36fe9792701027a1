"""`SelmaFinetuneTrainer`: nnU-Net's segmentation training that starts from pretrained weights."""

from pathlib import Path
from typing import Any

import torch
from nnunetv2.paths import nnUNet_results
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler

from nnunet_selma.pretrained import find_pretrained, network_identity
from nnunet_selma.trainers.base import SelmaTrainer, bare, plain_errors
from nnunet_selma.transfer import carry_over, read_weights


class WarmupPolyLRScheduler(PolyLRScheduler):
    """nnU-Net's polynomial decay, multiplied by a linear rise over the first epochs."""

    def __init__(self, optimizer: torch.optim.Optimizer, initial_lr: float, max_steps: int, warmup_steps: int) -> None:
        self.warmup_steps = warmup_steps
        super().__init__(optimizer, initial_lr, max_steps)

    def step(self, current_step: int | None = None) -> None:
        """Set the learning rate of an epoch."""
        epoch = self.ctr if current_step in (None, -1) else current_step
        super().step(current_step)
        factor = min(1.0, (epoch + 1) / (self.warmup_steps + 1))
        for group in self.optimizer.param_groups:
            group["lr"] *= factor
        self._last_lr = [group["lr"] for group in self.optimizer.param_groups]


class SelmaFinetuneTrainer(SelmaTrainer):
    """nnU-Net with pretrained weights and a warm-up; otherwise nnU-Net.

    The weights come from, in this order: nnU-Net's own `-pretrained_weights`, the path in the plans
    (`finetuning.pretrained`), the newest pretraining of the same network in nnUNet_results. A run that goes on (`--c`) and
    one that only validates (`--val`) need none of them.
    """

    section = "finetuning"

    def initialize(self) -> None:
        """As nnU-Net; remembers the random weights, to see whether somebody replaced them."""
        super().initialize()
        self._start = self._first_weights()

    def _first_weights(self) -> torch.Tensor:
        return next(bare(self.network).parameters()).detach().cpu().clone()

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, Any]:
        """nnU-Net's optimiser with a warm-up."""
        optimizer, _ = super().configure_optimizers()
        warmup = min(self.settings.finetuning.warmup_epochs, self.num_epochs // 10)
        return optimizer, WarmupPolyLRScheduler(optimizer, self.initial_lr, max(1, self.num_epochs), warmup)

    def on_train_start(self) -> None:
        """Carry the pretrained weights over before anything else, unless the network has its weights already."""
        if not self.was_initialized:
            self.initialize()
        if torch.equal(self._first_weights(), self._start):
            with plain_errors():
                self.carry_over()
        else:
            self.print_to_log_file(
                "The network has its weights already (--c or -pretrained_weights); nothing is carried over."
            )
        super().on_train_start()

    def carry_over(self) -> None:
        """Find the pretrained weights, copy what fits, and print the report."""
        network = network_identity(self.configuration_manager.configuration)
        path = find_pretrained(self.settings.finetuning.pretrained, Path(nnUNet_results), network)
        if path is None:
            self.print_to_log_file("Training starts from random weights (finetuning.pretrained is none).")
            return
        report = carry_over(read_weights(path), bare(self.network), str(path))
        self.print_to_log_file(f"Pretrained weights from {path}\n{report.table()}")

    def checkpoint_changes(self) -> dict[str, Any]:
        """The network is nnU-Net's own, so a bare nnU-Net may predict with it."""
        return {"trainer_name": "nnUNetTrainer"}

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """As nnU-Net; without a GPU not mirrored, which would take eight times as long, unless the plans say otherwise."""
        wish = self.settings.finetuning.validation_mirroring
        axes = self.inference_allowed_mirroring_axes
        if not (self.device.type != "cpu" if wish is None else wish):
            self.print_to_log_file(
                "The final validation does not mirror (finetuning.validation_mirroring turns it on)."
            )
            self.inference_allowed_mirroring_axes = None
        try:
            super().perform_actual_validation(save_probabilities)
        finally:
            self.inference_allowed_mirroring_axes = axes
