"""The search for the pretraining that a fine-tuning starts from, and its comparison with the coming training, by `ssl_summary.json`.

A pretraining that was found and one that a path names are judged alike: by `check_pretraining`, and by `transfer.carry_over`, which refuses
weights of another architecture.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from nnunet_selma.errors import SelmaError
from nnunet_selma.nnunet.voxel_sizes import LARGEST_FACTOR, as_text, largest_factor, unit_of
from nnunet_selma.running.json_files import read_json, write_json

SUMMARY = "ssl_summary.json"
CHECKPOINT = "checkpoint_final.pth"
CHOICE = "pretrained.json"
"""File beside the folds of a training: the pretraining that they start from."""
_BLOCK = 2**20
_NOTABLE_FACTOR = 1.5
"""Factor between two voxel sizes, along any axis, above which a user is warned."""
_COMPARED = {
    "normalisation": "the normalisation",
    "transposition": "the order of axes",
    "input_channels": "the number of channels",
}


def network_identity(configuration: Mapping[str, Any]) -> dict[str, Any]:
    """Class and arguments of a network; if two plans have the same, every weight of one network fits the other."""
    architecture = configuration["architecture"]
    return {"network_class_name": architecture["network_class_name"], "arch_kwargs": architecture["arch_kwargs"]}


def find_pretrained(setting: str, results: Path, network: Mapping[str, Any]) -> list[Path]:
    """Checkpoints to try in this order: none for "none", the file for a path, all finished pretrainings for "newest".

    Pretrainings of the same network come first, and of two the newer one.

    Args:
        setting: `finetuning.pretrained`: a path, "newest", or "none".
        results: the `nnUNet_results` folder, searched for `ssl_summary.json`.
        network: `network_identity` of the network to fill.

    Raises:
        SelmaError: the path does not exist, or there is no finished pretraining.
    """
    if setting == "none":
        return []
    if setting != "newest":
        if not Path(setting).is_file():
            raise SelmaError(f"{setting}: there is no such checkpoint (finetuning.pretrained in the plans)")
        return [Path(setting)]
    summaries = [path for path in results.glob(f"Dataset*/*/fold_*/{SUMMARY}") if (path.parent / CHECKPOINT).is_file()]
    if not summaries:
        raise no_pretraining(f"there is none in {results}")
    newest_first = sorted(summaries, key=lambda path: path.stat().st_mtime, reverse=True)
    ordered = sorted(newest_first, key=lambda path: read_json(path).get("network") != network)
    return [path.parent / CHECKPOINT for path in ordered]


def no_pretraining(reason: str) -> SelmaError:
    """The error where no finished pretraining suits a training."""
    return SelmaError(
        f"no finished pretraining suits this training: {reason}; pretrain with -tr SelmaSSLTrainer and the plans that "
        "nnunet-selma plan-pretraining prints, or start from random weights with: nnunet-selma settings … finetuning.pretrained=none"
    )


@dataclass(frozen=True)
class ChosenPretraining:
    """The pretraining that all folds of a cross-validation start from."""

    path: Path
    """Its checkpoint."""
    sha256: str
    """Hash of the checkpoint's file."""

    @classmethod
    def from_file(cls, path: Path) -> "ChosenPretraining":
        """The checkpoint and its hash."""
        digest = sha256()
        with path.open("rb") as file:
            while block := file.read(_BLOCK):
                digest.update(block)
        return cls(path.resolve(), digest.hexdigest())

    def write(self, folder: Path) -> None:
        """Write path and hash beside the folds."""
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / CHOICE, {"path": str(self.path), "sha256": self.sha256})


def other_folds(fold: Path) -> set[Path]:
    """Folders of a training's other folds that have a checkpoint.

    Args:
        fold: output folder of this fold, beside those of the other folds.
    """
    return {path.parent for path in fold.parent.glob("fold_*/checkpoint_*.pth")} - {fold}


def choice_of_other_folds(fold: Path) -> ChosenPretraining | None:
    """The pretraining that other folds of a training started from, or None if no other fold has a checkpoint.

    Args:
        fold: output folder of this fold, beside those of the other folds.

    Raises:
        SelmaError: that checkpoint is gone, or has changed since.
    """
    noted = fold.parent / CHOICE
    if not other_folds(fold) or not noted.is_file():
        return None
    entry = read_json(noted)
    path = Path(entry["path"])
    advice = f"give its path with finetuning.pretrained, or delete {noted} and train all folds anew"
    if not path.is_file():
        raise SelmaError(f"{path}: the pretraining that the other folds started from is gone; {advice}")
    choice = ChosenPretraining.from_file(path)
    if choice.sha256 != entry["sha256"]:
        raise SelmaError(f"{path}: the pretraining that the other folds started from was trained again since; {advice}")
    return choice


def summary_beside(checkpoint: Path) -> dict[str, Any]:
    """The summary of the pretraining that wrote a checkpoint; empty where none lies beside it, as with weights from elsewhere."""
    file = checkpoint.parent / SUMMARY
    return read_json(file) if file.is_file() else {}


def check_pretraining(checkpoint: Path, coming: Mapping[str, Any]) -> list[str]:
    """Compare a pretraining with the coming training; returns warnings.

    Args:
        checkpoint: checkpoint of the pretraining; `ssl_summary.json` beside it is compared.
        coming: the same entries for the coming training, see `facts_of`.

    Raises:
        SelmaError: one of the two is in voxels and the other is not, or their voxel sizes differ by a factor above 8.
    """
    summary = summary_beside(checkpoint)
    if not summary:
        return [
            f"there is no {SUMMARY} beside {checkpoint}: its voxel size, normalisation and channels could not be compared with those of this training"
        ]
    sentences = _differences_in_voxel_size(summary, coming, checkpoint) if "spacing" in summary else []
    return sentences + [
        f"pretraining had {words} {summary[key]}, this training has {coming[key]}"
        for key, words in _COMPARED.items()
        if key in summary and summary[key] != coming[key]
    ]


def _differences_in_voxel_size(summary: Mapping[str, Any], coming: Mapping[str, Any], checkpoint: Path) -> list[str]:
    """A warning where voxel sizes differ by more than 1.5; raises `SelmaError` where they contradict each other."""
    theirs, ours = summary["spacing"], coming["spacing"]
    if len(theirs) != len(ours):
        return []  # 2D and 3D: `carry_over` decides
    factor = largest_factor(theirs, ours)
    fact = f"pretraining had the voxel size {as_text(theirs)}, this training has {as_text(ours)}"
    # the configuration of a dataset in voxels may be coarser than 1, 1, 1
    units = {unit_of(facts.get("original_spacing", facts["spacing"])) == "voxel" for facts in (summary, coming)}
    if len(units) == 2 or factor > LARGEST_FACTOR:
        raise SelmaError(
            f"{checkpoint}: {fact}, in another unit or of another kind of images; give both datasets voxel sizes in the same unit "
            "(nnunet-selma convert unannotated --spacing) and pretrain anew with the plans of this dataset (nnunet-selma plan-pretraining)"
        )
    return [fact] if factor > _NOTABLE_FACTOR else []
