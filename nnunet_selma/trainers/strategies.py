"""Variants of fine-tuning: the pretrained part stays frozen, is frozen for the first epochs, or is adapted at low rank.

The pretrained part is the encoder, or the submodule in the network's attribute `pretrained_part`. All variants write checkpoints of a plain
network.
"""

from typing import Any

import torch

from nnunet_selma.errors import SelmaError
from nnunet_selma.finetuning.lora import adapter_state, add_lora, load_adapter_state, merged_state
from nnunet_selma.networks.parts import bare
from nnunet_selma.trainers.failures import plain_errors
from nnunet_selma.trainers.fast_layers import FastConv3d, accelerate
from nnunet_selma.trainers.finetune import SelmaFinetuneTrainer


class SelmaFinetuneTrainer_FrozenEncoder(SelmaFinetuneTrainer):
    """The pretrained part is frozen, the rest is trained (teams Zoomlin and Tonyxu of SELMA3D 2024)."""

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, Any]:
        """Freeze the pretrained part, so that the optimiser does not decay it and no process waits for its gradients."""
        self.pretrained().requires_grad_(False)
        return super().configure_optimizers()

    def on_train_epoch_start(self) -> None:
        """Start the epoch as nnU-Net does, with the running statistics of a frozen part frozen too."""
        super().on_train_epoch_start()
        self.pretrained().eval()


class SelmaFinetuneTrainer_Unfreezing(SelmaFinetuneTrainer):
    """The pretrained part is frozen for the first epochs, until the rest has learnt to read its features; then all is trained.

    The optimiser has all parameters from the first epoch on, so that checkpoints from before and after are alike. Frozen parameters still
    get gradients, because DistributedDataParallel and clipping need them; they are cleared before the step, so that neither momentum nor
    weight decay acts.
    """

    def frozen_epochs(self) -> int:
        """The setting, or a tenth of all epochs, at least one."""
        epochs = self.settings.finetuning.frozen_epochs
        return max(1, self.num_epochs // 10) if epochs is None else epochs

    @plain_errors()
    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, Any]:
        """The optimiser of all parameters; gradients of the pretrained part are cleared in the first epochs.

        Raises:
            SelmaError: as many frozen epochs as epochs, or a network without a pretrained part.
        """
        if (self.settings.finetuning.frozen_epochs or 0) >= max(1, self.num_epochs):
            raise SelmaError(
                f"finetuning.frozen_epochs is {self.frozen_epochs()} of {self.num_epochs} epochs, so that nothing is ever unfrozen; "
                "give fewer, or take SelmaFinetuneTrainer_FrozenEncoder"
            )
        self.pretrained()
        optimizer, scheduler = super().configure_optimizers()
        optimizer.register_step_pre_hook(lambda *_: self._clear_gradients())
        return optimizer, scheduler

    def _clear_gradients(self) -> None:
        if self.current_epoch < self.frozen_epochs():
            for parameter in self.pretrained().parameters():
                parameter.grad = None

    def on_train_epoch_start(self) -> None:
        """Start the epoch as nnU-Net does, with the running statistics of a frozen part frozen too."""
        super().on_train_epoch_start()
        if self.current_epoch < self.frozen_epochs():
            self.pretrained().eval()
        elif self.current_epoch == self.frozen_epochs():
            self.print_to_log_file("From this epoch on the whole network is trained.")


class SelmaFinetuneTrainer_LoRA(SelmaFinetuneTrainer):
    """The weights of the pretrained part are frozen and adapted by matrices of low rank; the rest is trained (`nnunet_selma.finetuning.lora`).

    Checkpoints hold the adapted weights as those of a plain network, and the frozen weights and factors, so that a run goes on exactly.
    """

    def initialize(self) -> None:
        """Initialise as in fine-tuning; all fast layers share the trainer's trials."""
        super().initialize()
        for layer in bare(self.network).modules():
            if isinstance(layer, FastConv3d):
                layer.trials = self.trials

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, Any]:
        """The optimiser of the low-rank factors and all parameters that are not adapted."""
        part, settings = self.pretrained(), self.settings.finetuning
        if self.device.type == "cpu" and self.settings.cpu.fast_layers:
            accelerate(part, self.trials)  # now, because an adapted layer changes its class and is not exchanged later
        adapted = add_lora(part, settings.lora_rank, settings.lora_alpha)
        trained = sum(parameter.numel() for parameter in part.parameters() if parameter.requires_grad)
        self.print_to_log_file(f"{adapted} layers adapted at rank {settings.lora_rank}: {trained:,} parameters trained")
        return super().configure_optimizers()

    def carried_rates(self) -> dict[str, float]:
        """The rates of fine-tuning, but 1 for the encoder, because its low-rank factors are not carried over."""
        return {**super().carried_rates(), "encoder": 1.0}

    def checkpoint_changes(self) -> dict[str, Any]:
        """The adapted weights, with which nnU-Net alone can predict, and the frozen weights and factors."""
        network = bare(self.network)
        changes = {"network_weights": merged_state(network), "lora_state": adapter_state(network)}
        return {**super().checkpoint_changes(), **changes}

    @plain_errors()
    def load_checkpoint(self, filename_or_checkpoint: dict[str, Any] | str) -> None:
        """Load as nnU-Net does, then restore frozen weights and factors."""
        super().load_checkpoint(filename_or_checkpoint)
        content = filename_or_checkpoint
        if isinstance(content, str):
            content = torch.load(content, map_location=self.device, weights_only=False)
        load_adapter_state(bare(self.network), content.get("lora_state", {}))
