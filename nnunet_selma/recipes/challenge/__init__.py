"""The challenge in miniature: every recipe, and the same from random weights, one budget, several seeds, judged by the rules of 2024.

Order of work, each step once, so that a killed run goes on: data arranged or drawn; converted and planned; for each seed and arm
pretraining, fine-tuning and prediction, by nnU-Net's own commands; tables.
"""

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from nnunet_selma.errors import SelmaError
from nnunet_selma.nnunet import commands
from nnunet_selma.nnunet.folders import Folders
from nnunet_selma.nnunet.settings import read_settings
from nnunet_selma.recipes.challenge.data import ChallengeData
from nnunet_selma.recipes.challenge.tables import write_results
from nnunet_selma.recipes.recipes import RECIPES, Recipe, Scale, SettingsChange, from_scratch
from nnunet_selma.recipes.running import RecipeRun
from nnunet_selma.running.json_files import read_json, write_json

ANNOTATED, UNLABELLED = 510, 500
_PREDICTED = "predicted.json"


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One row of the tables."""

    name: str
    recipe: Recipe
    changes: SettingsChange


def usual_arms(names: Sequence[str] = ()) -> list[Arm]:
    """The recipes of these names (all by default), and each from random weights: the same network, loss and fine-tuning steps."""
    recipes = [RECIPES[name] for name in names or RECIPES]
    return [
        Arm(name=one.name, recipe=one, changes={}) for one in [*recipes, *(from_scratch(recipe) for recipe in recipes)]
    ]


@dataclass(frozen=True, kw_only=True)
class Challenge:
    """One run of the challenge."""

    data: ChallengeData
    output: Path
    arms: Sequence[Arm]
    seeds: int = 3
    scale: Scale = "tiny"
    device: str = "cpu"
    say: Callable[[str], None] = lambda _: None
    changes: SettingsChange | None = None
    """Settings of every arm, for example shorter runs."""
    predict_options: Sequence[str] = ("--disable_tta", "-step_size", "0.75", "-npp", "0", "-nps", "0")

    @property
    def environment(self) -> dict[str, str]:
        """The workspace's variables, with threads and workers that leave no two compute threads on one core."""
        cores = str(os.cpu_count() or 1)  # nnU-Net predicts with as many threads as it may start processes
        threads = {"OMP_NUM_THREADS": cores, "nnUNet_n_proc_DA": "0", "nnUNet_def_n_proc": cores}
        # a GPU would wait for patches that are loaded between its steps
        return {
            **commands.workspace_environment(self.output / "workspace"),
            **(threads if self.device == "cpu" else {}),
        }

    def run(self, pairs: Sequence[tuple[str, str]] | None = None) -> Path:
        """Everything; returns the page with the tables. `pairs` are the arms to compare, by default each with its own from random weights."""
        environment = self.environment
        folders = Folders(**{name: Path(environment[f"nnUNet_{name}"]) for name in ("raw", "preprocessed", "results")})
        self.check_same_run()
        self.prepare(folders, environment)
        for seed in range(self.seeds):
            for arm in self.arms:
                self.say(f"\n# {arm.name}, seed {seed}")
                self.run_arm(arm, seed, folders, environment)
        names = [arm.name for arm in self.arms]
        return write_results(self.output, names, self.references(), self.budgets(folders), self.say, pairs)

    def check_same_run(self) -> None:
        """Note what decides the results; raise `SelmaError` where the folder holds those of another challenge."""
        tested = sorted(path.name for path in self.data.references.glob("*.nii.gz"))
        arms = {arm.name: {"changes": arm.changes, "recipe": repr(arm.recipe)} for arm in self.arms}
        own: dict[str, Any] = json.loads(
            json.dumps(
                {
                    "scale": self.scale,
                    "changes": self.changes or {},
                    "test cases": tested,
                    "options": self.predict_options,
                }
            )
        )
        noted = self.output / "challenge.json"
        before = read_json(noted) if noted.is_file() else {}
        known_arms = before.pop("arms", {})
        different = [name for name, value in own.items() if before.get(name, value) != value]
        different += [
            f"arm {name}" for name, arm in json.loads(json.dumps(arms)).items() if known_arms.get(name, arm) != arm
        ]
        if different:
            raise SelmaError(
                f"{self.output}: holds results of a challenge with another {different[0]}; go on with the same settings, or choose another "
                "folder with -o"
            )
        self.output.mkdir(parents=True, exist_ok=True)
        write_json(noted, {**own, "arms": {**known_arms, **arms}})

    def prepare(self, folders: Folders, environment: dict[str, str]) -> None:
        """Convert, plan and preprocess; a step that was done is passed by."""
        source, target = str(ANNOTATED), str(UNLABELLED)

        def do(*command: str, **more: str) -> None:
            self.say(f"\n$ {' '.join(command)}")
            commands.run(command, {**environment, **more})

        do("nnunet-selma", "convert", "annotated", str(self.data.annotated), "-d", source, "--spacing", "voxel")
        configurations = sorted({arm.recipe.configuration for arm in self.arms} | {"3d_fullres"})
        done = self.output / "planned.json"
        if not done.is_file() or read_json(done)["configurations"] != configurations:
            # nnU-Net's planner takes its thread count from this variable and fails at 0
            do(
                "nnUNetv2_plan_and_preprocess",
                "-d",
                source,
                "-c",
                *configurations,
                "--verify_dataset_integrity",
                "-np",
                *["1"] * len(configurations),
                "-npfp",
                "1",
                nnUNet_n_proc_DA="1",
            )
            write_json(done, {"configurations": configurations})
        for configuration in configurations:
            do(
                "nnunet-selma",
                "convert",
                "unannotated",
                str(self.data.unlabelled),
                "-d",
                target,
                "--spacing",
                "voxel",
                "--tile",
                str(self.data.tile),
                "--tiles-per-volume",
                str(self.data.tiles_per_volume),
                "--to",
                "preprocessed",
                "--plans-from",
                source,
                "-c",
                configuration,
                "--workers",
                "1",
            )

    def run_arm(self, arm: Arm, seed: int, folders: Folders, environment: dict[str, str]) -> None:
        """Pretrain, fine-tune and predict one arm with one seed."""
        run = self._run_of(arm, seed, folders, environment)
        predictions = self.output / "predictions" / arm.name / f"seed_{seed}"
        if (predictions / _PREDICTED).is_file():
            return
        run.run()
        run.predict(self.data.images, predictions, *self.predict_options)
        write_json(predictions / _PREDICTED, {"model": str(run.finetuning_folder)})

    def _run_of(self, arm: Arm, seed: int, folders: Folders, environment: dict[str, str]) -> RecipeRun:
        seeded = {"pretraining": {"seed": seed}, "finetuning": {"seed": seed, "final_validation": False}}
        changes = seeded
        for more in (self.changes or {}, arm.changes):
            changes = {one: {**changes.get(one, {}), **more.get(one, {})} for one in {*changes, *more}}
        return RecipeRun(
            recipe=arm.recipe,
            source_id=ANNOTATED,
            target_id=UNLABELLED,
            folders=folders,
            scale=self.scale,
            fold="all",
            device=self.device,
            suffix=f"_{arm.name}_s{seed}",
            changes=changes,
            environment=environment,
            say=self.say,
            run_command=commands.run_forked,
        )

    def references(self) -> Path:
        """The truth of every test case once for each seed, and each arm's predictions beside one another under the same names."""
        references = self.output / "cases" / "references"
        for seed in range(self.seeds):
            for path in sorted(self.data.references.glob("*.nii.gz")):
                case = f"{path.name.removesuffix('.nii.gz')}_seed{seed}.nii.gz"
                _link(path, references / case)
                for arm in self.arms:
                    predicted = self.output / "predictions" / arm.name / f"seed_{seed}" / path.name
                    _link(predicted, self.output / "cases" / arm.name / case)
        return references

    def budgets(self, folders: Folders) -> dict[str, dict[str, int]]:
        """Arm to its steps, and to the voxels of the patches that these took, in pretraining and in fine-tuning."""
        found = {}
        for arm in self.arms:
            run = self._run_of(arm, 0, folders, {})
            plans = read_json(folders.plans(folders.dataset(ANNOTATED), run.name))
            own, settings = plans["configurations"][arm.recipe.configuration], read_settings(plans)
            voxels = prod(own["patch_size"]) * own["batch_size"]
            steps = {
                "pretraining": settings.pretraining.steps * (arm.recipe.pretext is not None),
                "fine-tuning": settings.finetuning.steps,
            }
            found[arm.name] = {
                **{f"{one} steps": count for one, count in steps.items()},
                **{f"{one} voxels": count * voxels for one, count in steps.items()},
            }
        return found


def _link(path: Path, link: Path) -> None:
    link.parent.mkdir(parents=True, exist_ok=True)
    link.unlink(missing_ok=True)
    link.symlink_to(path.resolve())
