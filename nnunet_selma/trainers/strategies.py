"""Treatments of the pretrained part in fine-tuning: it stays frozen, is frozen for the first epochs, or is adapted at low rank.

That part is the encoder, or what the network's attribute `pretrained_part` names. `SelmaFinetuneTrainer` trains it like the rest. All
write the checkpoints of a plain network.
"""

from typing import Any

import torch

from nnunet_selma.errors import SelmaError
from nnunet_selma.finetuning.lora import adapter_state, add_lora, load_adapter_state, merged_state
from nnunet_selma.networks.parts import bare
from nnunet_selma.trainers.base import plain_errors
from nnunet_selma.trainers.fast_layers import FastConv3d, accelerate
from nnunet_selma.trainers.finetune import SelmaFinetuneTrainer


class SelmaFinetuneTrainer_FrozenEncoder(SelmaFinetuneTrainer):
    """The pretrained part stays as it is; the rest is trained (teams Zoomlin and Tonyxu of SELMA3D 2024)."""

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, Any]:
        """As in fine-tuning; frozen parameters are not the optimiser's, which would decay them, and no process waits for them."""
        self.pretrained().requires_grad_(False)
        return super().configure_optimizers()

    def on_train_epoch_start(self) -> None:
        """Start the epoch as nnU-Net does; running statistics are frozen too."""
        super().on_train_epoch_start()
        self.pretrained().eval()


class SelmaFinetuneTrainer_Unfreezing(SelmaFinetuneTrainer):
    """The pretrained part stays as it is for the first epochs, until the rest has learnt to read it; then all is trained.

    The optimiser has all parameters from the first epoch on, so that checkpoints from before and after are alike. Frozen parameters still
    get gradients, because DistributedDataParallel and clipping need them; they are cleared before the step, so that neither momentum nor
    weight decay acts.
    """

    def frozen_epochs(self) -> int:
        """As set, or a tenth of all epochs, at least one."""
        wish = self.settings.finetuning.frozen_epochs
        return max(1, self.num_epochs // 10) if wish is None else wish

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, Any]:
        """As in fine-tuning, with a second rise of the learning rate when all is trained."""
        if (self.settings.finetuning.frozen_epochs or 0) >= max(1, self.num_epochs):
            with plain_errors():
                raise SelmaError(
                    f"finetuning.frozen_epochs is {self.frozen_epochs()} of {self.num_epochs} epochs, so that nothing is ever unfrozen; "
                    "give fewer, or take SelmaFinetuneTrainer_FrozenEncoder"
                )
        self.pretrained()  # refuses a network without such a part
        optimizer, scheduler = super().configure_optimizers()
        optimizer.register_step_pre_hook(lambda *_: self._forget_gradients())
        return optimizer, scheduler

    def _forget_gradients(self) -> None:
        if self.current_epoch < self.frozen_epochs():
            for parameter in self.pretrained().parameters():
                parameter.grad = None

    def on_train_epoch_start(self) -> None:
        """Start the epoch as nnU-Net does; running statistics are frozen too."""
        super().on_train_epoch_start()
        if self.current_epoch < self.frozen_epochs():
            self.pretrained().eval()
        elif self.current_epoch == self.frozen_epochs():
            self.print_to_log_file("From this epoch on the whole network is trained.")


class SelmaFinetuneTrainer_LoRA(SelmaFinetuneTrainer):
    """The weights of the pretrained part are frozen and adapted by matrices of low rank; all else is trained (`nnunet_selma.finetuning.lora`).

    Checkpoints hold the plain weights of the adapted network and, so that a run goes on exactly, frozen weights and factors.
    """

    def initialize(self) -> None:
        """As in fine-tuning; all fast layers share the trials that are kept."""
        super().initialize()
        for layer in bare(self.network).modules():
            if isinstance(layer, FastConv3d):
                layer.trials = self.trials

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, Any]:
        """As in fine-tuning, over the factors in place of the weights they adapt."""
        part, settings = self.pretrained(), self.settings.finetuning
        if self.device.type == "cpu" and self.settings.cpu.fast_layers:
            accelerate(part, self.trials)  # an adapted layer has a class of its own, which is not exchanged later
        adapted = add_lora(part, settings.lora_rank, settings.lora_alpha)
        trained = sum(parameter.numel() for parameter in part.parameters() if parameter.requires_grad)
        self.print_to_log_file(f"{adapted} layers adapted at rank {settings.lora_rank}: {trained:,} parameters trained")
        return super().configure_optimizers()

    def carried_rates(self) -> dict[str, float]:
        """As in fine-tuning, but the factors, which are not carried over, learn at the full rate, and the encoder's biases and norms with them."""
        return {**super().carried_rates(), "encoder": 1.0}

    def checkpoint_changes(self) -> dict[str, Any]:
        """Plain weights, which a bare nnU-Net predicts with, and what they are made of."""
        network = bare(self.network)
        changes = {"network_weights": merged_state(network), "lora_state": adapter_state(network)}
        return {**super().checkpoint_changes(), **changes}

    def load_checkpoint(self, filename_or_checkpoint: dict[str, Any] | str) -> None:
        """Load as nnU-Net does, then restore frozen weights and factors."""
        super().load_checkpoint(filename_or_checkpoint)
        content = filename_or_checkpoint
        if isinstance(content, str):
            content = torch.load(content, map_location=self.device, weights_only=False)
        with plain_errors():
            load_adapter_state(bare(self.network), content.get("lora_state", {}))
