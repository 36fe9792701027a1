"""The search for the pretraining that a fine-tuning starts from, by the summaries of finished pretrainings."""

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from nnunet_selma.errors import SelmaError
from nnunet_selma.running.json_files import read_json, write_json

SUMMARY = "ssl_summary.json"
CHECKPOINT = "checkpoint_final.pth"
CHOICE = "pretrained.json"
"""File beside the folds of a training: the pretraining that they start from."""
_BLOCK = 2**20
_COMPARED = {
    "spacing": "the voxel size",
    "normalisation": "the normalisation",
    "transposition": "the order of axes",
    "input_channels": "the number of channels",
}


def network_identity(configuration: Mapping[str, Any]) -> dict[str, Any]:
    """Class and arguments of a network; if two plans have the same, every weight of one network fits the other."""
    architecture = configuration["architecture"]
    return {"network_class_name": architecture["network_class_name"], "arch_kwargs": architecture["arch_kwargs"]}


def find_pretrained(setting: str, results: Path, network: Mapping[str, Any]) -> list[Path]:
    """Checkpoints to start from: none for "none", the file for a path, all finished pretrainings of the network, newest first, for "newest".

    Args:
        setting: `finetuning.pretrained`: a path, "newest", or "none".
        results: the `nnUNet_results` folder, searched for `ssl_summary.json`.
        network: `network_identity` of the network to fill.

    Raises:
        SelmaError: the path does not exist, or no finished pretraining has this network.
    """
    if setting == "none":
        return []
    if setting != "newest":
        if not Path(setting).is_file():
            raise SelmaError(f"{setting}: there is no such checkpoint (finetuning.pretrained in the plans)")
        return [Path(setting)]
    summaries = sorted(
        results.glob(f"Dataset*/*/fold_*/{SUMMARY}"), key=lambda path: path.stat().st_mtime, reverse=True
    )
    finished = [
        path.parent / CHECKPOINT
        for path in summaries
        if read_json(path).get("network") == network and (path.parent / CHECKPOINT).is_file()
    ]
    if finished:
        return finished
    others = (
        f"{len(summaries)} pretraining(s) there have another network" if summaries else f"there is none in {results}"
    )
    raise SelmaError(
        f"no finished pretraining of this network was found, {others}; pretrain with -tr SelmaSSLTrainer and the plans that "
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


def differences(summary: Mapping[str, Any], coming: Mapping[str, Any]) -> list[str]:
    """Sentences about differences between a pretraining and the coming training in spacing, normalisation, order of axes and channels.

    Args:
        summary: `ssl_summary.json` of the pretraining; entries that it lacks are not compared.
        coming: the same entries for the coming training, see `facts_of`.
    """
    return [
        f"pretraining had {words} {summary[key]}, this training has {coming[key]}"
        for key, words in _COMPARED.items()
        if key in summary and summary[key] != coming[key]
    ]
