"""`SelmaFinetuneTrainer`: nnU-Net's segmentation training from pretrained weights; its variants are in `strategies`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from nnunetv2.paths import nnUNet_results
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import nn

from nnunet_selma.errors import SelmaError
from nnunet_selma.finetuning.ancestor import GIVEN, RANDOM, UNKNOWN, Ancestor, ancestor_of, in_words
from nnunet_selma.finetuning.calibration import Sample, fit, samples_of, shift_heads
from nnunet_selma.finetuning.losses import build_loss
from nnunet_selma.finetuning.pretrained import (
    CHOICE,
    ChosenPretraining,
    check_pretraining,
    choice_of_other_folds,
    find_pretrained,
    network_identity,
    no_pretraining,
    other_folds,
)
from nnunet_selma.finetuning.probing import fit_heads, read_voxels
from nnunet_selma.finetuning.transfer import carry_over, parts_of
from nnunet_selma.networks.parts import bare, pretrained_module, pretrained_part
from nnunet_selma.nnunet.checkpoints import ANCESTOR, check_finite, read_checkpoint
from nnunet_selma.nnunet.voxel_sizes import check_voxel_sizes, median_spacing, preprocessed_spacings
from nnunet_selma.running.json_files import write_json, write_text
from nnunet_selma.trainers.base import SelmaTrainer, facts_of, label_channels
from nnunet_selma.trainers.failures import plain_errors
from nnunet_selma.trainers.warmup import WarmupPolyLRScheduler

CALIBRATION = "calibration.json"
NOT_VALIDATED = "not_validated"
"""Only entry of `validation/summary.json`, a sentence, and name of a file beside it, where the final validation was left out."""
_PROBED_BATCHES = 20
"""Training batches on which the segmentation heads are fitted."""
_MOSTLY = 0.5
"""Least share of a part's parameters for it to count as carried over, and to learn at its rate in the settings."""


class SelmaFinetuneTrainer(SelmaTrainer):
    """nnU-Net's training with pretrained weights and a warm-up.

    The weights are, in this order: those of nnU-Net's `-pretrained_weights`; the path in the plans (`finetuning.pretrained`); the pretraining
    that other folds started from; the newest pretraining in nnUNet_results that suits this training, those of the same network first. A run
    that goes on (`--c`) or only validates (`--val`) needs none of them.
    """

    section = "finetuning"
    goes_on: bool = False
    """True after a checkpoint of this training was loaded."""
    reads_carried: bool = False
    """True if the finest step of the decoder, whose features the finest head reads, was carried over in this process."""
    keeps_head: bool = False
    """True if the segmentation heads were carried over in this process."""
    has_trained: bool = False
    """True after a training step in this process."""
    ancestor: Ancestor = UNKNOWN
    """Origin of the weights that this training started from, in every checkpoint under `selma_ancestor`."""

    def initialize(self) -> None:
        """Initialise as nnU-Net does, and keep some random weights, to find out later if they were replaced."""
        super().initialize()
        self._start = self._first_weights()

    def _first_weights(self) -> torch.Tensor:
        # not a bias, which starts at zero and may stay there
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
        # nnU-Net logs the learning rate of the first group: of the heads, which have a rate below 1 only if they are kept
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
        """Number of epochs in which the pretrained part is frozen; after them the learning rate rises again."""
        return 0

    @plain_errors()
    def pretrained(self) -> nn.Module:
        """The part of the network that was pretrained; raises `SelmaError` if the network has no such part."""
        network = bare(self.network)
        try:
            return pretrained_module(network)
        except AttributeError as error:
            raise SelmaError(
                f"{type(network).__name__} has no part {pretrained_part(network)!r}, which {type(self).__name__} needs; name its pretrained "
                "part in an attribute pretrained_part of the class, or train all of it with SelmaFinetuneTrainer"
            ) from error

    @plain_errors()
    def _build_loss(self) -> nn.Module:
        """nnU-Net's loss, or the one that `finetuning.loss` names, weighted over the outputs as nnU-Net does."""
        nnunets: nn.Module = super()._build_loss()
        name, configuration = self.settings.finetuning.loss, self.configuration_manager
        if name == "dice_ce":
            return nnunets
        if self.label_manager.has_regions:
            raise SelmaError(
                f"finetuning.loss is {name}, which needs one class a voxel, and this dataset has regions; set it to dice_ce"
            )
        loss = build_loss(
            name,
            batch_dice=configuration.batch_dice,
            ignore_label=self.label_manager.ignore_label,
            ddp=self.is_ddp,
            spacing=configuration.spacing[-len(configuration.patch_size) :],
            patch_size=configuration.patch_size,
        )
        if isinstance(nnunets, DeepSupervisionWrapper):
            loss = DeepSupervisionWrapper(loss, nnunets.weight_factors)
        return loss

    @plain_errors()
    def on_train_start(self) -> None:
        """Carry the pretrained weights over, unless the network has its weights already, then start as nnU-Net does and fit the heads."""
        if not self.was_initialized:
            self.initialize()
        self._check_voxel_sizes()
        if self.goes_on:
            self.print_to_log_file("The network goes on with its own weights (--c); nothing is carried over.")
        elif torch.equal(self._first_weights(), self._start):
            self.carry_over()
        else:
            check_finite(bare(self.network).state_dict(), "-pretrained_weights")
            # nnU-Net leaves the heads random there
            self.slow_down({part: rate for part, rate in self.carried_rates().items() if part != "heads"})
            self.reads_carried = True
            self.ancestor = GIVEN
            self.print_to_log_file(
                "The network has weights of nnU-Net's -pretrained_weights already, without its heads; nothing is carried over, and finetuning.carry "
                "and finetuning.head change nothing. Their voxel size, normalisation and channels could not be compared with those of this training."
            )
        self.print_to_log_file(in_words(self.ancestor))
        super().on_train_start()
        fitted = self.keeps_head or (self.reads_carried and self.settings.finetuning.fit_head and self.fit_heads())
        slowest = min(float(group.get("rate", 1.0)) for group in self.optimizer.param_groups)
        if slowest < 1 and not fitted and not self.goes_on:
            self.print_to_log_file(
                f"WARNING: the segmentation heads start from random weights above parts that learn at {slowest:g} of the rate, and may mark "
                "nothing for hundreds of steps; raise finetuning.encoder_rate and finetuning.decoder_rate for a short training."
            )

    def _check_voxel_sizes(self) -> None:
        """Raise `SelmaError` if the plans are those of another dataset, in another unit."""
        spacings = preprocessed_spacings(Path(self.preprocessed_dataset_folder))
        if spacings:
            dataset = self.plans_manager.dataset_name
            check_voxel_sizes(
                self.plans_manager.plans,
                self.configuration_manager.configuration,
                {f"{dataset}, in the median of its cases,": median_spacing(spacings)},
                f"the plans were made from other data; plan this dataset with nnUNetv2_plan_and_preprocess -d {int(dataset[7:10])}",
            )

    def fit_heads(self) -> bool:
        """Fit the segmentation heads to the carried-over features (`nnunet_selma.finetuning.probing`) on batches of all processes.

        Returns False if the heads stay random.
        """
        network, labels = bare(self.network), self.label_manager
        batches = (next(self.dataloader_train) for _ in range(_PROBED_BATCHES))
        voxels = read_voxels(network, batches, self.device, labels.ignore_label, regions=labels.has_regions)
        shares = self.of_all_processes(voxels)
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
        """Load as nnU-Net does, with the ancestor; nothing is carried over later, although frozen random weights look untouched."""
        super().load_checkpoint(filename_or_checkpoint)
        self.goes_on = True
        content = filename_or_checkpoint
        if isinstance(content, str):
            content = torch.load(content, map_location="cpu", weights_only=False)
        self.ancestor = content.get(ANCESTOR, UNKNOWN)

    def carry_over(self) -> None:
        """Find the pretrained weights, copy what fits, and print the report.

        Raises:
            SelmaError: the pretraining that the plans name does not suit this training, or none of those in nnUNet_results does.
        """
        candidates = self._candidates()
        if not candidates:
            self.ancestor = RANDOM
            self.print_to_log_file("Training starts from random weights (finetuning.pretrained is none).")
            return
        refused: list[str] = []
        for path in candidates:
            try:
                self._carry_over(path)
                break
            except SelmaError as error:
                if self.settings.finetuning.pretrained != "newest":
                    raise
                self.print_to_log_file(f"WARNING: not taken: {error}.")
                refused.append(str(error))
        else:
            raise no_pretraining("; ".join(refused))
        if others := [other for other in candidates if other != path]:
            listed = "".join(f"\n  {other}" for other in others)
            self.print_to_log_file(
                f"WARNING: {path} is taken, of {len(candidates)} finished pretrainings; the others, for finetuning.pretrained, are{listed}"
            )

    def _carry_over(self, path: Path) -> None:
        """Copy what fits from a checkpoint and print the report; raises `SelmaError`, with the network unchanged, if it does not suit."""
        warnings = check_pretraining(path, facts_of(self))
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
        for warning in warnings:
            self.print_to_log_file(f"WARNING: {warning}.")
        chosen = ChosenPretraining.from_file(path)
        if self.local_rank == 0:
            chosen.write(Path(self.output_folder).parent)
        self.ancestor = ancestor_of(chosen, checkpoint)
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

    def _candidates(self) -> list[Path]:
        """Checkpoints to try; for "newest", only that which the other folds of this training started from, if there are any."""
        setting = self.settings.finetuning.pretrained
        fold = Path(self.output_folder)
        choice = choice_of_other_folds(fold) if setting == "newest" else None
        if choice is not None:
            self.print_to_log_file(f"The other folds started from {choice.path}, and so does this one.")
            return [choice.path]
        if setting == "newest" and other_folds(fold):
            self.print_to_log_file(
                f"WARNING: which pretraining the other folds started from is not noted in {CHOICE}; this one looks for its own."
            )
        network = network_identity(self.configuration_manager.configuration)
        return find_pretrained(setting, Path(nnUNet_results), network)

    def slow_down(self, rates: Mapping[str, float]) -> None:
        """Set factors on the learning rate of parts of the network, as `parts_of` names them; other parts have 1."""
        for group in self.optimizer.param_groups:
            group["rate"] = rates.get(group["part"], 1.0)

    def carried_rates(self) -> dict[str, float]:
        """Factor on the learning rate of each part of the network, as `parts_of` names it, if it was carried over."""
        settings = self.settings.finetuning
        later = dict.fromkeys(("decoder", "last step", "heads"), settings.decoder_rate)
        return {"encoder": settings.encoder_rate, **later}

    def on_train_end(self) -> None:
        """Fit the decision threshold, unless the run was finished already, then write the final checkpoint as nnU-Net does."""
        if self.settings.finetuning.calibrate and self.has_trained:
            self.calibrate()
        super().on_train_end()

    def calibrate(self) -> None:
        """Fit the decision threshold on validation cases and fold it into the bias of the segmentation head (`nnunet_selma.finetuning.calibration`).

        The result is logged and written as calibration.json beside the checkpoints. If nothing can be fitted, the reason is logged, and the
        training ends without.
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
        """Logits and labels of all cases, the same in every process; each process predicts its share of the cases.

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
        shares = self.of_all_processes((samples, failure))
        failures = [failure for _, failure in shares if failure]
        if failures:
            raise SelmaError(failures[0])
        return [sample for share, _ in shares for sample in share]

    def checkpoint_changes(self) -> dict[str, Any]:
        """The ancestor, and nnU-Net's trainer as the trainer's name, so that nnU-Net alone can predict; a subclass with its own network keeps its name."""
        stock = type(self).build_network_architecture is nnUNetTrainer.build_network_architecture
        return {ANCESTOR: self.ancestor, **({"trainer_name": "nnUNetTrainer"} if stock else {})}

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """Validate as nnU-Net does, if `finetuning.final_validation` is set; on a CPU without mirroring, which would take eight times as long."""
        if not self.settings.finetuning.final_validation:
            self.print_to_log_file("The final validation is left out (finetuning.final_validation turns it on).")
            self.note_missing_validation()
            return
        if self.local_rank == 0:
            self.missing_validation.unlink(missing_ok=True)
        axes = self.inference_allowed_mirroring_axes
        if self.device.type == "cpu":
            self.print_to_log_file("The final validation does not mirror on a CPU.")
            self.inference_allowed_mirroring_axes = None
        try:
            super().perform_actual_validation(save_probabilities)
        finally:
            self.inference_allowed_mirroring_axes = axes

    @property
    def missing_validation(self) -> Path:
        """A file among the predictions of the validation that is no image, where the final validation was left out."""
        return Path(self.output_folder) / "validation" / f"{NOT_VALIDATED}{self.dataset_json['file_ending']}"

    def note_missing_validation(self) -> None:
        """Write `validation/summary.json` without scores, because nnUNetv2_export_model_to_zip demands the file.

        nnUNetv2_find_best_configuration reads no summary of a fold; it takes a fold for validated that has the folder, and would leave out
        the cases of this one. The file beside the summary is no image, so that the command ends with an error that names it. Scores of an
        earlier validation of the same weights stay.
        """
        summary = self.missing_validation.with_name("summary.json")
        if self.local_rank != 0 or (summary.is_file() and not self.has_trained):
            return
        sentence = "no case of this fold was predicted or scored (finetuning.final_validation=false)"
        summary.parent.mkdir(exist_ok=True)
        write_text(self.missing_validation, f"{sentence}\n")
        write_json(summary, {NOT_VALIDATED: sentence})
