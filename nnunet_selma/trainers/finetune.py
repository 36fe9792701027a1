"""`SelmaFinetuneTrainer`: nnU-Net's segmentation training that starts from pretrained weights; `strategies` has its variants."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from nnunetv2.paths import nnUNet_results
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import nn

from nnunet_selma.errors import SelmaError
from nnunet_selma.finetuning.calibration import Sample, fit, samples_of, shift_heads
from nnunet_selma.finetuning.losses import build_loss
from nnunet_selma.finetuning.pretrained import (
    CHOICE,
    SUMMARY,
    Choice,
    choice_of_other_folds,
    differences,
    find_pretrained,
    network_identity,
    other_folds,
)
from nnunet_selma.finetuning.probing import fit_heads, read_voxels
from nnunet_selma.finetuning.transfer import carry_over, parts_of
from nnunet_selma.networks.parts import bare, pretrained_part
from nnunet_selma.nnunet.checkpoints import check_finite, read_checkpoint
from nnunet_selma.running.json_files import read_json, write_json
from nnunet_selma.trainers.base import SelmaTrainer, facts_of, label_channels, plain_errors

CALIBRATION = "calibration.json"
_PROBED_BATCHES = 20
_MOSTLY = 0.5
"""Share of a part from which on it counts as carried over, and learns at the rate that the settings say."""


class WarmupPolyLRScheduler(PolyLRScheduler):
    """nnU-Net's polynomial decay from epoch to epoch, times a linear rise over the first steps, times the rate of each parameter group.

    Args:
        optimizer: a parameter group may name a factor under "rate"; without one it is 1.
        initial_lr: the highest learning rate.
        max_steps: number of epochs.
        steps_per_epoch: training steps in an epoch.
        warmup_steps: training steps of the rise.
        restart: epoch from which on the learning rate rises anew.
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
        begin = self.restart if epoch >= self.restart else 0
        self.next_step = (epoch - begin) * self.steps_per_epoch
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


class SelmaFinetuneTrainer(SelmaTrainer):
    """nnU-Net with pretrained weights and a warm-up; otherwise nnU-Net.

    The weights come from, in this order: nnU-Net's own `-pretrained_weights`, the path in the plans
    (`finetuning.pretrained`), the pretraining that other folds started from, the newest one of the same network in nnUNet_results. A run that goes on (`--c`) and
    one that only validates (`--val`) need none of them.
    """

    section = "finetuning"
    goes_on: bool = False
    """True once a checkpoint of this training was loaded."""
    reads_carried: bool = False
    """True if the finest step of the decoder, whose features the finest head reads, was carried over in this process."""
    keeps_head: bool = False
    """True if the segmentation heads were carried over in this process."""
    has_trained: bool = False
    """True once an epoch was trained in this process."""

    def initialize(self) -> None:
        """Initialise as nnU-Net does, and remember the random weights, to see later whether they were replaced."""
        super().initialize()
        self._start = self._first_weights()

    def _first_weights(self) -> torch.Tensor:
        # a bias would not do: it starts at zero, and may stay there
        weights = (parameter for parameter in bare(self.network).parameters() if parameter.ndim > 1)
        return next(weights).detach().cpu().clone()

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, Any]:
        """nnU-Net's optimiser with a warm-up."""
        optimizer, _ = super().configure_optimizers()
        length = self.num_iterations_per_epoch
        warmup = min(self.settings.finetuning.warmup_steps, self.num_epochs * length // 10)
        return optimizer, WarmupPolyLRScheduler(
            optimizer,
            self.initial_lr,
            max(1, self.num_epochs),
            steps_per_epoch=length,
            warmup_steps=warmup,
            restart=self.frozen_epochs(),
        )

    def parameter_groups(self) -> list[dict[str, Any]]:
        """A group for each part of the network, so that what was carried over may learn more slowly than the rest."""
        network = bare(self.network)
        part_of = parts_of(network)
        # nnU-Net logs the learning rate of the first group: that of the heads, which is slowed down only where they are kept
        groups: dict[str, list[nn.Parameter]] = {"heads": []}
        for name, parameter in network.named_parameters():
            if parameter.requires_grad:
                groups.setdefault(part_of(name), []).append(parameter)
        return [{"params": parameters, "part": part, "rate": 1.0} for part, parameters in groups.items() if parameters]

    def train_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Train as nnU-Net does, at the learning rates of this step."""
        self.has_trained = True
        self.lr_scheduler.before_step()
        result: dict[str, Any] = super().train_step(batch)
        return result

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
            name,
            batch_dice=own.batch_dice,
            ignore_label=self.label_manager.ignore_label,
            ddp=self.is_ddp,
            spacing=own.spacing[-len(own.patch_size) :],
            patch_size=own.patch_size,
        )
        if isinstance(nnunets, DeepSupervisionWrapper):
            loss = DeepSupervisionWrapper(loss, nnunets.weight_factors)
        return loss

    def on_train_start(self) -> None:
        """Carry the pretrained weights over before anything else, unless the network has its weights already."""
        if not self.was_initialized:
            self.initialize()
        if self.goes_on:
            self.print_to_log_file("The network goes on with its own weights (--c); nothing is carried over.")
        elif torch.equal(self._first_weights(), self._start):
            with plain_errors():
                self.carry_over()
        else:
            with plain_errors():
                check_finite(bare(self.network).state_dict(), "-pretrained_weights")
            # nnU-Net leaves the heads random there
            self.slow_down({part: rate for part, rate in self.carried_rates().items() if part != "heads"})
            self.reads_carried = True
            self.print_to_log_file(
                "The network has weights of nnU-Net's -pretrained_weights already, without its heads; nothing is carried over, and finetuning.carry "
                "and finetuning.head change nothing."
            )
        super().on_train_start()
        fitted = self.keeps_head or (self.reads_carried and self.settings.finetuning.fit_head and self.fit_heads())
        slowest = min(float(group.get("rate", 1.0)) for group in self.optimizer.param_groups)
        if slowest < 1 and not fitted and not self.goes_on:
            self.print_to_log_file(
                f"WARNING: the segmentation heads start from random weights above parts that learn at {slowest:g} of the rate, and may mark "
                "nothing for hundreds of steps; raise finetuning.encoder_rate and finetuning.decoder_rate for a short training."
            )

    def fit_heads(self) -> bool:
        """Fit the segmentation heads to what was carried over (`nnunet_selma.finetuning.probing`), to the batches of all processes; False if they stay random."""
        network, labels = bare(self.network), self.label_manager
        batches = (next(self.dataloader_train) for _ in range(_PROBED_BATCHES))
        voxels = read_voxels(network, batches, self.device, labels.ignore_label, regions=labels.has_regions)
        if self.is_ddp:
            shares: list[Any] = [None] * torch.distributed.get_world_size()
            torch.distributed.all_gather_object(shares, voxels)
            voxels = [[part for share in shares for part in share[head]] for head in range(len(voxels))]
        changes = fit_heads(network, voxels)
        if changes:
            before, after = changes[-1]
            self.print_to_log_file(
                f"The segmentation heads were fitted to what was carried over (finetuning.fit_head): cross entropy {before:.3f} before, "
                f"{after:.3f} after, on {_PROBED_BATCHES} batches."
            )
        return bool(changes)

    def load_checkpoint(self, filename_or_checkpoint: dict[str, Any] | str) -> None:
        """Load as nnU-Net does; nothing is carried over later, though frozen random weights look untouched."""
        super().load_checkpoint(filename_or_checkpoint)
        self.goes_on = True

    def carry_over(self) -> None:
        """Find the pretrained weights, copy what fits, and print the report."""
        path = self._pretraining()
        if path is None:
            self.print_to_log_file("Training starts from random weights (finetuning.pretrained is none).")
            return
        settings, checkpoint = self.settings.finetuning, read_checkpoint(path)
        report = carry_over(
            checkpoint,
            bare(self.network),
            str(path),
            patch_size=self.configuration_manager.patch_size,
            carry=settings.carry,
            keep_head=settings.head == "keep",
            label_channels=label_channels(self),
        )
        self.keeps_head = settings.head == "keep"
        carried = {part for part in self.carried_rates() if report.share_of(part) > _MOSTLY} - {"heads"}
        carried |= {"heads"} if self.keeps_head else set()
        rates = {part: rate for part, rate in self.carried_rates().items() if part in carried}
        self.slow_down(rates)
        self.reads_carried = report.share_of("last step") > _MOSTLY
        table = report.table(rates, adaptive=settings.optimizer == "adamw")
        self.print_to_log_file(
            f"Pretrained weights from {path}{f', entry {checkpoint.place}' if checkpoint.place else ''}\n{table}"
        )

    def _pretraining(self) -> Path | None:
        """The checkpoint to start from; of "newest", the one that the other folds of this training started from, if there are any."""
        wish = self.settings.finetuning.pretrained
        fold = Path(self.output_folder)
        choice = choice_of_other_folds(fold) if wish == "newest" else None
        if choice is not None:
            self.print_to_log_file(f"The other folds started from {choice.path}, and so does this one.")
            path = choice.path
        else:
            candidates = find_pretrained(
                wish, Path(nnUNet_results), network_identity(self.configuration_manager.configuration)
            )
            if not candidates:
                return None
            path, others = candidates[0], candidates[1:]
            if others:
                listed = "".join(f"\n  {other}" for other in others)
                self.print_to_log_file(
                    f"WARNING: the newest of {len(candidates)} pretrainings is taken; the others, for finetuning.pretrained, are{listed}"
                )
            if wish == "newest" and other_folds(fold):
                self.print_to_log_file(
                    f"WARNING: which pretraining the other folds started from is not noted in {CHOICE}; this one starts from {path}."
                )
            if self.local_rank == 0:
                Choice.from_file(path).write(fold.parent)
        summary = path.parent / SUMMARY
        for sentence in differences(read_json(summary), facts_of(self)) if summary.is_file() else ():
            self.print_to_log_file(f"WARNING: {sentence}.")
        return path

    def slow_down(self, rates: Mapping[str, float]) -> None:
        """Let parts of the network, as `parts_of` names them, learn at these shares of the learning rate, and all others at all of it."""
        for group in self.optimizer.param_groups:
            group["rate"] = rates.get(group["part"], 1.0)

    def carried_rates(self) -> dict[str, float]:
        """Part of the network, as `parts_of` names it, to the factor on its learning rate if it was carried over."""
        settings = self.settings.finetuning
        later = dict.fromkeys(("decoder", "last step", "heads"), settings.decoder_rate)
        return {"encoder": settings.encoder_rate, **later}

    def on_train_end(self) -> None:
        """Fit the decision threshold, then write the final checkpoint as nnU-Net does; a run that was finished already is not fitted again."""
        if self.settings.finetuning.calibrate and self.has_trained:
            self.calibrate()
        super().on_train_end()

    def calibrate(self) -> None:
        """Fit the decision threshold on validation cases and fold it into the bias of the segmentation head (`nnunet_selma.finetuning.calibration`).

        The result is logged and written as calibration.json beside the checkpoints. Where nothing can be fitted, the log says why, and the
        training ends as it would have without.
        """
        self.print_to_log_file("Fitting the decision threshold (finetuning.calibrate)")
        labels = self.label_manager
        try:
            samples = self._calibration_samples()
            if labels.has_regions:
                calibration = fit(samples, labels.foreground_regions, labels.regions_class_order)
            else:
                calibration = fit(samples)
        except SelmaError as error:
            self.print_to_log_file(f"WARNING: the decision threshold stays as it is: {error}.")
            return
        shift_heads(self.network, calibration.offsets)
        self.print_to_log_file(calibration.sentence())
        if self.local_rank == 0 and not self.disable_checkpointing:
            write_json(Path(self.output_folder) / CALIBRATION, calibration.as_json())

    def _calibration_samples(self) -> list[Sample]:
        """Logits and labels of all cases, the same in every process; each predicts its share of them.

        Raises:
            SelmaError: in every process, if one of them could not predict its share.
        """
        failure: str | None = None
        samples: list[Sample] = []
        try:
            shift_heads(self.network, [0.0] * self.label_manager.num_segmentation_heads)
            samples = samples_of(self)
        except (SelmaError, RuntimeError, OSError, MemoryError) as error:
            failure = str(error) or type(error).__name__
        shares: list[Any] = [(samples, failure)]
        if self.is_ddp:
            shares = [None] * torch.distributed.get_world_size()
            torch.distributed.all_gather_object(shares, (samples, failure))
        failures = [failure for _, failure in shares if failure]
        if failures:
            raise SelmaError(failures[0])
        return [sample for share, _ in shares for sample in share]

    def checkpoint_changes(self) -> dict[str, Any]:
        """nnU-Net's trainer, so that a bare nnU-Net may predict with the checkpoint; a subclass that builds its own network keeps its name."""
        stock = type(self).build_network_architecture is nnUNetTrainer.build_network_architecture
        return {"trainer_name": "nnUNetTrainer"} if stock else {}

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """Validate as nnU-Net does, if the settings say so; without a GPU not mirrored, which would take eight times as long, unless the plans say otherwise."""
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
