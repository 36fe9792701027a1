"""`SelmaSSLTrainer`: nnU-Net's training loop with a pretext task in place of the segmentation loss."""

import math
import re
import sys
import time
from contextlib import nullcontext
from datetime import datetime, timezone
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import Tensor, autocast, nn
from torch._dynamo import OptimizedModule
from torch.nn.parallel import DistributedDataParallel

from nnunet_selma import __version__
from nnunet_selma.errors import SelmaError
from nnunet_selma.finetuning.pretrained import SUMMARY, network_identity
from nnunet_selma.networks.parts import bare, pretrained_part, without_ddp
from nnunet_selma.nnunet.checkpoints import PRETEXT, RECORD, TRAINED, adaptation_record, plain
from nnunet_selma.nnunet.plans import TILE_STORE, check_first_stage
from nnunet_selma.nnunet.preprocessed_cases import padding_sentence, shapes_of_cases
from nnunet_selma.nnunet.tile_store import TileStore
from nnunet_selma.pictures import figures
from nnunet_selma.pretraining.base import Pretext, Task
from nnunet_selma.pretraining.collapse import alarms, effective_rank, feature_deviation
from nnunet_selma.pretraining.heads import mean_over_processes
from nnunet_selma.pretraining.learning import as_json, errors_without, movements, starting_weights, unlearnt
from nnunet_selma.running.json_files import write_json
from nnunet_selma.structures import PREFIXES, of_case
from nnunet_selma.trainers.base import SelmaTrainer, facts_of, plain_errors
from nnunet_selma.trainers.fast_layers import accelerate

MOST_IN_HALF = 4096.0
"""Normalised intensity that a network is given in half precision at most: 27 voxels of it, weighted, stay far below 65504."""
_RAW = 0.01
"""Share of voxels beyond it from which on images are no normalised ones."""
_MOVED = {"nnunet_selma.pretexts.": "nnunet_selma.pretraining."}
"""Earlier beginnings of the names of pretexts, as plans may have them, to those of today."""
_VALIDATION_SEED = 20240
_MEASURED_BATCHES = 4
"""Batches on which it is measured what the reconstruction loses without a part of the network."""
_FEWEST_FOR_RANK = 8
"""Samples of a validation: so few have no more directions than they are."""
_LOSSES = ("train_losses", "val_losses", "lrs")
_NNUNETS = {
    *_LOSSES,
    "mean_fg_dice",
    "ema_fg_dice",
    "dice_per_class_or_region",
    "epoch_start_timestamps",
    "epoch_end_timestamps",
}


def pretext_named(name: str) -> type[Pretext]:
    """The pretext class of that name, `package.module.Class`.

    Raises:
        SelmaError: no such module or class, or it is no pretext.
    """
    for before, now in _MOVED.items():
        name = re.sub(rf"^{re.escape(before)}", now, name)
    module, _, last = name.rpartition(".")
    try:
        found = getattr(import_module(module), last)
    except (ImportError, ValueError, AttributeError) as error:
        raise SelmaError(
            f"pretraining.pretext is {name}, which cannot be imported ({error}); write package.module.Class, and put the module's "
            "folder on PYTHONPATH"
        ) from error
    if not (isinstance(found, type) and issubclass(found, Pretext)):
        raise SelmaError(
            f"pretraining.pretext is {name}, which is no subclass of nnunet_selma.pretraining.base.Pretext"
        )
    return found


def freeze_untrained(network: nn.Module, pretext: Pretext) -> None:
    """Freeze what a pretext does not train: nothing decays it, and no process waits for its gradients."""
    heads = getattr(getattr(network, "decoder", None), "seg_layers", None)
    if heads is not None and not pretext.deep_supervision:
        for head in list(heads)[:-1]:
            head.requires_grad_(False)
    if not pretext.trains_decoder:
        trained = {id(p) for p in network.get_submodule(pretrained_part(network)).parameters()}
        for parameter in network.parameters():
            parameter.requires_grad_(id(parameter) in trained)


class Step(nn.Module):
    """Network and pretext as one module, so that DistributedDataParallel sees every gradient, whatever part of them a pretext calls."""

    def __init__(self, network: nn.Module, pretext: Pretext) -> None:
        super().__init__()
        self.network, self.pretext = network, pretext
        # no buffer: DistributedDataParallel would overwrite it with that of the first process
        self.cut_voxels = torch.zeros((), dtype=torch.int64, device=next(network.parameters()).device)
        """Voxels since the last reset that were cut because half precision would overflow."""

    def forward(self, patches: Tensor, structures: Tensor) -> dict[str, Tensor]:
        """The pretext's named loss terms."""
        if in_half_precision(patches.device):
            self.cut_voxels += (patches.abs() > MOST_IN_HALF).sum()
        terms: dict[str, Tensor] = self.pretext(self.network, representable(patches), structures)
        return terms


def in_half_precision(device: torch.device) -> bool:
    """True where mixed precision computes in float16, which ends at 65504."""
    kind = device.type
    return kind in ("cpu", "cuda") and torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) == torch.half


def representable(patches: Tensor) -> Tensor:
    """Patches whose brightest voxels do not overflow in the network's first layers; as they are in any other precision than half."""
    return patches.clamp(-MOST_IN_HALF, MOST_IN_HALF) if in_half_precision(patches.device) else patches


class SelmaSSLTrainer(SelmaTrainer):
    """Pretrain the plan's network, deep supervision off, output channels = input channels, by masked volume inpainting.

    A subclass names another pretext; `pretraining.pretext` in the plans, a module and a class, goes before both.
    """

    section = "pretraining"
    pretext_class = "nnunet_selma.pretraining.inpainting.MaskedInpainting"
    """Module and class of the pretext task."""

    def initialize(self) -> None:
        """Initialise as nnU-Net does, without deep supervision and without foreground oversampling."""
        with plain_errors():
            check_first_stage(self.configuration_manager.configuration, self.configuration_name)
        self.enable_deep_supervision = False
        # a crop around a foreground voxel may hang over the border, and what nnU-Net pads there would be learnt as background
        self.oversample_foreground_percent = 0.0
        if self.is_ddp and self.configuration_manager.batch_size % torch.distributed.get_world_size():
            with plain_errors():
                raise SelmaError(
                    f"a batch of {self.configuration_manager.batch_size} cannot be shared equally by {torch.distributed.get_world_size()} "
                    "GPUs, which pretraining needs; change batch_size in the plans, or -num_gpus"
                )
        if type(self).build_network_architecture is SelmaSSLTrainer.build_network_architecture:
            self.build_network_architecture = self.build_pretext_network  # type: ignore[method-assign]
        super().initialize()
        self.start = starting_weights(bare(self.network))
        if self.configuration_manager.configuration.get(TILE_STORE):
            self.dataset_class = TileStore
        if self.device.type == "cpu" and self.settings.cpu.fast_layers:
            accelerate(self.pretext, self.trials)

    def on_train_start(self) -> None:
        """Warn of cases that are much thinner than the patch, or refuse them, then start as nnU-Net does."""
        if not self.was_initialized:
            self.initialize()
        with plain_errors():
            kind = self.dataset_class or infer_dataset_class(self.preprocessed_dataset_folder)
            shapes = shapes_of_cases(Path(self.preprocessed_dataset_folder), kind)
            thin = padding_sentence(shapes, self.configuration_manager.patch_size)
        if thin:
            self.print_to_log_file(f"WARNING: {thin}.")
        super().on_train_start()

    def build_pretext(self) -> Pretext:
        """The pretext task that the plans, or else this class, name."""
        name = self.settings.pretraining.pretext or self.pretext_class
        own = self.configuration_manager
        task = Task(
            network=bare(self.network),
            settings=self.settings,
            patch=tuple(own.patch_size),
            spacing=tuple(own.spacing[-len(own.patch_size) :]),
            channels=self.num_input_channels,
            steps=self.num_epochs * self.num_iterations_per_epoch,
            device=self.device,
        )
        with plain_errors():
            return pretext_named(name)(task)

    @staticmethod
    def build_network_architecture(
        plans_manager: Any,
        configuration_manager: Any,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> nn.Module:
        """End with a sentence: nnU-Net asks the class for its network in order to predict, and a pretraining segments nothing."""
        with plain_errors():
            raise SelmaError(
                "this is a pretraining, whose network answers with an image and segments nothing; fine-tune from it with "
                "-tr SelmaFinetuneTrainer, and predict with that"
            )

    @staticmethod
    def build_pretext_network(
        plans_manager: Any,
        configuration_manager: Any,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> nn.Module:
        """The network of the plans, which returns an image instead of classes."""
        network: nn.Module = nnUNetTrainer.build_network_architecture(
            plans_manager, configuration_manager, num_input_channels, num_input_channels, False
        )
        return network

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, Any]:
        """As for segmentation, over the pretext's own parameters too."""
        compiles = isinstance(self.network, OptimizedModule)
        self.network = bare(self.network)
        self.pretext = self.build_pretext().to(self.device)
        if compiles:
            self._compile_parts()
        freeze_untrained(bare(self.network), self.pretext)
        return super().configure_optimizers()

    def _compile_parts(self) -> None:
        """Compile what the pretext calls, in place; nnU-Net compiled the network as a whole, which most pretexts never call."""
        name_of = {module: name for name, module in [*self.pretext.named_modules(), *self.network.named_modules()]}
        parts = self.pretext.compiled_parts(self.network)
        for part in parts:
            part.compile()  # type: ignore[no-untyped-call]
        self.print_to_log_file(
            f"torch.compile is used for {', '.join(name_of[part] or 'the network' for part in parts)}"
        )

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The network's parameters, and those of the pretext's heads."""
        own = [parameter for parameter in self.pretext.parameters() if parameter.requires_grad]
        return [*super().parameter_groups(), *([{"params": own}] if own else [])]

    def _build_loss(self) -> nn.Module:
        """The step; several GPUs share its gradients. What wraps the network alone then only serves nnU-Net's checkpoints."""
        step = Step(without_ddp(self.network), self.pretext)
        return DistributedDataParallel(step, device_ids=[self.local_rank]) if self.is_ddp else step

    def configure_rotation_dummyDA_mirroring_and_inital_patch_size(
        self,
    ) -> tuple[tuple[float, float], bool, Any, tuple[int, ...]]:
        """Crops of the patch size, mirrored; what else makes views happens on the device."""
        patch = self.configuration_manager.patch_size
        axes = tuple(range(len(patch))) if self.pretext.mirrors else ()
        self.inference_allowed_mirroring_axes = axes
        return (0.0, 0.0), False, patch, axes

    @staticmethod
    def get_training_transforms(
        patch_size: Any, rotation_for_DA: Any, deep_supervision_scales: Any, mirror_axes: Any, *_: Any, **__: Any
    ) -> BasicTransform:
        """Mirroring only."""
        return ComposeTransforms([MirrorTransform(allowed_axes=mirror_axes)] if mirror_axes else [])

    def on_epoch_start(self) -> None:
        """Seed the masks of this epoch."""
        super().on_epoch_start()
        self.pretext.reseed(self.settings.pretraining.seed * 1_000_003 + self.current_epoch * 1009 + self.local_rank)

    def autocast(self) -> Any:
        """Mixed precision on CUDA, as nnU-Net does it."""
        return autocast(self.device.type, enabled=True) if self.device.type == "cuda" else nullcontext()

    def train_step(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """One step; losses stay on the device until the epoch ends, so that no step waits for them."""
        patches, structures = self.on_device(batch)
        self.optimizer.zero_grad(set_to_none=True)
        with self.autocast():
            terms = self.loss(patches, structures)
            loss = torch.stack(list(terms.values())).sum()
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        if self.grad_scaler is not None:
            self.grad_scaler.scale(loss).backward()
            self.grad_scaler.unscale_(self.optimizer)
            torch.nn.utils.clip_grad_norm_(parameters, 12)
            self.grad_scaler.step(self.optimizer)
            self.grad_scaler.update()
        else:
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(parameters, 12)
            self.optimizer.step()
        self.pretext.after_step(bare(self.network))
        return {"loss": loss.detach()}

    def on_device(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Patches, and the number of the structure that each patch's case is named after; -1 where it is named after none."""
        found = [of_case(str(case)) for case in batch.get("keys", [""] * len(batch["data"]))]
        structures = torch.tensor([PREFIXES.index(one.prefix) if one else -1 for one in found])
        return batch["data"].to(self.device, non_blocking=True), structures.to(self.device, non_blocking=True)

    def on_train_epoch_end(self, train_outputs: list[dict[str, Any]]) -> None:
        """Fetch the losses of the epoch from the device and log them, and say what half precision could not hold."""
        with plain_errors():
            self._report_cut_voxels()
        super().on_train_epoch_end([{"loss": output["loss"].cpu().numpy()} for output in train_outputs])

    def _report_cut_voxels(self) -> None:
        """Warn of voxels that were cut because half precision does not hold them; raise `SelmaError` where they are many."""
        step = self.loss.module if self.is_ddp else self.loss
        voxels = math.prod(self.configuration_manager.patch_size) * self.batch_size * self.num_input_channels
        share = float(mean_over_processes(step.cut_voxels.float())) / (voxels * self.num_iterations_per_epoch)
        step.cut_voxels.zero_()
        if share > 0:
            sentence = (
                f"{share:.2g} of the voxels are beyond ±{MOST_IN_HALF:g} after the plans' normalisation and were cut there, because half precision would "
                "overflow; set gpu.precision=bfloat16, or plan with ZScoreNormalization"
            )
            if share > _RAW:
                raise SelmaError(sentence)
            self.print_to_log_file(f"WARNING: {sentence}.")

    def on_validation_epoch_start(self) -> None:
        """The same masks in every validation and, with one loading process, the same patches: epochs can be compared."""
        super().on_validation_epoch_start()
        np.random.seed(_VALIDATION_SEED + self.local_rank)  # noqa: NPY002 - batchgenerators draws from numpy's global generator
        self.pretext.reseed(_VALIDATION_SEED + self.local_rank)
        self.pretext.eval()

    def on_train_epoch_start(self) -> None:
        """Start the epoch as nnU-Net does, and put the pretext into training mode."""
        super().on_train_epoch_start()
        self.pretext.train()

    def validation_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The pretext's loss, diagnostics and features on one batch."""
        patches, structures = self.on_device(batch)
        network = without_ddp(self.network)
        with self.autocast():
            patches = representable(patches)
            terms = self.pretext(network, patches, structures)
            diagnostics = self.pretext.diagnostics(network, patches)
            features = self.pretext.embed(network, patches)
        loss = torch.stack(list(terms.values())).sum().cpu().numpy()
        named = {f"val_{name}": float(term) for name, term in terms.items()} if len(terms) > 1 else {}
        return {"loss": loss, "features": features.float().cpu(), **named, **diagnostics}

    def on_validation_epoch_end(self, val_outputs: list[dict[str, Any]]) -> None:
        """Log the validation loss, the diagnostics and the spread of the features, over all processes; there is no Dice in pretraining."""
        features = torch.cat([output.pop("features") for output in val_outputs])
        means = {key: float(np.mean([output[key] for output in val_outputs])) for key in val_outputs[0]}
        means["feature_deviation"] = feature_deviation(features)
        if len(features) >= _FEWEST_FOR_RANK:
            means["effective_rank"] = effective_rank(features)
        if self.is_ddp:
            gathered: list[Any] = [None] * torch.distributed.get_world_size()
            torch.distributed.all_gather_object(gathered, means)
            means = {key: float(np.mean([one[key] for one in gathered])) for key in means}
        self.logger.log("val_losses", means.pop("loss"), self.current_epoch)
        for key, value in means.items():
            # nnU-Net's logger wants its lists declared; they travel with its checkpoint
            self.logger.local_logger.my_fantastic_logging.setdefault(key, [])
            self.logger.log(key, value, self.current_epoch)

    def on_epoch_end(self) -> None:
        """Print the losses and the time left, write checkpoints (best by validation loss) and the curves."""
        self.logger.log("epoch_end_timestamps", time.time(), self.current_epoch)
        now = {key: values[-1] for key, values in self.history().items()}
        started, ended = (self.logger.get_value(f"epoch_{when}_timestamps", step=-1) for when in ("start", "end"))
        seconds = ended - started
        left = (self.num_epochs - self.current_epoch - 1) * seconds
        said = "  ".join(f"{key} {value:.4f}" for key, value in now.items() if key not in _LOSSES)
        self.print_to_log_file(f"train_loss {now['train_losses']:.4f}  val_loss {now['val_losses']:.4f}  {said}")
        self.print_to_log_file(
            f"Epoch time: {seconds:.1f} s, {self.num_iterations_per_epoch / max(seconds, 1e-9):.2f} steps/s with validation, "
            f"about {left / 60:.0f} min left"
        )
        for sentence in alarms(self.history()):
            self.print_to_log_file(f"WARNING: {sentence}.")
        last = self.current_epoch == self.num_epochs - 1
        if (self.current_epoch + 1) % self.save_every == 0 and not last:
            self.save_checkpoint(str(Path(self.output_folder) / "checkpoint_latest.pth"))
        # nnU-Net keeps the best value under this name in its checkpoints; here lower is better
        if self._best_ema is None or now["val_losses"] < self._best_ema:
            self._best_ema = now["val_losses"]
            self.save_checkpoint(str(Path(self.output_folder) / "checkpoint_best.pth"))
        if self.local_rank == 0:
            figures.loss_curves(self.history(), Path(self.output_folder) / "progress.png")
        self.current_epoch += 1

    def history(self) -> dict[str, list[float]]:
        """Logged values of each epoch: losses, learning rate, and the pretext's diagnostics."""
        logged = self.logger.local_logger.my_fantastic_logging
        own = [key for key in logged if key not in _NNUNETS]
        return {key: [float(value) for value in logged[key]] for key in (*_LOSSES, *own)}

    def checkpoint_changes(self) -> dict[str, Any]:
        """The pretext's state, nnssl's record of the network, and which parts were trained; a log without numpy, which strict readers refuse."""
        network = bare(self.network)
        record = adaptation_record(network, self.plans_manager.plans, self.configuration_name, self.num_input_channels)
        return {
            PRETEXT: self.pretext.state_dict(),
            "logging": plain(self.logger.get_checkpoint()),
            "_best_ema": plain(self._best_ema),
            **({RECORD: record} if record else {}),
            **({} if self.pretext.trains_decoder else {TRAINED: [pretrained_part(network)]}),
        }

    def load_checkpoint(self, filename_or_checkpoint: dict[str, Any] | str) -> None:
        """Load as nnU-Net does, and the state of the pretext."""
        super().load_checkpoint(filename_or_checkpoint)
        if isinstance(filename_or_checkpoint, str):
            content = torch.load(filename_or_checkpoint, map_location=self.device, weights_only=False)
            self.pretext.load_state_dict(content[PRETEXT])

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """Write the reconstruction sheet and the summary; nothing is segmented."""
        if self.local_rank == 0:
            with (
                plain_errors(),
                self.naming_causes("some batches of validation patches; lower batch_size in the plans"),
            ):
                self.write_summary()

    @torch.no_grad()
    def write_summary(self) -> None:
        """Write the reconstruction sheet, what was learnt, and `ssl_summary.json`."""
        self.network.eval()
        folder = Path(self.output_folder)
        errors: dict[str, float] = {}
        self.pretext.reseed(_VALIDATION_SEED)
        self.pretext.eval()
        with self.autocast():
            batches = [representable(batch.to(self.device)) for batch in self._validation_batches()]
            shown = self.pretext.reconstruct(bare(self.network), batches[0])
            if shown is not None:
                parts = (tensor.cpu().numpy() for tensor in (shown.target, shown.visible, shown.output, shown.mask))
                figures.reconstruction_sheet(folder / "reconstruction.png", *parts)
                errors = errors_without(self.pretext, bare(self.network), batches, _VALIDATION_SEED)
        moved = movements(self.start, bare(self.network))
        learnt = as_json(moved, errors)
        figures.learning_picture(folder / "learning.png", learnt["stages"], errors)
        sentences = unlearnt(moved, errors)
        for sentence in sentences:
            self.print_to_log_file(f"WARNING: {sentence}.")
        summary = self.summary()
        write_json(folder / SUMMARY, {**summary, "learnt": learnt, "warnings": [*summary["warnings"], *sentences]})
        self.print_to_log_file(f"Wrote {SUMMARY} to {folder}")

    def _validation_batches(self) -> list[Tensor]:
        """Some batches of validation patches, read in this process."""
        np.random.seed(_VALIDATION_SEED)  # noqa: NPY002 - batchgenerators draws from numpy's global generator
        _, cases = self.get_tr_and_val_datasets()
        patch = self.configuration_manager.patch_size
        loader = nnUNetDataLoader(
            cases,
            self.batch_size,
            patch,
            patch,
            self.label_manager,
            oversample_foreground_percent=0.0,
            transforms=self.get_validation_transforms(None),
        )
        return [next(loader)["data"] for _ in range(_MEASURED_BATCHES)]

    def summary(self) -> dict[str, Any]:
        """Summary of this run for fine-tuning, and for a reader."""
        history = self.history()
        own = self.configuration_manager.configuration
        return {
            "trainer": type(self).__name__,
            "pretext": type(self.pretext).__name__,
            "dataset": self.plans_manager.dataset_name,
            "plans": self.plans_manager.plans_name,
            "configuration": self.configuration_name,
            "network": network_identity(own),
            **facts_of(self),
            "patch_size": list(own["patch_size"]),
            "trained": "the whole network" if self.pretext.trains_decoder else pretrained_part(bare(self.network)),
            "settings": {name: vars(section) for name, section in vars(self.settings).items() if name != "finetuning"},
            "warnings": alarms(history),
            "epochs": len(history["train_losses"]),
            "history": history,
            "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "versions": {
                "nnunet_selma": __version__,
                "nnunetv2": version("nnunetv2"),
                "torch": torch.__version__,
                "python": sys.version.split()[0],
            },
        }
