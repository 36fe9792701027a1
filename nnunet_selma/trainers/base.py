"""Base of both trainers: settings from the plans, checkpoints that are whole or absent, checks for lost trainings."""

import os
import random
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import nn

from nnunet_selma.errors import SelmaError
from nnunet_selma.networks.parts import bare
from nnunet_selma.nnunet.preprocessed_cases import faults_of_cases
from nnunet_selma.nnunet.settings import FinetuningSettings, PretrainingSettings, read_settings
from nnunet_selma.nnunet.voxel_sizes import ORIGINAL
from nnunet_selma.running.cores import keep_freed_memory, share_cores, usable_cores
from nnunet_selma.running.devices import available_device
from nnunet_selma.running.json_files import read_json, write_json
from nnunet_selma.running.whole_files import whole_file
from nnunet_selma.trainers.failures import are_finite, causes_named, plain_errors
from nnunet_selma.trainers.fast_layers import Trials, accelerate

_LOADING = "nnUNet_n_proc_DA"
_WRITING = ("PytorchStreamWriter", "unexpected pos", "cannot be opened", "Parent directory")
"""Words in PyTorch's errors about files that cannot be written."""
_FOLDS = 5
"""Number of folds in nnU-Net."""
# of nnUNetTrainer, and of nnU-Net's trainers for transformers (Primus); docs/results.md has AdamW in pretraining
_LEARNING_RATES = {
    "pretraining": {"sgd": 1e-2, "adamw": 1e-3},
    "finetuning": {"sgd": 1e-2, "adamw": 3e-4},
}
_WEIGHT_DECAYS = {"sgd": 3e-5, "adamw": 5e-2}


def fill_momentum(optimizer: torch.optim.Optimizer) -> None:
    """Give SGD the momentum buffers that it lacks, filled with zeros; its first step is the same as without them.

    PyTorch's fused SGD allocates missing buffers and leaves them unfilled if the half-precision gradients of that step overflow.
    """
    if isinstance(optimizer, torch.optim.SGD):
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if optimizer.state[parameter].get("momentum_buffer") is None:
                    optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


def facts_of(trainer: nnUNetTrainer) -> dict[str, Any]:
    """Properties of the images that the network sees: channels, voxel size, that of the data, order of axes, normalisation; for `ssl_summary.json`."""
    configuration = trainer.configuration_manager.configuration
    return {
        "input_channels": trainer.num_input_channels - label_channels(trainer),
        "spacing": [float(size) for size in configuration["spacing"]],
        "original_spacing": [float(size) for size in trainer.plans_manager.plans[ORIGINAL]],
        "transposition": list(trainer.plans_manager.transpose_forward),
        "normalisation": list(configuration["normalization_schemes"]),
    }


def label_channels(trainer: nnUNetTrainer) -> int:
    """Number of the network's input channels that are labels: the first stage's segmentation in the second stage of a cascade, else 0."""
    return len(trainer.label_manager.foreground_labels) if trainer.is_cascaded else 0


class SelmaTrainer(nnUNetTrainer):
    """nnU-Net's trainer with the run length and the seed of a section of the settings."""

    section: Literal["pretraining", "finetuning"]
    """The section of the settings for this trainer."""

    # set by nnU-Net's constructor, which is not typed
    num_epochs: int
    num_iterations_per_epoch: int
    num_val_iterations_per_epoch: int
    inference_allowed_mirroring_axes: tuple[int, ...] | None
    _best_ema: float | None
    dataset_class: Any
    optimizer: torch.optim.Optimizer
    network: nn.Module

    # nnU-Net reads the names of these arguments from the signature
    @plain_errors()
    def __init__(
        self,
        plans: dict[str, Any],
        configuration: str,
        fold: int,
        dataset_json: dict[str, Any],
        device: torch.device = torch.device("cuda"),  # noqa: B008
    ) -> None:
        available_device(str(device), "-device")
        try:
            super().__init__(plans, configuration, fold, dataset_json, device)
        except PermissionError as error:
            raise SelmaError(
                f"{error.filename}: may not be written; nnUNet_results must be a folder of yours"
            ) from error
        self.settings = read_settings(plans)
        run = self.run_settings
        self.num_epochs = self.num_epochs if run.epochs is None else run.epochs
        self.num_iterations_per_epoch = run.iterations_per_epoch or self.num_iterations_per_epoch
        self.num_val_iterations_per_epoch = run.validation_iterations or self.num_val_iterations_per_epoch
        self.save_every = run.save_every
        self.trials = Trials()
        self.cases_are_known = False
        self.loading_processes: int | None = None

    @property
    def run_settings(self) -> PretrainingSettings | FinetuningSettings:
        """The settings of `section`."""
        run: PretrainingSettings | FinetuningSettings = getattr(self.settings, self.section)
        return run

    def seed_of(self, epoch: int) -> int:
        """Seed for an epoch of this process, from the seed of the settings."""
        rank: int = self.local_rank
        return (self.run_settings.seed or 0) * 1_000_003 + epoch * 1009 + rank

    def seed_everything(self, epoch: int) -> None:
        """Seed all random generators, unless the settings have no seed."""
        if self.run_settings.seed is not None:
            seed = self.seed_of(epoch) % 2**32
            random.seed(seed)
            np.random.seed(seed)  # noqa: NPY002 - batchgenerators draws from numpy's global generator
            torch.manual_seed(seed)

    @plain_errors()
    def initialize(self) -> None:
        """Initialise as nnU-Net does, with seeded weights, fast layers on a CPU, and the settings' precision on a GPU."""
        on_cpu = self.device.type == "cpu"
        if on_cpu:
            self._prepare_cpu()
        else:
            self._set_precision()
        self.seed_everything(epoch=-1)
        super().initialize()
        if on_cpu and self.settings.cpu.fast_layers:
            # with a seed and one loading process, two runs are the same to the last bit
            self.trials = Trials.read(self._trials_file, timed=self.run_settings.seed is None)
            exchanged = accelerate(bare(self.network), self.trials)
            self.print_to_log_file(f"{exchanged} layers exchanged for faster ones (cpu.fast_layers)")
        if not on_cpu and self.settings.gpu.channels_last and len(self.configuration_manager.patch_size) == 3:
            self.network.to(memory_format=torch.channels_last_3d)
        fill_momentum(self.optimizer)

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, Any]:
        """nnU-Net's SGD, or AdamW as for its transformers, over all parameters that are trained, with its polynomial decay.

        A fused optimiser updates all parameters in one operation, and mixed precision need not wait for the device.
        """
        run = self.run_settings
        self.initial_lr = run.learning_rate or _LEARNING_RATES[self.section][run.optimizer]
        self.weight_decay = _WEIGHT_DECAYS[run.optimizer] if run.weight_decay is None else run.weight_decay
        fused = self.device.type in ("cpu", "cuda")
        optimizer: torch.optim.Optimizer
        if run.optimizer == "adamw":
            optimizer = torch.optim.AdamW(
                self.parameter_groups(), self.initial_lr, betas=(0.9, 0.98), weight_decay=self.weight_decay, fused=fused
            )
        else:
            optimizer = torch.optim.SGD(
                self.parameter_groups(),
                self.initial_lr,
                momentum=0.99,
                nesterov=True,
                weight_decay=self.weight_decay,
                fused=fused,
            )
        return optimizer, PolyLRScheduler(optimizer, self.initial_lr, self.num_epochs)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Groups of parameters for the optimiser; a subclass may add groups."""
        return [{"params": [p for p in self.network.parameters() if p.requires_grad]}]

    def _prepare_cpu(self) -> None:
        """Share the cores between computing and loading; nnU-Net gives PyTorch all of them."""
        share = share_cores(usable_cores(), os.environ)
        torch.set_num_threads(share.threads)
        self.loading_processes = share.workers
        kept = self.settings.cpu.keep_memory and keep_freed_memory(os.environ)
        self.print_to_log_file(f"{share}{'; freed memory is kept (cpu.keep_memory)' if kept else ''}")

    def _set_precision(self) -> None:
        """Set the type of mixed precision on a GPU: nnU-Net's float16, or bfloat16, which never overflows and needs no gradient scaler.

        Raises:
            SelmaError: the device has no bfloat16.
        """
        in_bfloat16 = self.settings.gpu.precision == "bfloat16"
        if in_bfloat16 and not (self.device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)):
            raise SelmaError(
                f"gpu.precision is bfloat16, which -device {self.device.type} cannot compute in; set gpu.precision=half"
            )
        if self.device.type == "cuda":
            # another trainer in this process may have set it
            torch.set_autocast_dtype("cuda", torch.bfloat16 if in_bfloat16 else torch.float16)
        if in_bfloat16:
            self.grad_scaler = None

    def autocast(self) -> AbstractContextManager[Any]:
        """Mixed precision on CUDA, as in nnU-Net."""
        return torch.autocast("cuda") if self.device.type == "cuda" else nullcontext()

    @plain_errors()
    def do_split(self) -> tuple[list[str], list[str]]:
        """Split the cases as nnU-Net does; with fewer cases than its five folds, each fold leaves one case out for validation."""
        if self.fold != "all":
            self._leave_one_out()
        split: tuple[list[str], list[str]] = super().do_split()
        return split

    def _leave_one_out(self) -> None:
        """Write nnU-Net's file of splits for fewer than five cases, unless it exists.

        Raises:
            SelmaError: a single case, or a fold that so few cases do not have.
        """
        if self.dataset_class is None:
            self.dataset_class = infer_dataset_class(self.preprocessed_dataset_folder)
        cases = sorted(self.dataset_class.get_identifiers(self.preprocessed_dataset_folder))
        if len(cases) >= _FOLDS:
            return
        file = Path(self.preprocessed_dataset_folder_base) / "splits_final.json"
        if not file.is_file():
            if len(cases) < 2:
                raise SelmaError(
                    f"{self.preprocessed_dataset_folder}: {len(cases)} case cannot be both trained on and validated; train with fold all, or add cases"
                )
            write_json(file, [{"train": [c for c in cases if c != case], "val": [case]} for case in cases])
        splits = len(read_json(file))
        if self.fold >= splits:
            raise SelmaError(
                f"fold {self.fold} was asked for, and {len(cases)} cases have the folds 0 to {splits - 1} ({file}); take one of these, or fold all"
            )

    def get_dataloaders(self) -> tuple[Any, Any]:
        """nnU-Net's loaders, on a CPU with the chosen number of processes, which nnU-Net reads from the environment."""
        before = os.environ.get(_LOADING)
        if self.loading_processes is not None:
            os.environ[_LOADING] = str(self.loading_processes)
        try:
            loaders: tuple[Any, Any] = super().get_dataloaders()
        finally:
            if before is None:
                os.environ.pop(_LOADING, None)
            else:
                os.environ[_LOADING] = before
        return loaders

    @plain_errors()
    def load_checkpoint(self, filename_or_checkpoint: dict[str, Any] | str) -> None:
        """Load as nnU-Net does; the optimiser stays fused, or not, whatever the checkpoint says.

        Raises:
            SelmaError: the checkpoint has another optimiser.
        """
        try:
            super().load_checkpoint(filename_or_checkpoint)
        except (ValueError, KeyError) as error:  # another number of parameter groups, or another kind of optimiser
            raise self._other_optimiser() from error
        lacking = {
            name for group in self.optimizer.param_groups for name in self.optimizer.defaults if name not in group
        }
        if lacking - {"fused"}:
            raise self._other_optimiser()
        if "fused" in self.optimizer.defaults:
            for group in self.optimizer.param_groups:
                group["fused"] = self.optimizer.defaults["fused"]
        fill_momentum(self.optimizer)

    def _other_optimiser(self) -> SelmaError:
        """The error for a checkpoint that was written with another optimiser than the settings name."""
        return SelmaError(
            f"{self.output_folder}: this training was begun with another optimiser than {self.section}.optimizer and this version of "
            "nnunet_selma make; go on with the settings and the version it was begun with, or train anew in another folder"
        )

    @property
    def _trials_file(self) -> Path:
        return Path(self.output_folder) / "cpu_trials.json"

    @plain_errors()
    def run_training(self) -> None:
        """Train as nnU-Net does; every `SelmaError`, memory that runs out, and a damaged case end with a sentence."""
        patch = "×".join(map(str, self.configuration_manager.patch_size))
        with self.naming_causes(
            f"a batch of {self.configuration_manager.batch_size} patches of {patch} voxels with {type(self).__name__}; lower batch_size or "
            f"patch_size in {self.plans_manager.plans_name}.json, for pretraining and fine-tuning alike (nnunet-selma plan-small does both)"
        ):
            super().run_training()

    @plain_errors()
    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """Validate as nnU-Net does; memory that runs out, and a damaged case, end with a sentence."""
        with self.naming_causes(
            "the prediction of a whole validation case; set finetuning.final_validation=false, and predict with nnunet-selma predict-volume"
        ):
            super().perform_actual_validation(save_probabilities)

    def naming_causes(self, too_large: str) -> AbstractContextManager[None]:
        """A context that raises `SelmaError` if memory runs out or a case is damaged.

        Args:
            too_large: what does not fit into memory then, and what to do.
        """
        sentence = f"the memory of this machine or of {self.device} does not hold {too_large}"
        return causes_named(sentence, partial(self._faults_of_cases, damaged_only=True))

    def _faults_of_cases(self, *, damaged_only: bool = False) -> str:
        """Sentences about damaged files and, unless `damaged_only`, images that are not finite; empty if all cases are good."""
        folder = Path(self.preprocessed_dataset_folder)
        cases = sorted({path.name.removesuffix(".pkl") for path in folder.glob("*.pkl")})
        self.print_to_log_file(f"Looking for the cause in the {len(cases)} cases of {folder}")
        return "; ".join(faults_of_cases(folder, cases, damaged_only=damaged_only))

    def on_epoch_start(self) -> None:
        """Seed every epoch by its number, so that with one loading process an interrupted run goes on exactly."""
        super().on_epoch_start()
        self.seed_everything(self.current_epoch)

    @plain_errors()
    def on_train_epoch_end(self, train_outputs: list[dict[str, Any]]) -> None:
        """Log the losses as nnU-Net does, and end a training whose weights, momentum, or losses of a whole epoch are not finite.

        Single steps whose half-precision gradients overflow are skipped by nnU-Net's scaler and end nothing. After the first loss that is
        NaN, all cases are read once, to find one that is not finite.
        """
        super().on_train_epoch_end(train_outputs)
        state = [
            value for values in self.optimizer.state.values() for value in values.values() if torch.is_tensor(value)
        ]
        losses = [float(output["loss"]) for output in train_outputs]
        if not are_finite([*bare(self.network).state_dict().values(), *state]):
            raise self._lost("weights or momentum")
        if all(self.of_all_processes(not any(np.isfinite(losses)))):
            raise self._lost("losses")
        if any(self.of_all_processes(any(np.isnan(losses)))) and not self.cases_are_known:
            self.cases_are_known = True
            if faults := self._faults_of_cases():
                raise SelmaError(
                    f"{self.output_folder}: epoch {self.current_epoch} has losses that are NaN, because of {faults}"
                )

    def of_all_processes(self, value: Any) -> list[Any]:
        """The values of all processes, the same list in each."""
        values = [value]
        if self.is_ddp:
            values = [None] * torch.distributed.get_world_size()
            torch.distributed.all_gather_object(values, value)
        return values

    def _lost(self, what: str) -> SelmaError:
        """The error that ends a training with numbers that are not finite; it names cases that are the cause."""
        fact = f"{self.output_folder}: epoch {self.current_epoch} has {what} that are not finite"
        if faults := self._faults_of_cases():
            return SelmaError(f"{fact}, because of {faults}")
        return SelmaError(
            f"{fact}, so this training is lost from there on; the checkpoints written before are good. Lower {self.section}.learning_rate "
            "and train anew, or go on from the last checkpoint with --c"
        )

    @plain_errors()
    def save_checkpoint(self, filename: str) -> None:
        """Write a checkpoint under a temporary name and rename it; weights that are not finite are not written."""
        if not are_finite(bare(self.network).state_dict().values()):
            raise self._lost("weights")
        if self.local_rank != 0 or self.disable_checkpointing:
            super().save_checkpoint(filename)
            return
        try:
            with whole_file(Path(filename)) as partial:
                torch.save({**self._nnunets_checkpoint(), **self.checkpoint_changes()}, partial)
                if self.trials.transposed:
                    self.trials.write(self._trials_file)
        except (OSError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and not any(word in str(error) for word in _WRITING):
                raise  # an error of the device, not of the disk
            raise SelmaError(
                f"{filename}: the checkpoint could not be written ({error}); make room and go on with --c"
            ) from error

    def _nnunets_checkpoint(self) -> dict[str, Any]:
        """Entries of a checkpoint in nnU-Net's `save_checkpoint`."""
        return {
            "network_weights": bare(self.network).state_dict(),
            "optimizer_state": self.optimizer.state_dict(),
            "grad_scaler_state": None if self.grad_scaler is None else self.grad_scaler.state_dict(),
            "logging": self.logger.get_checkpoint(),
            "_best_ema": self._best_ema,
            "current_epoch": self.current_epoch + 1,
            "init_args": self.my_init_kwargs,
            "trainer_name": type(self).__name__,
            "inference_allowed_mirroring_axes": self.inference_allowed_mirroring_axes,
        }

    def checkpoint_changes(self) -> dict[str, Any]:
        """Entries of the checkpoint that differ from nnU-Net's."""
        return {}
