"""The challenge in miniature: every recipe, and the same from random weights, one budget, several seeds, judged by the rules of 2024.

Order of work, each step once, so that a killed run goes on: data arranged or drawn; converted and planned; for each seed and arm
pretraining, fine-tuning and prediction, by nnU-Net's own commands; tables.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

from nnunet_selma.errors import SelmaError
from nnunet_selma.nnunet import commands
from nnunet_selma.nnunet.folders import Folders
from nnunet_selma.nnunet.pipeline import ANNOTATED, Pipeline, cpu_environment
from nnunet_selma.nnunet.settings import read_settings
from nnunet_selma.recipes.challenge.data import ChallengeData
from nnunet_selma.recipes.challenge.results import write_results
from nnunet_selma.recipes.recipes import RECIPES, Recipe, Scale, SettingsChange, from_scratch, merged
from nnunet_selma.recipes.running import RecipeRun
from nnunet_selma.running.json_files import read_json, write_json

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
    return [Arm(name=recipe.name, recipe=recipe, changes={}) for recipe in [*recipes, *map(from_scratch, recipes)]]


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
    predict_options: str = "--disable_tta -step_size 0.75 -npp 0 -nps 0"

    @cached_property
    def pipeline(self) -> Pipeline:
        """The commands, in a workspace below the output; made at the first call."""
        environment = cpu_environment(self.output / "workspace", self.device)
        return Pipeline(
            folders=Folders.from_environment(environment),
            environment=environment,
            device=self.device,
            say=self.say,
        )

    def run(self, pairs: Sequence[tuple[str, str]] | None = None) -> Path:
        """Do everything; returns the page with the tables. `pairs` are the arms to compare, by default each with its own network from random weights."""
        self.check_same_run()
        self.prepare()
        for seed in range(self.seeds):
            for arm in self.arms:
                self.say(f"\n# {arm.name}, seed {seed}")
                self.run_arm(arm, seed)
        names = [arm.name for arm in self.arms]
        return write_results(self.output, names, self.references(), self.budgets(), self.say, pairs)

    def check_same_run(self) -> None:
        """Note what decides the results; raise `SelmaError` where the folder holds those of another challenge."""
        tested = sorted(path.name for path in self.data.references.glob("*.nii.gz"))
        arms = {arm.name: {"changes": arm.changes, "recipe": _without_words(repr(arm.recipe))} for arm in self.arms}
        decisive: dict[str, Any] = json.loads(
            json.dumps(
                {
                    "scale": self.scale,
                    "changes": self.changes or {},
                    "test cases": tested,
                    "options": self.predict_options.split(),
                }
            )
        )
        noted = self.output / "challenge.json"
        before = read_json(noted) if noted.is_file() else {}
        known_arms = before.pop("arms", {})
        for arm in known_arms.values():  # earlier versions noted the words of `recipe show` too
            arm["recipe"] = _without_words(arm["recipe"])
        different = [name for name, value in decisive.items() if before.get(name, value) != value]
        different += [
            f"arm {name}" for name, arm in json.loads(json.dumps(arms)).items() if known_arms.get(name, arm) != arm
        ]
        if different:
            raise SelmaError(
                f"{self.output}: holds results of a challenge with another {different[0]}; go on with the same settings, or choose another "
                "folder with -o"
            )
        self.output.mkdir(parents=True, exist_ok=True)
        write_json(noted, {**decisive, "arms": {**known_arms, **arms}})

    def prepare(self) -> None:
        """Convert, plan and preprocess; a step that was done before is left out."""
        pipeline, data = self.pipeline, self.data
        pipeline.convert_annotated(data.annotated)
        configurations = sorted({arm.recipe.configuration for arm in self.arms} | {"3d_fullres"})
        done = self.output / "planned.json"
        if not done.is_file() or read_json(done)["configurations"] != configurations:
            pipeline.plan(*configurations)
            write_json(done, {"configurations": configurations})
        for configuration in configurations:
            pipeline.convert_unannotated(
                data.unlabelled,
                f"--tile {data.tile} --tiles-per-volume {data.tiles_per_volume} --to preprocessed "
                f"--plans-from {ANNOTATED} -c {configuration} --workers 1",
            )

    def run_arm(self, arm: Arm, seed: int) -> None:
        """Pretrain, fine-tune and predict one arm with one seed."""
        predictions = self.output / "predictions" / arm.name / f"seed_{seed}"
        if (predictions / _PREDICTED).is_file():
            return
        run = self.recipe_run(arm, seed)
        model = run.run()
        run.predict(self.data.images, predictions, self.predict_options)
        write_json(predictions / _PREDICTED, {"model": str(model)})

    def recipe_run(self, arm: Arm, seed: int) -> RecipeRun:
        """The trainings of one arm with one seed."""
        seeded = {"pretraining": {"seed": seed}, "finetuning": {"seed": seed, "final_validation": False}}
        return RecipeRun(
            recipe=arm.recipe,
            pipeline=replace(self.pipeline, run_command=commands.run_forked),
            scale=self.scale,
            fold="all",
            suffix=f"_{arm.name}_s{seed}",
            changes=merged(seeded, self.changes or {}, arm.changes),
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

    def budgets(self) -> dict[str, dict[str, int]]:
        """Arm to its steps, and to the voxels of the patches of these steps, in pretraining and in fine-tuning."""
        folders = self.pipeline.folders
        budgets = {}
        for arm in self.arms:
            plans = read_json(folders.plans(folders.dataset(ANNOTATED), self.recipe_run(arm, 0).name))
            configuration, settings = plans["configurations"][arm.recipe.configuration], read_settings(plans)
            voxels = prod(configuration["patch_size"]) * configuration["batch_size"]
            steps = {
                "pretraining": settings.pretraining.steps * (arm.recipe.pretext is not None),
                "fine-tuning": settings.finetuning.steps,
            }
            budgets[arm.name] = {
                **{f"{run} steps": count for run, count in steps.items()},
                **{f"{run} voxels": count * voxels for run, count in steps.items()},
            }
        return budgets


def _without_words(recipe: str) -> str:
    """The text of a recipe up to the words of `recipe show`, which no result depends on."""
    return recipe.partition(", differences=")[0]


def _link(path: Path, link: Path) -> None:
    link.parent.mkdir(parents=True, exist_ok=True)
    link.unlink(missing_ok=True)
    link.symlink_to(path.resolve())
