"""`nnunet-selma propose`."""

import argparse
import shlex
from pathlib import Path
from typing import Any

from nnunet_selma.cli.arguments import device_argument, path
from nnunet_selma.cli.options import add_options, settings_from
from nnunet_selma.cli.shell import computing_device, progress
from nnunet_selma.errors import SelmaError, counted


def add_to(parts: Any) -> None:
    """Add the command."""
    parts.add_parser(
        "propose",
        options=_options,
        help="choose the cubes of whole brains to annotate first, and hand them over with labels to fill",
    )


def _options(parser: argparse.ArgumentParser) -> None:
    from nnunet_selma.annotation.settings import ProposalSettings
    from nnunet_selma.prediction.model import ModelSettings

    parser.add_argument(
        "brains",
        type=path,
        nargs="+",
        metavar="BRAIN",
        help="volume of any format in docs/your-data.md, or a folder of brains; files C00, C01, … are channels of one brain",
    )
    parser.add_argument(
        "-o",
        dest="output",
        type=path,
        required=True,
        metavar="DIR",
        help="folder for the cubes; one that holds cubes gets more, and none of those there is changed",
    )
    add_options(parser, ProposalSettings, count="-n", size=" VOXELS", seed="", pool="")
    model = parser.add_argument_group("a model, whose uncertainty decides, and whose prediction fills the labels")
    either = model.add_mutually_exclusive_group()
    either.add_argument(
        "--model",
        type=path,
        metavar="FOLDER",
        help="trained model: plans.json and fold folders; it is computed on candidates alone",
    )
    either.add_argument(
        "--probabilities",
        type=path,
        nargs="+",
        default=[],
        metavar="OUT_probabilities.ome.zarr",
        help="instead: what predict-volume --probabilities wrote, one for each brain in their order",
    )
    model.add_argument(
        "-f",
        "--fold",
        dest="folds",
        nargs="+",
        help="folds, averaged, or all (default: those that are trained)",
    )
    model.add_argument(
        "-chk", "--checkpoint", default="checkpoint_final.pth", metavar="NAME", help="(default: %(default)s)"
    )
    add_options(model, ModelSettings, step_size="-step_size", mirroring="--tta")
    device_argument(model)
    add_options(parser, ProposalSettings, scene="", channels="--channel", time="", level="", spacing_um_zyx="--spacing")
    add_options(parser, ProposalSettings, on_bad_slice="", slice_pattern=" REGEX")
    parser.set_defaults(run=_propose)


def _propose(chosen: argparse.Namespace) -> int:
    from nnunet_selma.annotation.next_commands import annotating
    from nnunet_selma.annotation.proposal import SHEET, propose
    from nnunet_selma.annotation.settings import ProposalSettings
    from nnunet_selma.conversion.annotated import AnnotatedSettings

    settings = settings_from(ProposalSettings, chosen)
    if chosen.folds and chosen.model is None:
        raise SelmaError("-f chooses folds of a model; give it with --model, or leave -f out")
    result = propose(
        chosen.brains,
        chosen.output,
        settings,
        prediction=_prediction(chosen.model, chosen),
        probabilities=chosen.probabilities,
        progress=progress,
        say=lambda line: print(line, flush=True),
    )
    for cube in result.cubes:
        print(
            f"{cube['name']}: {cube['brain']}, z y x {' '.join(map(str, cube['start_zyx']))}: {cube['reason']['words']}"
        )
    print(f"round {result.round}: {counted(len(result.cubes), 'cube')}; picture: {result.folder / SHEET}")
    converting = ["nnunet-selma", "convert", "annotated", str(result.folder), "-d", str(AnnotatedSettings.dataset_id)]
    print("next:")
    for line in annotating([result.folder / cube["name"] for cube in result.cubes]):
        print(f"  {line}")
    print(f"  # then, with another number if the dataset has another id: {shlex.join(converting)}")
    return 0


def _prediction(folder: Path | None, chosen: argparse.Namespace) -> Any:
    """The model on the device, or None without a model."""
    if folder is None:
        return None
    from nnunet_selma.annotation.uncertainty import ModelPrediction
    from nnunet_selma.prediction.model import ModelSettings
    from nnunet_selma.prediction.model_folder import chosen_folds

    folds = chosen_folds(folder, chosen.folds, chosen.checkpoint)
    settings = settings_from(ModelSettings, chosen, folder=folder, folds=folds)
    return ModelPrediction(settings, computing_device(chosen.device).type)
