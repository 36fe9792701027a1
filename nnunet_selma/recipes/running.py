"""Running a recipe with nnU-Net's own commands: plans, pretraining, fine-tuning; each step once, killed runs go on."""

import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nnunet_selma.conversion.unlabelled_raw import has_foreground, store_unlabelled
from nnunet_selma.errors import SelmaError
from nnunet_selma.finetuning.pretrained import CHECKPOINT, SUMMARY
from nnunet_selma.nnunet import commands
from nnunet_selma.nnunet.folders import Folders
from nnunet_selma.nnunet.plans import plan_pretraining
from nnunet_selma.recipes.recipes import Recipe, Scale, SettingsChange
from nnunet_selma.running.json_files import read_json, write_json

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class RecipeRun:
    """One run of a recipe on an annotated and an unlabelled dataset that nnU-Net knows."""

    recipe: Recipe
    source_id: int
    """The annotated dataset, planned and preprocessed."""
    target_id: int
    """The unlabelled one."""
    folders: Folders
    plans_name: str = "nnUNetPlans"
    """Plans of the annotated dataset to start from."""
    scale: Scale = "paper"
    fold: str = "0"
    device: str = "cuda"
    suffix: str = ""
    """Behind the name of the plans, to tell runs apart."""
    changes: SettingsChange = field(default_factory=dict)
    """Settings that go before the recipe's."""
    environment: Mapping[str, str] = field(default_factory=dict)
    say: Say = lambda _: None
    run_command: Callable[[Sequence[str], Mapping[str, str]], None] = commands.run

    @property
    def name(self) -> str:
        """Name of the run's plans, in both datasets."""
        return f"{self.plans_name}_{self.recipe.name}_{self.scale}{self.suffix}"

    @property
    def pretraining_folder(self) -> Path:
        """Where the pretraining writes its results."""
        return self._results(self.target_id, str(self.recipe.pretext), "all")

    @property
    def finetuning_folder(self) -> Path:
        """Where the fine-tuning writes its results."""
        return self._results(self.source_id, self.recipe.finetuning, self.fold)

    def _results(self, dataset_id: int, trainer: str, fold: str) -> Path:
        run = f"{trainer}__{self.name}__{self.recipe.configuration}"
        return self.folders.results / self.folders.dataset(dataset_id) / run / f"fold_{fold}"

    def do(self, *command: str) -> None:
        """Say a command and run it; raises `SelmaError` if it fails."""
        self.say(f"\n$ {shlex.join(command)}")
        self.run_command(command, self.environment)

    def run(self) -> Path:
        """Pretrain and fine-tune; returns the folder of the fine-tuned model's fold."""
        if self.recipe.pretext is not None:
            self.pretrain()
        self.finetune()
        return self.finetuning_folder

    def pretrain(self) -> None:
        """Pretrain the recipe's network on the unlabelled dataset."""
        base = self.pretraining_plans()
        self.write_plans(self.target_id, base, {}, self.pretraining_folder)
        if not (self.pretraining_folder / SUMMARY).is_file():
            self.train(self.target_id, "all", str(self.recipe.pretext), self.pretraining_folder)

    def pretraining_plans(self) -> str:
        """The unlabelled dataset's plans with preprocessed data for the recipe's configuration, made if there are none."""
        moved = f"{self.plans_name}_from{self.source_id:03d}"
        dataset = self.folders.preprocessed / self.folders.dataset(self.target_id)
        for name in (f"{moved}_store", moved):
            path = dataset / f"{name}.json"
            own = (read_json(path)["configurations"] if path.is_file() else {}).get(self.recipe.configuration)
            if own is not None and (dataset / own["data_identifier"]).is_dir():
                return name
        choice: dict[str, Any] = {"plans_name": self.plans_name, "configuration": self.recipe.configuration}
        if not has_foreground(self.folders.raw / self.folders.dataset(self.target_id)):
            return store_unlabelled(self.source_id, self.target_id, self.folders, **choice)
        plan_pretraining(self.source_id, self.target_id, self.folders, **choice)
        target = str(self.target_id)
        self.do("nnUNetv2_extract_fingerprint", "-d", target, "-np", "1")
        self.do("nnUNetv2_preprocess", "-d", target, "-plans_name", moved, "-c", self.recipe.configuration, "-np", "1")
        return moved

    def finetune(self) -> None:
        """Train the segmentation, from the pretraining or from random weights."""
        pretrained = "none" if self.recipe.pretext is None else str(self.pretraining_folder / CHECKPOINT)
        changes = {"finetuning": {"pretrained": pretrained}}
        self.write_plans(self.source_id, self.plans_name, changes, self.finetuning_folder)
        if not (self.finetuning_folder / CHECKPOINT).is_file():
            self.train(self.source_id, self.fold, self.recipe.finetuning, self.finetuning_folder)

    def write_plans(self, dataset_id: int, base: str, changes: SettingsChange, folder: Path) -> None:
        """Write the recipe's plans beside those they are made from.

        Raises:
            SelmaError: a run of this name was made with others.
        """
        source = self.folders.plans(self.folders.dataset(dataset_id), base)
        sections = {*changes, *self.changes}
        merged = {one: {**self.changes.get(one, {}), **changes.get(one, {})} for one in sections}
        plans = self.recipe.plans(read_json(source), self.name, self.scale, merged)
        written = source.with_name(f"{self.name}.json")
        if folder.is_dir() and written.is_file() and read_json(written) != json.loads(json.dumps(plans)):
            raise SelmaError(
                f"{folder}: is a run with other settings than these; remove it to train anew, or go on with the settings in {written}"
            )
        write_json(written, plans)

    def train(self, dataset_id: int, fold: str, trainer: str, folder: Path) -> None:
        """Train, or go on where a killed training wrote its last checkpoint."""
        goes_on = ["--c"] if any((folder / f"checkpoint_{one}.pth").is_file() for one in ("latest", "final")) else []
        self.do(
            "nnUNetv2_train",
            str(dataset_id),
            self.recipe.configuration,
            fold,
            "-tr",
            trainer,
            "-p",
            self.name,
            "-device",
            self.device,
            *goes_on,
        )

    def predict(self, images: Path, output: Path, *options: str) -> None:
        """Segment the images with the fine-tuned model, with nnU-Net's command."""
        self.do(
            "nnUNetv2_predict",
            "-d",
            str(self.source_id),
            "-i",
            str(images),
            "-o",
            str(output),
            "-f",
            self.fold,
            "-tr",
            self.recipe.finetuning,
            "-c",
            self.recipe.configuration,
            "-p",
            self.name,
            "-device",
            self.device,
            *options,
        )
