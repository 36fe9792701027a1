"""`nnunet-selma predict-volume`."""

import argparse
import os
from pathlib import Path
from typing import Any

from nnunet_selma.cli.arguments import path, scheduler_argument, voxel_size
from nnunet_selma.cli.shell import folders, meter, progress
from nnunet_selma.errors import SelmaError
from nnunet_selma.running.devices import available_device


def _predict_volume(chosen: argparse.Namespace) -> int:
    from nnunet_selma.prediction import Execution, VolumePrediction, predict_volume
    from nnunet_selma.prediction.model import ModelSettings

    folder = chosen.model or _trained(chosen)
    settings = VolumePrediction(
        inputs=tuple(chosen.inputs),
        channels=None if chosen.channel is None else tuple(chosen.channel),
        output=chosen.output,
        model=ModelSettings(
            folder=folder,
            folds=tuple(chosen.folds or _trained_folds(folder, chosen.checkpoint)),
            checkpoint=chosen.checkpoint,
            mirroring=chosen.tta,
            step_size=chosen.step_size,
        ),
        spacing_um_zyx=chosen.spacing,
        level=chosen.level,
        on_bad_slice=chosen.on_bad_slice,
        tissue_only=not chosen.everything,
        mask=chosen.mask,
        probabilities=chosen.probabilities,
        raw=not chosen.no_raw,
        name=chosen.name,
        version=chosen.version,
        block=chosen.block,
        max_memory=chosen.max_memory,
    )
    execution = Execution(
        device=chosen.device if chosen.scheduler else _device(chosen.device),
        scheduler=chosen.scheduler,
        shard=_shard(chosen.shard),
        also_tiff=chosen.also == "tiff",
        overwrite=chosen.overwrite,
    )
    print(f"model: {folder}, fold {', '.join(settings.model.folds)}", flush=True)
    record = predict_volume(
        settings, execution, progress=progress, meter=meter, say=lambda line: print(line, flush=True)
    )
    if record is not None:
        result = record["result"]
        print(
            f"{settings.output}: {result['foreground']} of {result['voxels']} voxels are foreground; {result['tiles']} tiles in "
            f"{result['blocks'] - result['blocks without tissue']} of {result['blocks']} blocks"
        )
        print(f"next: nnunet-selma objects {settings.output} -o objects.csv; nnunet-selma overview {settings.output}")
    return 0


def _trained(chosen: argparse.Namespace) -> Path:
    """The model's folder by nnU-Net's names."""
    if chosen.dataset_id is None:
        raise SelmaError("give the model: its folder with -m, or the dataset it was trained on with -d")
    where = folders()
    name = where.dataset(chosen.dataset_id)
    return where.results / name / f"{chosen.trainer}__{chosen.plans}__{chosen.configuration}"


def _trained_folds(folder: Path, checkpoint: str) -> list[str]:
    """Those of nnU-Net's five folds that have a checkpoint; `all` where none of them has."""
    trained = [fold for fold in "01234" if (folder / f"fold_{fold}" / checkpoint).is_file()]
    return trained or ["all" if (folder / "fold_all" / checkpoint).is_file() else "0"]


def _device(name: str) -> str:
    """The device; of several processes started by torchrun each takes its own GPU."""
    available_device(name)
    return f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if name == "cuda" else name


def _shard(text: str | None) -> tuple[int, int]:
    """Share i of n; of several processes started by torchrun each takes its own."""
    if text is None:
        return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    share, slash, shares = text.partition("/")
    if not slash or not share.isdecimal() or not shares.isdecimal() or not 0 <= int(share) < int(shares):
        raise SelmaError(f"--shard {text}: write i/n, the i-th of n shares from 0, as in 0/4")
    return int(share), int(shares)


def add_to(parts: Any) -> None:
    """Add the command."""
    parser = parts.add_parser(
        "predict-volume", help="predict a whole brain, in constant memory, with any nnU-Net model; writes an OME-Zarr"
    )
    parser.add_argument(
        "inputs",
        type=path,
        nargs="+",
        metavar="INPUT",
        help="folder of TIFF slices, multi-page TIFF, NIfTI, NRRD, MHA or OME-Zarr; of a model with several channels one for each",
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
        "-m", dest="model", type=path, metavar="FOLDER", help="trained model: plans.json and fold folders"
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
        help="folds, averaged, or all (default: those of 0 to 4 that are trained)",
    )
    parser.add_argument("--checkpoint", default="checkpoint_final.pth", help="(default: %(default)s)")
    parser.add_argument(
        "-step_size", type=float, default=0.5, help="of the sliding window, in patches (default: %(default)s)"
    )
    parser.add_argument(
        "--tta", action="store_true", help="mirror each tile too, as nnUNetv2_predict does by default: slower"
    )
    parser.add_argument("--spacing", type=voxel_size, metavar="Z,Y,X", help="voxel size in µm, instead of the file's")
    parser.add_argument(
        "--level", type=int, default=0, help="resolution level of an OME-Zarr (default: %(default)s, the finest)"
    )
    parser.add_argument(
        "--channel", type=int, nargs="+", metavar="N", help="of a file that holds several: those the model sees, from 0"
    )
    parser.add_argument(
        "--on-bad-slice",
        choices=("error", "interpolate"),
        default="error",
        help="a slice that is missing or unreadable: stop, or put the mean of its neighbours there (default: %(default)s)",
    )
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--mask",
        type=path,
        metavar="VOLUME",
        help="predict only where it is above 0; any resolution, same field of view",
    )
    where.add_argument("--everything", action="store_true", help="predict empty space too, as nnUNetv2_predict does")
    parser.add_argument(
        "--probabilities", action="store_true", help="write them too, 0 to 255: OUT_probabilities.ome.zarr"
    )
    parser.add_argument("--no-raw", action="store_true", help="do not put the image beside the labels")
    parser.add_argument("--also", choices=("tiff",), help="write the labels as TIFF slices too")
    parser.add_argument("--name", default="segmentation", help="of the label image (default: %(default)s)")
    parser.add_argument(
        "--ome-zarr", dest="version", choices=("0.5", "0.4"), default="0.5", help="version (default: %(default)s)"
    )
    parser.add_argument(
        "--max-memory", type=float, default=16.0, metavar="GB", help="of this process (default: %(default)s)"
    )
    parser.add_argument("--block", type=int, metavar="VOXELS", help="edge of a block (default: what the memory allows)")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda", "mps"), help="(default: %(default)s)")
    scheduler_argument(parser)
    parser.add_argument("--shard", metavar="I/N", help="do the i-th of n shares, from 0: one job of a SLURM array")
    parser.add_argument("--overwrite", action="store_true", help="begin anew, and replace what is there")
    parser.set_defaults(run=_predict_volume)
