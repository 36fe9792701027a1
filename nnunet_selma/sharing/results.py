"""Facts of a results folder: what nnU-Net and this package recorded about a training, for the model card and the citations.

Nothing is guessed: what no file says is None or empty.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from nnunet_selma.errors import SelmaError, counted
from nnunet_selma.finetuning.pretrained import CHECKPOINT, SUMMARY, network_identity
from nnunet_selma.nnunet.checkpoints import ANCESTOR, PRETEXT, RECORD, TRAINED, plain, unpickled
from nnunet_selma.nnunet.folders import Folders
from nnunet_selma.nnunet.plans import channels_of, check_first_stage, whole_configuration
from nnunet_selma.nnunet.settings import read_settings
from nnunet_selma.nnunet.voxel_sizes import Unit, planned_spacing, unit_of
from nnunet_selma.prediction.model_folder import check_model_folder, chosen_folds
from nnunet_selma.running.json_files import read_json
from nnunet_selma.sharing.light import OF_TRAINING, check_model
from nnunet_selma.sharing.training_data import DELIVR_LAYOUT, SELMA3D_LAYOUTS, DataFacts, data_of, folders_around
from nnunet_selma.sharing.validation_dice import Dice, dice_of_cases
from nnunet_selma.structures import PREFIXES

Kind = Literal["segmentation", "pretraining"]
_NNUNETS_STEPS = 250
"""Training steps in an epoch of nnU-Net's trainer."""


@dataclass(frozen=True, kw_only=True)
class FoldFacts:
    """One trained fold."""

    fold: str
    """Number of the fold, or "all"."""
    checkpoint: Path
    entries: Mapping[str, Any]
    """Entries of the checkpoint but weights, optimiser and log."""
    epochs: int | None
    """Epochs that were trained; None where the checkpoint does not say."""
    ancestor: Mapping[str, Any] | None
    """Origin of the weights that the training started from (`finetuning.ancestor`); None where it is not recorded."""
    dice: Dice | None
    """Scores in nnU-Net's validation/summary.json, empty where it holds none; None where there is no such file."""


@dataclass(frozen=True, kw_only=True)
class ResultFacts:
    """A trained model in a results folder."""

    folder: Path
    kind: Kind
    trainer: str | None
    """Trainer that trained it, by the folder's name; None where the folder has another name than nnU-Net gives."""
    stored_trainer: str
    """Trainer that the checkpoint names, whose network nnU-Net builds to predict."""
    configuration: str
    plans: Mapping[str, Any]
    """The whole plans."""
    dataset: Mapping[str, Any]
    """The content of dataset.json."""
    folds: tuple[FoldFacts, ...]
    """At least one."""
    data: DataFacts
    summary: Mapping[str, Any]
    """`ssl_summary.json` of a pretraining; empty for a segmentation, or where there is none."""

    @property
    def dataset_name(self) -> str:
        """Name of the dataset in the plans, as in Dataset510_SELMA3D."""
        return str(self.plans["dataset_name"])

    @property
    def plans_name(self) -> str:
        """Name of the plans."""
        return str(self.plans["plans_name"])

    @cached_property
    def planned(self) -> Mapping[str, Any]:
        """The trained configuration, with all that it inherits."""
        return whole_configuration(self.plans, self.configuration)

    @property
    def network(self) -> str:
        """Module and class of the network."""
        return str(network_identity(self.planned)["network_class_name"])

    @property
    def needs_this_package(self) -> bool:
        """True if plain nnU-Net cannot build the network, which this package or, for a segmentation, one of its trainers makes."""
        by_trainer = self.kind == "segmentation" and self.stored_trainer.startswith("Selma")
        return self.network.startswith("nnunet_selma.") or by_trainer

    @property
    def channels(self) -> tuple[str, ...]:
        """Names of the image channels."""
        return tuple(channels_of(self.dataset))

    @property
    def classes(self) -> Mapping[str, Any]:
        """Name of each class but background and ignore to its value, or to the values of a region."""
        labels: Mapping[str, Any] = self.dataset["labels"]
        return {name: value for name, value in labels.items() if name not in ("background", "ignore")}

    @property
    def spacing_zyx(self) -> tuple[float, ...]:
        """Voxel size (z, y, x) to which images are resampled, in `unit`."""
        return tuple(planned_spacing(self.plans, self.planned))

    @property
    def unit(self) -> Unit:
        """Unit of the voxel sizes: µm, mm, or voxels, in which every size is 1."""
        return unit_of(self.plans["original_median_spacing_after_transp"])

    @property
    def batch_size(self) -> int:
        """Patches in a batch."""
        return int(self.planned["batch_size"])

    @property
    def patch_size(self) -> tuple[int, ...]:
        """Voxels of a patch, in the order of the network's axes."""
        return tuple(self.planned["patch_size"])

    @property
    def steps_per_epoch(self) -> int | None:
        """Training steps in an epoch; None for a trainer whose number is not known."""
        trainer = self.trainer or self.stored_trainer
        if trainer.startswith("Selma"):
            settings = read_settings(self.plans)
            run = settings.pretraining if self.kind == "pretraining" else settings.finetuning
            return run.iterations_per_epoch or _NNUNETS_STEPS
        return _NNUNETS_STEPS if trainer == "nnUNetTrainer" and self.trainer else None

    @property
    def ancestors(self) -> tuple[Mapping[str, Any], ...]:
        """The distinct recorded ancestors of the folds, and the ancestors of these, nearest first."""
        chain: list[Mapping[str, Any]] = []
        for fold in self.folds:
            ancestor = fold.ancestor
            while ancestor:
                if ancestor not in chain:
                    chain.append(ancestor)
                ancestor = ancestor.get("ancestor")
        return tuple(chain)

    @property
    def pretexts(self) -> tuple[str, ...]:
        """Class names of the pretexts of this pretraining, or of the pretrainings that it descends from."""
        names = [self.summary.get("pretext"), *(ancestor.get("pretext") for ancestor in self.ancestors)]
        return tuple(dict.fromkeys(str(name) for name in names if name))

    @property
    def structures(self) -> Mapping[str, int]:
        """Prefix of each annotated structure to its number of cases."""
        return self.data.structures

    @property
    def data_of_selma3d(self) -> bool | None:
        """True if the data were converted from a download laid out as SELMA3D's; None where that is not recorded and the names allow it."""
        if self.data.layouts:
            return any(layout in SELMA3D_LAYOUTS for layout in self.data.layouts)
        others = self.structures and not any(name in PREFIXES for name in self.structures)
        return False if others and "SELMA3D" not in self.dataset_name else None

    @property
    def of_selma3d(self) -> bool | None:
        """As `data_of_selma3d`; None too where data of SELMA3D may be those of an ancestor, or of a pretraining."""
        random = all((fold.ancestor or {}).get("weights") == "random" for fold in self.folds)
        certain = self.data_of_selma3d or (self.kind == "segmentation" and random)
        return self.data_of_selma3d if certain else None

    @property
    def light_sheet(self) -> bool:
        """True if the training data are recorded as SELMA3D's or DELiVR's, whose images are from light-sheet microscopes."""
        return any(layout in (*SELMA3D_LAYOUTS, DELIVR_LAYOUT) for layout in self.data.layouts)

    @property
    def adaptation(self) -> Mapping[str, Any] | None:
        """The record of nnssl in the checkpoint of a pretraining; None for a segmentation, or a network that does not name its encoder."""
        record: Mapping[str, Any] | None = self.folds[0].entries.get(RECORD)
        return record


def facts_of(
    results: Path, *, folds: Sequence[str] = (), checkpoint: str = CHECKPOINT, folders: Folders | None = None
) -> ResultFacts:
    """The facts of a results folder, read without running code in its checkpoints.

    Args:
        results: folder with plans.json, dataset.json and the folders of the folds.
        folds: folds to look at; empty takes all that have the checkpoint.
        checkpoint: file of the weights in the folder of a fold.
        folders: nnU-Net's folders, for the folds and the manifest of the data; None takes those beside nnUNet_results, where they are.

    Raises:
        SelmaError: the folder is no complete model, its folds do not belong together, or it is the second stage of a cascade.
    """
    chosen = chosen_folds(results, folds, checkpoint)
    check_model_folder(results, chosen, checkpoint)
    plans, dataset = read_json(results / "plans.json"), read_json(results / "dataset.json")
    read = tuple(_fold(results, fold, checkpoint, dataset) for fold in chosen)
    first = read[0].entries
    begun = first["init_args"]
    configuration, trainer = str(begun["configuration"]), str(first["trainer_name"])
    for other in read[1:]:
        if (other.entries["init_args"]["configuration"], other.entries["trainer_name"]) != (configuration, trainer):
            raise SelmaError(
                f"{results}: fold {other.fold} was trained with another configuration or trainer than fold {read[0].fold}; give folds of one training with -f"
            )
    if configuration not in plans.get("configurations", {}):
        raise SelmaError(
            f"{results / 'plans.json'}: has no configuration {configuration}, which the checkpoint was trained with; restore the plans of this training"
        )
    check_first_stage(whole_configuration(plans, configuration), configuration)
    pretrained = any(first.get(name) is not None for name in (PRETEXT, RECORD, TRAINED))
    beside = read[0].checkpoint.parent / SUMMARY
    return ResultFacts(
        folder=results,
        kind="pretraining" if pretrained else "segmentation",
        trainer=_trainer_of_folder(results),
        stored_trainer=trainer,
        configuration=configuration,
        # those of the training itself: plans.json is written by the fold that began last
        plans=begun.get("plans") or plans,
        dataset=dataset,
        folds=read,
        data=data_of(str(plans["dataset_name"]), folders or folders_around(results)),
        summary=read_json(beside) if pretrained and beside.is_file() else {},
    )


def _trainer_of_folder(results: Path) -> str | None:
    parts = results.resolve().name.split("__")
    return parts[0] if len(parts) == 3 else None


def _fold(results: Path, fold: str, checkpoint: str, dataset: Mapping[str, Any]) -> FoldFacts:
    path = results / f"fold_{fold}" / checkpoint
    content = unpickled(path)
    check_model(content, path)
    entries = {name: value for name, value in content.items() if name not in ("network_weights", *OF_TRAINING, PRETEXT)}
    if PRETEXT in content:
        entries[PRETEXT] = True  # its state is as large as a network
    summary = path.parent / "validation" / "summary.json"
    return FoldFacts(
        fold=fold,
        checkpoint=path,
        entries=plain(entries),
        epochs=int(content["current_epoch"]) if content.get("current_epoch") is not None else None,
        ancestor=plain(content.get(ANCESTOR)),
        dice=dice_of_cases(summary, dataset) if summary.is_file() else None,
    )


def in_words(size: Sequence[float], unit: Unit) -> str:
    """A voxel size (z, y, x) in words; "voxel" where nobody stated a physical size."""
    if unit == "voxel":
        scale = "" if all(edge == 1 for edge in size) else f", resampled to {' × '.join(f'{edge:g}' for edge in size)}"
        return f"voxel (no physical size was stated{scale})"
    return f"{' × '.join(f'{edge:g}' for edge in size)} {'µm' if unit == 'um' else 'mm'} (z, y, x)"


def folds_in_words(facts: ResultFacts) -> str:
    """The folds in words, as in "2 folds (0, 1)"."""
    return f"{counted(len(facts.folds), 'fold')} ({', '.join(fold.fold for fold in facts.folds)})"
