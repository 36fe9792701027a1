"""`SelmaSSLTrainer`: nnU-Net's training loop with a pretext task in place of the segmentation loss."""

import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import Tensor, nn
from torch._dynamo import OptimizedModule
from torch.nn.parallel import DistributedDataParallel

from nnunet_selma.errors import SelmaError
from nnunet_selma.networks.parts import bare, pretrained_part, without_ddp
from nnunet_selma.nnunet.checkpoints import PRETEXT, RECORD, TRAINED, adaptation_record, plain
from nnunet_selma.nnunet.plans import TILE_STORE, check_first_stage
from nnunet_selma.nnunet.preprocessed_cases import padding_sentence, shapes_of_cases
from nnunet_selma.nnunet.tile_store import TileStore
from nnunet_selma.nnunet.voxel_sizes import check_voxel_sizes, preprocessed_spacings
from nnunet_selma.pictures import figures
from nnunet_selma.pretraining.base import Pretext, Task, pretext_named
from nnunet_selma.pretraining.collapse import alarms, effective_rank, feature_deviation
from nnunet_selma.pretraining.heads import mean_over_processes
from nnunet_selma.pretraining.learning import starting_weights
from nnunet_selma.structures import PREFIXES, of_case
from nnunet_selma.trainers.base import SelmaTrainer
from nnunet_selma.trainers.failures import plain_errors
from nnunet_selma.trainers.fast_layers import accelerate
from nnunet_selma.trainers.pretext_step import MOST_IN_HALF, Step, freeze_untrained, representable
from nnunet_selma.trainers.ssl_summary import LOSSES, VALIDATION_SEED, history_of, write_summary

_RAW = 0.01
"""Largest share of voxels beyond `MOST_IN_HALF`; with more of them, images are not normalised."""
_FEWEST_FOR_RANK = 8
"""Fewest samples of a validation for an effective rank, which cannot exceed the number of samples."""


class SelmaSSLTrainer(SelmaTrainer):
    """Pretraining of the plan's network, without deep supervision and with as many output as input channels, by masked volume inpainting.

    A subclass names another pretext; `pretraining.pretext` in the plans, a module and a class, overrides both.
    """

    section = "pretraining"
    pretext_class = "nnunet_selma.pretraining.inpainting.MaskedInpainting"
    """Module and class of the pretext task."""

    @plain_errors()
    def initialize(self) -> None:
        """Initialise as nnU-Net does, without deep supervision and without foreground oversampling."""
        check_first_stage(self.configuration_manager.configuration, self.configuration_name)
        self.enable_deep_supervision = False
        # a crop around a foreground voxel may hang over the border, and nnU-Net's padding there would be learnt as background
        self.oversample_foreground_percent = 0.0
        if self.is_ddp and self.configuration_manager.batch_size % torch.distributed.get_world_size():
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

    @plain_errors()
    def on_train_start(self) -> None:
        """Refuse cases in another unit than the plans, warn of cases that are thinner than the patch, or refuse them, then start as nnU-Net does."""
        if not self.was_initialized:
            self.initialize()
        spacings = preprocessed_spacings(Path(self.preprocessed_dataset_folder))
        named = {f"{self.plans_manager.dataset_name}: {case}": size for case, size in spacings.items()}
        check_voxel_sizes(self.plans_manager.plans, self.configuration_manager.configuration, named)
        kind = self.dataset_class or infer_dataset_class(self.preprocessed_dataset_folder)
        shapes = shapes_of_cases(Path(self.preprocessed_dataset_folder), kind)
        if warning := padding_sentence(shapes, self.configuration_manager.patch_size):
            self.print_to_log_file(f"WARNING: {warning}.")
        super().on_train_start()

    def build_pretext(self) -> Pretext:
        """The pretext task that the plans, or else this class, name."""
        configuration = self.configuration_manager
        task = Task(
            network=bare(self.network),
            settings=self.settings,
            patch=tuple(configuration.patch_size),
            spacing=tuple(configuration.spacing[-len(configuration.patch_size) :]),
            channels=self.num_input_channels,
            steps=self.num_epochs * self.num_iterations_per_epoch,
            device=self.device,
        )
        return pretext_named(self.settings.pretraining.pretext or self.pretext_class)(task)

    @staticmethod
    @plain_errors()
    def build_network_architecture(
        plans_manager: Any,
        configuration_manager: Any,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> nn.Module:
        """Raise `SelmaError`: nnU-Net calls this in order to predict, and a pretraining segments nothing."""
        raise SelmaError(
            "this is a pretraining, whose network returns an image and segments nothing; fine-tune from it with -tr SelmaFinetuneTrainer, "
            "and predict with that"
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
        """The optimiser and scheduler of `SelmaTrainer`, with the parameters of the pretext too."""
        compiles = isinstance(self.network, OptimizedModule)
        self.network = bare(self.network)
        self.pretext = self.build_pretext().to(self.device)
        if compiles:
            self._compile_parts()
        freeze_untrained(bare(self.network), self.pretext)
        return super().configure_optimizers()

    def _compile_parts(self) -> None:
        """Compile the modules that the pretext calls, in place; most pretexts never call the whole network, which nnU-Net compiles."""
        name_of = {module: name for name, module in [*self.pretext.named_modules(), *self.network.named_modules()]}
        parts = self.pretext.compiled_parts(self.network)
        for part in parts:
            part.compile()  # type: ignore[no-untyped-call]
        self.print_to_log_file(
            f"torch.compile is used for {', '.join(name_of[part] or 'the network' for part in parts)}"
        )

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The network's parameters, and those of the pretext's heads."""
        heads = [parameter for parameter in self.pretext.parameters() if parameter.requires_grad]
        return [*super().parameter_groups(), *([{"params": heads}] if heads else [])]

    def _build_loss(self) -> nn.Module:
        """The step, wrapped for several GPUs; nnU-Net's wrapper around the network alone is used for checkpoints only."""
        step = Step(without_ddp(self.network), self.pretext)
        return DistributedDataParallel(step, device_ids=[self.local_rank]) if self.is_ddp else step

    def configure_rotation_dummyDA_mirroring_and_inital_patch_size(
        self,
    ) -> tuple[tuple[float, float], bool, Any, tuple[int, ...]]:
        """Crops of the patch size, mirrored; pretexts make all other changes on the device."""
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
        self.pretext.reseed(self.seed_of(self.current_epoch))

    def train_step(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Train one step; losses stay on the device until the epoch ends, so that no step waits for them."""
        patches, structures = self.on_device(batch)
        self.optimizer.zero_grad(set_to_none=True)
        with self.autocast():
            terms = self.loss(patches, structures)
            loss = torch.stack(list(terms.values())).sum()
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        scaler = self.grad_scaler or torch.amp.GradScaler(enabled=False)
        scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        scaler.unscale_(self.optimizer)
        torch.nn.utils.clip_grad_norm_(parameters, 12)
        scaler.step(self.optimizer)
        scaler.update()
        self.pretext.after_step(bare(self.network))
        return {"loss": loss.detach()}

    def on_device(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Patches, and the number of the structure in the name of each patch's case; -1 if the name has none."""
        named = [of_case(str(case)) for case in batch.get("keys", [""] * len(batch["data"]))]
        structures = torch.tensor([PREFIXES.index(structure.prefix) if structure else -1 for structure in named])
        return batch["data"].to(self.device, non_blocking=True), structures.to(self.device, non_blocking=True)

    @plain_errors()
    def on_train_epoch_end(self, train_outputs: list[dict[str, Any]]) -> None:
        """Fetch the losses of the epoch from the device and log them, with a warning about voxels that half precision cannot represent."""
        self._report_cut_voxels()
        super().on_train_epoch_end([{"loss": output["loss"].cpu().numpy()} for output in train_outputs])

    def _report_cut_voxels(self) -> None:
        """Warn of voxels that were cut because of half precision; raise `SelmaError` if they are many."""
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
        """Seed the validation, so that epochs can be compared: the same masks and, with one loading process, the same patches."""
        super().on_validation_epoch_start()
        np.random.seed(VALIDATION_SEED + self.local_rank)  # noqa: NPY002 - batchgenerators draws from numpy's global generator
        self.pretext.reseed(VALIDATION_SEED + self.local_rank)
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
        """Log the means over batches and processes of the validation loss and the diagnostics, and the spread of the features."""
        features = torch.cat([output.pop("features") for output in val_outputs])
        means = {key: float(np.mean([output[key] for output in val_outputs])) for key in val_outputs[0]}
        means["feature_deviation"] = feature_deviation(features)
        if len(features) >= _FEWEST_FOR_RANK:
            means["effective_rank"] = effective_rank(features)
        of_processes = self.of_all_processes(means)
        means = {key: float(np.mean([values[key] for values in of_processes])) for key in means}
        self.logger.log("val_losses", means.pop("loss"), self.current_epoch)
        for key, value in means.items():
            # nnU-Net's logger needs its lists declared; they are saved with its checkpoint
            self.logger.local_logger.my_fantastic_logging.setdefault(key, [])
            self.logger.log(key, value, self.current_epoch)

    def on_epoch_end(self) -> None:
        """Print the losses and the time left, write checkpoints (best by validation loss) and the curves."""
        self.logger.log("epoch_end_timestamps", time.time(), self.current_epoch)
        history = history_of(self)
        now = {key: values[-1] for key, values in history.items()}
        started, ended = (self.logger.get_value(f"epoch_{when}_timestamps", step=-1) for when in ("start", "end"))
        seconds = ended - started
        left = (self.num_epochs - self.current_epoch - 1) * seconds
        diagnostics = "  ".join(f"{key} {value:.4f}" for key, value in now.items() if key not in LOSSES)
        self.print_to_log_file(f"train_loss {now['train_losses']:.4f}  val_loss {now['val_losses']:.4f}  {diagnostics}")
        self.print_to_log_file(
            f"Epoch time: {seconds:.1f} s, {self.num_iterations_per_epoch / max(seconds, 1e-9):.2f} steps/s with validation, "
            f"about {left / 60:.0f} min left"
        )
        for sentence in alarms(history):
            self.print_to_log_file(f"WARNING: {sentence}.")
        last = self.current_epoch == self.num_epochs - 1
        if (self.current_epoch + 1) % self.save_every == 0 and not last:
            self.save_checkpoint(str(Path(self.output_folder) / "checkpoint_latest.pth"))
        # nnU-Net keeps the best value under this name in its checkpoints; here lower is better
        if self._best_ema is None or now["val_losses"] < self._best_ema:
            self._best_ema = now["val_losses"]
            self.save_checkpoint(str(Path(self.output_folder) / "checkpoint_best.pth"))
        if self.local_rank == 0:
            figures.loss_curves(history, Path(self.output_folder) / "progress.png")
        self.current_epoch += 1

    def checkpoint_changes(self) -> dict[str, Any]:
        """The pretext's state, nnssl's record of the network, the trained parts, and a log without numpy, which strict readers refuse."""
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
        """Load as nnU-Net does, then the state of the pretext."""
        super().load_checkpoint(filename_or_checkpoint)
        if isinstance(filename_or_checkpoint, str):
            content = torch.load(filename_or_checkpoint, map_location=self.device, weights_only=False)
            self.pretext.load_state_dict(content[PRETEXT])

    @plain_errors()
    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """Write the reconstruction sheet and the summary; nothing is segmented."""
        if self.local_rank == 0:
            with self.naming_causes("some batches of validation patches; lower batch_size in the plans"):
                write_summary(self, self.pretext, self.start)
