"""`SelmaFinetuneTrainer`: nnU-Net's segmentation training that starts from pretrained weights; `strategies` has its variants."""

from pathlib import Path
from typing import Any

import torch
from nnunetv2.paths import nnUNet_results
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from torch import nn

from nnunet_selma.checkpoints import read_checkpoint
from nnunet_selma.errors import SelmaError
from nnunet_selma.losses import build_loss
from nnunet_selma.pretexts.base import pretrained_part
from nnunet_selma.pretrained import find_pretrained, network_identity
from nnunet_selma.trainers.base import SelmaTrainer, bare, plain_errors
from nnunet_selma.transfer import carry_over


class WarmupPolyLRScheduler(PolyLRScheduler):
    """nnU-Net's polynomial decay, multiplied by a linear rise over the first epochs, and again over those from `restart` on."""

    def __init__(
        self, optimizer: torch.optim.Optimizer, initial_lr: float, max_steps: int, warmup_steps: int, restart: int = 0
    ) -> None:
        self.warmup_steps, self.restart = warmup_steps, restart
        super().__init__(optimizer, initial_lr, max_steps)

    def step(self, current_step: int | None = None) -> None:
        """Set the learning rate of an epoch."""
        epoch = self.ctr if current_step in (None, -1) else current_step
        super().step(current_step)
        since = epoch - self.restart if epoch >= self.restart else epoch
        factor = min(1.0, (since + 1) / (self.warmup_steps + 1))
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
    goes_on: bool = False
    """Whether a checkpoint of this training was loaded."""

    def initialize(self) -> None:
        """As nnU-Net; remembers the random weights, to see whether somebody replaced them."""
        super().initialize()
        self._start = self._first_weights()

    def _first_weights(self) -> torch.Tensor:
        # a bias would not do: it starts at zero, and may stay there
        weights = (parameter for parameter in bare(self.network).parameters() if parameter.ndim > 1)
        return next(weights).detach().cpu().clone()

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, Any]:
        """nnU-Net's optimiser with a warm-up."""
        optimizer, _ = super().configure_optimizers()
        warmup = min(self.settings.finetuning.warmup_epochs, self.num_epochs // 10)
        steps = max(1, self.num_epochs)
        return optimizer, WarmupPolyLRScheduler(optimizer, self.initial_lr, steps, warmup, self.frozen_epochs())

    def frozen_epochs(self) -> int:
        """Epochs in which the pretrained part is left alone; after them the learning rate rises anew."""
        return 0

    def pretrained(self) -> nn.Module:
        """The part of the network that was pretrained."""
        network = bare(self.network)
        name = pretrained_part(network)
        try:
            part: nn.Module = network.get_submodule(name)
        except AttributeError as error:
            with plain_errors():
                raise SelmaError(
                    f"{type(network).__name__} has no part {name!r}, which {type(self).__name__} treats by itself; name its pretrained "
                    "part in an attribute pretrained_part of the class, or train all of it with SelmaFinetuneTrainer"
                ) from error
        return part

    def _build_loss(self) -> nn.Module:
        """nnU-Net's loss, or the one that `finetuning.loss` names, weighted over the outputs as nnU-Net does."""
        nnunets: nn.Module = super()._build_loss()
        name, own = self.settings.finetuning.loss, self.configuration_manager
        if name == "dice_ce":
            return nnunets
        if self.label_manager.has_regions:
            with plain_errors():
                raise SelmaError(
                    f"finetuning.loss is {name}, which needs one class a voxel, and this dataset has regions; set it to dice_ce"
                )
        loss = build_loss(
            name, batch_dice=own.batch_dice, ignore_label=self.label_manager.ignore_label, ddp=self.is_ddp,
            spacing=own.spacing[-len(own.patch_size) :], patch_size=own.patch_size,
        )  # fmt: skip
        if isinstance(nnunets, DeepSupervisionWrapper):
            loss = DeepSupervisionWrapper(loss, nnunets.weight_factors)
        return loss

    def on_train_start(self) -> None:
        """Carry the pretrained weights over before anything else, unless the network has its weights already."""
        if not self.was_initialized:
            self.initialize()
        if not self.goes_on and torch.equal(self._first_weights(), self._start):
            with plain_errors():
                self.carry_over()
        else:
            self.print_to_log_file(
                "The network has its weights already (--c or -pretrained_weights); nothing is carried over."
            )
        super().on_train_start()

    def load_checkpoint(self, filename_or_checkpoint: dict[str, Any] | str) -> None:
        """As nnU-Net; nothing is carried over later, though what is frozen and was not pretrained looks untouched."""
        super().load_checkpoint(filename_or_checkpoint)
        self.goes_on = True

    def carry_over(self) -> None:
        """Find the pretrained weights, copy what fits, and print the report."""
        network = network_identity(self.configuration_manager.configuration)
        path = find_pretrained(self.settings.finetuning.pretrained, Path(nnUNet_results), network)
        if path is None:
            self.print_to_log_file("Training starts from random weights (finetuning.pretrained is none).")
            return
        report = carry_over(
            read_checkpoint(path), bare(self.network), str(path), patch_size=self.configuration_manager.patch_size
        )
        self.print_to_log_file(f"Pretrained weights from {path}\n{report.table()}")

    def checkpoint_changes(self) -> dict[str, Any]:
        """The network is nnU-Net's own, so a bare nnU-Net may predict with it."""
        return {"trainer_name": "nnUNetTrainer"}

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """As nnU-Net, if wished for; without a GPU not mirrored, which would take eight times as long, unless the plans say otherwise."""
        if not self.settings.finetuning.final_validation:
            self.print_to_log_file("The final validation is left out (finetuning.final_validation turns it on).")
            return
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
