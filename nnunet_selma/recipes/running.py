"""Running a recipe with nnU-Net's own commands: plans, pretraining, fine-tuning; each step once, killed runs continue."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nnunet_selma.conversion.unlabelled_raw import has_foreground, store_unlabelled
from nnunet_selma.errors import SelmaError
from nnunet_selma.finetuning.pretrained import CHECKPOINT, SUMMARY
from nnunet_selma.nnunet.pipeline import Pipeline, Training
from nnunet_selma.nnunet.plans import plan_pretraining
from nnunet_selma.recipes.recipes import Recipe, Scale, SettingsChange, merged
from nnunet_selma.running.json_files import read_json, write_json


@dataclass(frozen=True, kw_only=True)
class RecipeRun:
    """One run of a recipe on an annotated dataset, planned and preprocessed, and an unlabelled dataset."""

    recipe: Recipe
    pipeline: Pipeline
    plans_name: str = "nnUNetPlans"
    """Plans of the annotated dataset to start from."""
    scale: Scale = "paper"
    fold: str = "0"
    suffix: str = ""
    """Appended to the name of the plans, to tell runs apart."""
    changes: SettingsChange = field(default_factory=dict)
    """Settings that replace the recipe's."""

    @property
    def name(self) -> str:
        """Name of the run's plans, in both datasets."""
        return f"{self.plans_name}_{self.recipe.name}_{self.scale}{self.suffix}"

    @property
    def pretraining(self) -> Training:
        """The training on the unlabelled dataset."""
        return self._training(self.pipeline.unlabelled_id, str(self.recipe.pretext), "all")

    @property
    def finetuning(self) -> Training:
        """The training on the annotated dataset."""
        return self._training(self.pipeline.annotated_id, self.recipe.finetuning, self.fold)

    def _training(self, dataset_id: int, trainer: str, fold: str) -> Training:
        return Training(
            dataset_id=dataset_id,
            trainer=trainer,
            plans=self.name,
            configuration=self.recipe.configuration,
            fold=fold,
        )

    def run(self) -> Path:
        """Pretrain and fine-tune; returns the folder of the fine-tuned model's fold."""
        if self.recipe.pretext is not None:
            self._train(self.pretraining, self.pretraining_plans(), {}, SUMMARY)
        self._train(self.finetuning, self.plans_name, {"finetuning": {"pretrained": self._pretrained()}}, CHECKPOINT)
        return self.pipeline.fold_folder(self.finetuning)

    def _pretrained(self) -> str:
        if self.recipe.pretext is None:
            return "none"
        return str(self.pipeline.fold_folder(self.pretraining) / CHECKPOINT)

    def _train(self, training: Training, base: str, changes: SettingsChange, last_file: str) -> None:
        """Write the plans and train, unless the file that a training writes last is there."""
        folder = self.pipeline.fold_folder(training)
        self.write_plans(training.dataset_id, base, changes, folder)
        if not (folder / last_file).is_file():
            self.pipeline.train(training)

    def pretraining_plans(self) -> str:
        """Name of the unlabelled dataset's plans with preprocessed data of the recipe's configuration; made if missing."""
        source_id, target_id = self.pipeline.annotated_id, self.pipeline.unlabelled_id
        folders, configuration = self.pipeline.folders, self.recipe.configuration
        moved = f"{self.plans_name}_from{source_id:03d}"
        dataset = folders.preprocessed / folders.dataset(target_id)
        for name in (f"{moved}_store", moved):
            path = dataset / f"{name}.json"
            planned = (read_json(path)["configurations"] if path.is_file() else {}).get(configuration)
            if planned is not None and (dataset / planned["data_identifier"]).is_dir():
                return name
        choice: dict[str, Any] = {"plans_name": self.plans_name, "configuration": configuration}
        if not has_foreground(folders.raw / folders.dataset(target_id)):
            return store_unlabelled(source_id, target_id, folders, **choice)
        plan_pretraining(source_id, target_id, folders, **choice)
        self.pipeline.run(f"nnUNetv2_extract_fingerprint -d {target_id} -np 1")
        self.pipeline.run(f"nnUNetv2_preprocess -d {target_id} -plans_name {moved} -c {configuration} -np 1")
        return moved

    def write_plans(self, dataset_id: int, base: str, changes: SettingsChange, folder: Path) -> None:
        """Write the recipe's plans beside the plans that they are made from.

        Raises:
            SelmaError: a run of this name was made with other plans.
        """
        folders = self.pipeline.folders
        source = folders.plans(folders.dataset(dataset_id), base)
        plans = self.recipe.plans(read_json(source), self.name, self.scale, merged(self.changes, changes))
        written = source.with_name(f"{self.name}.json")
        if folder.is_dir() and written.is_file() and read_json(written) != json.loads(json.dumps(plans)):
            raise SelmaError(
                f"{folder}: is a run with other settings than these; remove it to train anew, or go on with the settings in {written}"
            )
        write_json(written, plans)

    def predict(self, images: Path, output: Path, options: str = "") -> None:
        """Segment the images with the fine-tuned model."""
        self.pipeline.predict(self.finetuning, images, output, options)
