"""`nnunet-selma recipe list | show | run` and `challenge`."""

import argparse
import os
from pathlib import Path
from typing import Any

from nnunet_selma.cli.arguments import device_argument, path
from nnunet_selma.cli.shell import computing_device, folders
from nnunet_selma.nnunet.folders import TRAINER_FOLDER
from nnunet_selma.nnunet.pipeline import Pipeline
from nnunet_selma.nnunet.settings import parse_assignments
from nnunet_selma.recipes.recipes import RECIPES, as_table, recipe_named
from nnunet_selma.recipes.running import RecipeRun


def _say(line: str) -> None:
    print(line, flush=True)


def _list(_: argparse.Namespace) -> int:
    for recipe in RECIPES.values():
        print(f"{recipe.name:<8} {recipe.title}")
    return 0


def _show(chosen: argparse.Namespace) -> int:
    print(as_table(recipe_named(chosen.name), chosen.scale))
    return 0


def _run(chosen: argparse.Namespace) -> int:
    device = computing_device(chosen.device)
    run = RecipeRun(
        recipe=recipe_named(chosen.name),
        pipeline=Pipeline(
            folders=folders(),
            # a user who has not set the variable gets the trainers of this package
            environment={"nnUNet_extTrainer": os.environ.get("nnUNet_extTrainer") or str(TRAINER_FOLDER)},
            annotated_id=chosen.source_id,
            unlabelled_id=chosen.target_id,
            device=device.type,
            say=_say,
        ),
        plans_name=chosen.plans,
        scale=chosen.scale,
        fold=chosen.fold,
        changes=parse_assignments(chosen.assignments),
    )
    print(f"fine-tuned model: {run.run()}")
    print(f"predict with: nnUNetv2_predict -d {chosen.source_id} -i IN -o OUT {run.finetuning.model}")
    return 0


def _challenge(chosen: argparse.Namespace) -> int:
    from nnunet_selma.recipes.challenge import Challenge, usual_arms
    from nnunet_selma.recipes.challenge.data import arrange, draw

    device = computing_device(chosen.device)
    root = chosen.output / "data"
    data = (
        arrange(chosen.data, chosen.unlabelled, root, test_patches=chosen.test_patches)
        if chosen.data
        else draw(root, seed=0)
    )
    page = Challenge(
        data=data,
        output=chosen.output,
        arms=usual_arms([recipe_named(name).name for name in chosen.recipes]),
        seeds=chosen.seeds,
        scale=chosen.scale,
        device=device.type,
        say=_say,
        changes=parse_assignments(chosen.assignments),
    ).run()
    print(page.read_text(encoding="utf-8"))
    print(f"tables: {page}")
    return 0


def _common(parser: argparse.ArgumentParser) -> None:
    device_argument(parser)
    parser.add_argument(
        "--set",
        dest="assignments",
        nargs="+",
        default=[],
        metavar="section.setting=value",
        help="settings that go before the recipe's",
    )


def _scale(parser: argparse.ArgumentParser, default: str) -> None:
    parser.add_argument(
        "--scale",
        choices=("tiny", "paper"),
        default=default,
        help="minutes on two cores, or as published (default: %(default)s)",
    )


def add_to(parts: Any) -> None:
    """Add the commands."""
    kinds = parts.add_parser("recipe", help="the systems of the SELMA3D teams, and ours").add_subparsers(
        required=True, metavar="what"
    )
    kinds.add_parser("list", help="their names").set_defaults(run=_list)
    show = kinds.add_parser("show", help="settings of one, beside the paper's words")
    show.add_argument("name")
    _scale(show, "paper")
    show.set_defaults(run=_show)
    run = kinds.add_parser("run", help="plan, pretrain and fine-tune, with nnU-Net's commands")
    run.add_argument("name")
    run.add_argument("-s", dest="source_id", type=int, default=510, help="annotated dataset (default: %(default)s)")
    run.add_argument("-t", dest="target_id", type=int, default=500, help="unlabelled dataset (default: %(default)s)")
    run.add_argument("-p", dest="plans", default="nnUNetPlans", help="plans to start from (default: %(default)s)")
    run.add_argument("-f", dest="fold", default="0", help="fold, or all (default: %(default)s)")
    _scale(run, "paper")
    _common(run)
    run.set_defaults(run=_run)

    challenge = parts.add_parser(
        "challenge", help="every recipe and its network from random weights, one budget, several seeds, in tables"
    )
    challenge.add_argument(
        "-o", dest="output", type=path, default=Path("challenge"), help="folder for everything (default: %(default)s)"
    )
    challenge.add_argument(
        "--data",
        type=path,
        nargs="+",
        default=[],
        metavar="FOLDER",
        help="downloads with annotated patches; default: a synthetic one",
    )
    challenge.add_argument(
        "--unlabelled", type=path, nargs="+", default=[], metavar="FOLDER", help="further volumes to pretrain on"
    )
    challenge.add_argument("--recipes", nargs="+", default=[], metavar="NAME", help="only these (default: all)")
    challenge.add_argument("--seeds", type=int, default=3, help="(default: %(default)s)")
    challenge.add_argument("--test-patches", type=int, help="of each test structure (default: all)")
    _scale(challenge, "tiny")
    _common(challenge)
    challenge.set_defaults(run=_challenge)
