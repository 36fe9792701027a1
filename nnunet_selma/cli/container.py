"""`nnunet-selma container`."""

import argparse
from pathlib import Path
from typing import Any, get_args

from nnunet_selma.cli.arguments import path
from nnunet_selma.cli.options import add_options, settings_from
from nnunet_selma.cli.predict import models_by_class
from nnunet_selma.errors import SelmaError


def _container(chosen: argparse.Namespace) -> int:
    from nnunet_selma.prediction.model import ModelSettings
    from nnunet_selma.prediction.model_folder import chosen_folds
    from nnunet_selma.routing.routers import OTHER
    from nnunet_selma.sharing.container import ContainerSettings, write_container
    from nnunet_selma.sharing.packed_model import PackedModel

    folders = models_by_class(chosen.models)
    if (chosen.results is None) == (not folders):
        raise SelmaError("give either the folder of one model, or a --router and --model CLASS=FOLDER for each class")
    if bool(folders) != (chosen.router is not None):
        raise SelmaError(
            "a router needs the models it chooses from, and these the router; give both --router and --model"
        )
    folders = folders or {OTHER: chosen.results.resolve()}

    def settings_of(folder: Path) -> ModelSettings:
        folds = chosen_folds(folder, chosen.folds, chosen.checkpoint)
        return settings_from(ModelSettings, chosen, folder=folder, folds=folds)

    models = {name: settings_of(folder) for name, folder in folders.items()}
    packed = settings_from(PackedModel, chosen, models=models)
    written = write_container(
        packed, chosen.output, settings_from(ContainerSettings, chosen), say=lambda line: print(line, flush=True)
    )
    for line in written.warnings:
        print(f"warning: {line}")
    size = sum(file.stat().st_size for file in [written.model, *written.model.rglob("*")] if file.is_file())
    print(f"{written.model}: {size / 1e6:.1f} MB")
    print(f"next: cd {written.folder} && {written.build} (README.md there says more)")
    return 0


def add_to(parts: Any) -> None:
    """Add the command."""
    parts.add_parser(
        "container",
        options=_options,
        help="write a folder for docker build: a trained model as a container of the challenge",
    )


def _options(parser: argparse.ArgumentParser) -> None:
    from nnunet_selma.prediction.model import ModelSettings
    from nnunet_selma.sharing.container import ContainerSettings
    from nnunet_selma.sharing.editions import EditionYear
    from nnunet_selma.sharing.packed_model import PackedModel

    parser.add_argument(
        "results", type=path, nargs="?", metavar="RESULTS", help="trained model: plans.json and fold folders"
    )
    parser.add_argument("-o", dest="output", type=path, required=True, metavar="FOLDER", help="folder to write")
    parser.add_argument(
        "--model",
        dest="models",
        action="append",
        default=[],
        metavar="CLASS=FOLDER",
        help="instead of RESULTS, with --router: the trained model of a class, or of all others (other=FOLDER); once for each model",
    )
    add_options(parser, PackedModel, router=" PATH")
    parser.add_argument(
        "-f",
        "--fold",
        dest="folds",
        nargs="+",
        help="folds, averaged, or all (default: those that are trained)",
    )
    parser.add_argument(
        "-chk",
        "--checkpoint",
        default="checkpoint_final.pth",
        metavar="NAME",
        help="file of the weights in the folder of a fold (default: %(default)s)",
    )
    add_options(parser, ModelSettings, step_size="-step_size", mirroring="--tta")
    add_options(parser, PackedModel, remove_below=" VOXELS", spacing_um_zyx="--spacing")
    parser.add_argument(
        "--edition",
        type=int,
        choices=get_args(EditionYear),
        required=True,
        help="edition of the challenge: 2024 segments one case and ends, 2026 is a server",
    )
    add_options(parser, ContainerSettings, base="")
    parser.set_defaults(run=_container, starts_anew=True)
