"""Results of a pretraining: its logged values, `ssl_summary.json`, and the pictures beside it."""

import sys
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from torch import Tensor

from nnunet_selma import __version__
from nnunet_selma.finetuning.pretrained import SUMMARY, network_identity
from nnunet_selma.networks.parts import bare, pretrained_part
from nnunet_selma.pictures import figures
from nnunet_selma.pretraining.base import Pretext
from nnunet_selma.pretraining.collapse import alarms
from nnunet_selma.pretraining.learning import as_json, errors_without, movements, unlearnt
from nnunet_selma.running.json_files import write_json
from nnunet_selma.trainers.base import SelmaTrainer, facts_of
from nnunet_selma.trainers.pretext_step import representable

VALIDATION_SEED = 20240
"""Seed of patches and masks in every validation."""
LOSSES = ("train_losses", "val_losses", "lrs")
_MEASURED_BATCHES = 4
"""Batches on which the error of the reconstruction without a part of the network is measured."""
_NNUNETS = {
    *LOSSES,
    "mean_fg_dice",
    "ema_fg_dice",
    "dice_per_class_or_region",
    "epoch_start_timestamps",
    "epoch_end_timestamps",
}


def history_of(trainer: SelmaTrainer) -> dict[str, list[float]]:
    """Logged values of each epoch: losses, learning rate, and the pretext's diagnostics."""
    logged = trainer.logger.local_logger.my_fantastic_logging
    diagnostics = [key for key in logged if key not in _NNUNETS]
    return {key: [float(value) for value in logged[key]] for key in (*LOSSES, *diagnostics)}


def summary_of(trainer: SelmaTrainer, pretext: Pretext) -> dict[str, Any]:
    """Summary of a pretraining for fine-tuning, and for a reader."""
    history = history_of(trainer)
    configuration = trainer.configuration_manager.configuration
    return {
        "trainer": type(trainer).__name__,
        "pretext": type(pretext).__name__,
        "dataset": trainer.plans_manager.dataset_name,
        "plans": trainer.plans_manager.plans_name,
        "configuration": trainer.configuration_name,
        "network": network_identity(configuration),
        **facts_of(trainer),
        "patch_size": list(configuration["patch_size"]),
        "trained": "the whole network" if pretext.trains_decoder else pretrained_part(bare(trainer.network)),
        "settings": {name: vars(section) for name, section in vars(trainer.settings).items() if name != "finetuning"},
        "warnings": alarms(history),
        "epochs": len(history["train_losses"]),
        "steps": len(history["train_losses"]) * trainer.num_iterations_per_epoch,
        "history": history,
        "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "versions": {
            "nnunet_selma": __version__,
            "nnunetv2": version("nnunetv2"),
            "torch": torch.__version__,
            "python": sys.version.split()[0],
        },
    }


@torch.no_grad()
def write_summary(trainer: SelmaTrainer, pretext: Pretext, start: Mapping[str, Tensor]) -> None:
    """Write `ssl_summary.json`, with measurements of what each part of the network learnt, and two pictures.

    Args:
        trainer: a trainer that has finished; put into evaluation mode.
        pretext: its pretext; put into evaluation mode.
        start: weights of the network before training, as `starting_weights` returned them.
    """
    network, folder = bare(trainer.network.eval()), Path(trainer.output_folder)
    errors: dict[str, float] = {}
    pretext.reseed(VALIDATION_SEED)
    pretext.eval()
    with trainer.autocast():
        batches = [representable(batch.to(trainer.device)) for batch in _validation_batches(trainer)]
        result = pretext.reconstruct(network, batches[0])
        if result is not None:
            parts = (tensor.cpu().numpy() for tensor in (result.target, result.visible, result.output, result.mask))
            figures.reconstruction_sheet(folder / "reconstruction.png", *parts)
            errors = errors_without(pretext, network, batches, VALIDATION_SEED)
    moved = movements(start, network)
    learnt = as_json(moved, errors)
    figures.learning_picture(folder / "learning.png", learnt["stages"], errors)
    sentences = unlearnt(moved, errors)
    for sentence in sentences:
        trainer.print_to_log_file(f"WARNING: {sentence}.")
    summary = summary_of(trainer, pretext)
    write_json(folder / SUMMARY, {**summary, "learnt": learnt, "warnings": [*summary["warnings"], *sentences]})
    trainer.print_to_log_file(f"Wrote {SUMMARY} to {folder}")


def _validation_batches(trainer: SelmaTrainer) -> Sequence[Tensor]:
    """Some batches of validation patches, read in this process."""
    np.random.seed(VALIDATION_SEED)  # noqa: NPY002 - batchgenerators draws from numpy's global generator
    _, cases = trainer.get_tr_and_val_datasets()
    patch = trainer.configuration_manager.patch_size
    loader = nnUNetDataLoader(
        cases,
        trainer.batch_size,
        patch,
        patch,
        trainer.label_manager,
        oversample_foreground_percent=0.0,
        transforms=trainer.get_validation_transforms(None),
    )
    return [next(loader)["data"] for _ in range(_MEASURED_BATCHES)]
