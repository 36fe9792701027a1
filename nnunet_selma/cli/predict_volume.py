"""`nnunet-selma predict-volume`."""

import argparse
import os
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

from nnunet_selma.cli.arguments import device_argument, path, scheduler_argument
from nnunet_selma.cli.options import add_options, settings_from
from nnunet_selma.cli.shell import computing_device, folders, meter, progress
from nnunet_selma.errors import SelmaError


def _predict_volume(chosen: argparse.Namespace) -> int:
    from nnunet_selma.prediction import Execution, VolumePrediction, predict_volume
    from nnunet_selma.prediction.model import ModelSettings
    from nnunet_selma.prediction.model_folder import chosen_folds
    from nnunet_selma.running.cluster import workers_here

    folder = chosen.model_folder or _trained(chosen)
    folds = chosen_folds(folder, chosen.folds, chosen.checkpoint)
    settings = settings_from(
        VolumePrediction, chosen, model=settings_from(ModelSettings, chosen, folder=folder, folds=folds)
    )
    if "max_memory" not in chosen:
        settings = replace(settings, max_memory=settings.max_memory / workers_here(chosen.scheduler))
    execution = settings_from(
        Execution,
        chosen,
        device=_device(chosen.device, chosen.scheduler),
        share=_share(chosen.shard),
    )
    print(f"model: {folder}, fold {', '.join(settings.model.folds)}", flush=True)
    result = predict_volume(
        settings, execution, progress=progress, meter=meter, say=lambda line: print(line, flush=True)
    )
    if result is not None:
        print(
            f"{settings.output}: {result.foreground} of {result.voxels} voxels are foreground; {result.tiles} tiles in "
            f"{result.blocks - result.blocks_without_tissue} of {result.blocks} blocks"
        )
        print(f"next: nnunet-selma objects {settings.output} -o objects.csv; nnunet-selma overview {settings.output}")
    return 0


def _trained(chosen: argparse.Namespace) -> Path:
    """The model's folder by nnU-Net's names."""
    if chosen.dataset_id is None:
        raise SelmaError("give the model: its folder with -m, or the dataset it was trained on with -d")
    where = folders()
    results = where.results / where.dataset(chosen.dataset_id)
    model = results / f"{chosen.trainer}__{chosen.plans}__{chosen.configuration}"
    trained = sorted(path.name for path in results.glob("*__*__*") if path.is_dir())
    if not model.is_dir() and trained:
        raise SelmaError(
            f"{model}: there is no such folder; trained are {', '.join(trained)}: choose with -tr, -p and -c"
        )
    return model


def _device(name: str | None, scheduler: str | None) -> str:
    """The device; workers of a cluster may have one that this machine lacks, and each process started by torchrun takes a GPU of its own."""
    if scheduler and name:
        return name
    device = computing_device(name).type
    return f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if device == "cuda" and not scheduler else device


def _share(text: str | None) -> tuple[int, int]:
    """Share i of n; of several processes started by torchrun each takes its own."""
    if text is None:
        return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    share, slash, shares = text.partition("/")
    if not slash or not share.isdecimal() or not shares.isdecimal() or not 0 <= int(share) < int(shares):
        raise SelmaError(f"--shard {text}: write i/n, the i-th of n shares from 0, as in 0/4")
    return int(share), int(shares)


def add_to(parts: Any) -> None:
    """Add the command."""
    parts.add_parser(
        "predict-volume",
        options=_options,
        help="predict a whole brain, in constant memory, with any nnU-Net model; writes an OME-Zarr",
    )


def _options(parser: argparse.ArgumentParser) -> None:
    from nnunet_selma.prediction import Execution, VolumePrediction
    from nnunet_selma.prediction.model import ModelSettings
    from nnunet_selma.prediction.volume_prediction import AlsoFormat

    parser.add_argument(
        "inputs",
        type=path,
        nargs="+",
        metavar="INPUT",
        help="volume of any format in docs/your-data.md; of a model with several channels one for each, or a file with all",
    )
    parser.add_argument(
        "-o",
        dest="output",
        type=path,
        required=True,
        metavar="OUT.ome.zarr",
        help="an input OME-Zarr gets the labels itself",
    )
    parser.add_argument(
        "-m", dest="model_folder", type=path, metavar="FOLDER", help="trained model: plans.json and fold folders"
    )
    parser.add_argument(
        "-d", dest="dataset_id", type=int, help="instead of -m: the dataset it was trained on, in nnUNet_results"
    )
    parser.add_argument("-tr", dest="trainer", default="nnUNetTrainer", help="with -d (default: %(default)s)")
    parser.add_argument("-p", dest="plans", default="nnUNetPlans", help="with -d (default: %(default)s)")
    parser.add_argument("-c", dest="configuration", default="3d_fullres", help="with -d (default: %(default)s)")
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
    add_options(parser, VolumePrediction, spacing_um_zyx="--spacing", scene="", channels="--channel", time="")
    add_options(parser, VolumePrediction, level="", on_bad_slice="")
    add_options(parser, VolumePrediction, slice_pattern=" REGEX")
    region = parser.add_mutually_exclusive_group()
    add_options(region, VolumePrediction, mask=" VOLUME")
    region.add_argument(
        "--everything",
        dest="tissue_only",
        action="store_false",
        help="predict empty space too, as nnUNetv2_predict does",
    )
    add_options(parser, VolumePrediction, statistics="", probabilities="")
    parser.add_argument("--no-raw", dest="raw", action="store_false", help="do not put the image beside the labels")
    parser.add_argument(
        "--also",
        action="append",
        default=[],
        choices=get_args(AlsoFormat),
        help="write the labels as TIFF slices too, or as NIfTI; may be given twice",
    )
    add_options(parser, VolumePrediction, name="", version="--ome-zarr", max_memory=" GB", block=" VOXELS")
    device_argument(parser)
    scheduler_argument(parser)
    parser.add_argument("--shard", metavar="I/N", help="do the i-th of n shares, from 0: one job of a SLURM array")
    add_options(parser, Execution, overwrite="")
    parser.set_defaults(run=_predict_volume)
