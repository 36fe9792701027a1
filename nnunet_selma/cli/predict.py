"""`nnunet-selma train-router`, `predict-routed` and `remove-small`."""

import argparse
import os
from pathlib import Path
from typing import Any

from nnunet_selma.cli.arguments import path, workers_argument
from nnunet_selma.cli.shell import folders, progress
from nnunet_selma.errors import SelmaError
from nnunet_selma.nnunet.folders import TRAINER_FOLDER
from nnunet_selma.running.devices import available_device
from nnunet_selma.running.json_files import read_json


def _train_router(chosen: argparse.Namespace) -> int:
    from nnunet_selma.routing.router_training import RouterTraining, train_router
    from nnunet_selma.routing.routers import class_named

    where = folders()
    settings = RouterTraining(
        classes=tuple(class_named(name) for name in chosen.classes),
        patch=chosen.patch,
        steps=chosen.steps,
        batch=chosen.batch,
        large=chosen.large,
        seed=chosen.seed,
    )
    if chosen.output.is_dir() or not chosen.output.parent.is_dir():
        raise SelmaError(f"{chosen.output}: give a file in a folder that exists, as in -o router.pt")
    name = where.dataset(chosen.dataset_id)
    left_out = _validation_cases(where.preprocessed / name / "splits_final.json", chosen.fold)
    router, learnt = train_router(
        where.raw / name, settings, available_device(chosen.device), progress, left_out=left_out
    )
    router.save(chosen.output)
    for name, one in learnt.items():
        said = f"{name}: {one.cases} cases, {one.recognised:.0%} of their patches recognised"
        print(f"{said}; {sum(one.unseen)} of {len(one.unseen)} unseen cases recognised" if left_out else said)
    print(f"next: nnunet-selma predict-routed -i IN -o OUT --router {chosen.output} --model CLASS=FOLDER …")
    return 0


def _validation_cases(splits_file: Path, fold: str) -> list[str]:
    """The cases that nnU-Net does not train on in this fold; none in `all`."""
    if fold == "all":
        return []
    if not splits_file.is_file():
        raise SelmaError(f"{splits_file}: is missing, so that fold {fold} is not known; train on all cases, without -f")
    splits: Any = read_json(splits_file)
    if not fold.isdecimal() or int(fold) >= len(splits):
        raise SelmaError(f"-f {fold}: {splits_file} has the folds 0 to {len(splits) - 1}; give one of them, or all")
    cases: list[str] = splits[int(fold)]["val"]
    return cases


def _predict_routed(chosen: argparse.Namespace) -> int:
    from nnunet_selma.routing.routed import ROUTES, PredictionSettings, predict_routed
    from nnunet_selma.routing.routers import open_router

    settings = PredictionSettings(
        folds=tuple(chosen.folds),
        checkpoint=chosen.checkpoint,
        step_size=chosen.step_size,
        mirroring=not chosen.disable_tta,
        device=chosen.device,
        workers=chosen.workers,
        remove_below=chosen.remove_below,
    )
    models = _models(chosen.models)
    router = open_router(chosen.router, available_device(chosen.device))
    # a checkpoint may name a trainer of this package, which nnU-Net finds by this variable
    environment = {"nnUNet_extTrainer": os.environ.get("nnUNet_extTrainer") or str(TRAINER_FOLDER)}
    records = predict_routed(
        chosen.input, chosen.output, router, models, settings, environment=environment, progress=progress
    )
    for one in records:
        print(
            f"{one['case']}: {one['class']} ({one['probabilities'][one['class']]:.2f}), model {one['model']}, "
            f"{one['removed_components']} small components removed"
        )
    print(f"segmentations and {ROUTES}: {chosen.output}")
    return 0


def _remove_small(chosen: argparse.Namespace) -> int:
    from nnunet_selma.prediction.small_objects import remove_small_in_folder

    removed = remove_small_in_folder(chosen.folder, chosen.output, chosen.below, progress)
    for name, count in removed.items():
        print(f"{name}: {count} components of fewer than {chosen.below} voxels removed")
    print(f"segmentations: {chosen.output}")
    return 0


def _models(texts: list[str]) -> dict[str, Path]:
    """Class to the folder of its model, of `cfos_neuron=FOLDER` and the like."""
    from nnunet_selma.routing.routers import class_named

    models: dict[str, Path] = {}
    for text in texts:
        name, equals, folder = text.partition("=")
        if not equals or not folder:
            raise SelmaError(f"--model {text}: write the class and the folder of its model, as in cfos_neuron=FOLDER")
        name = class_named(name)
        if name in models:
            raise SelmaError(f"--model {text}: {name} has a model already, {models[name]}; name each class once")
        models[name] = path(folder).resolve()
    return models


def _device_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda", "mps"), help="(default: %(default)s)")


def add_to(parts: Any) -> None:
    """Add the commands."""
    train = parts.add_parser("train-router", help="train a classifier that says which structure a volume shows")
    train.add_argument("-d", dest="dataset_id", type=int, required=True, help="annotated dataset, in nnUNet_raw")
    train.add_argument("-o", dest="output", type=path, required=True, metavar="FILE", help="file to write: router.pt")
    train.add_argument(
        "--classes",
        nargs="+",
        default=(),
        metavar="NAME",
        help="structures to tell apart, and other for all that is left (default: each structure of the dataset)",
    )
    train.add_argument(
        "-f",
        dest="fold",
        default="all",
        help="leave out the validation cases of this fold, and say how many of them are recognised (default: train on all)",
    )
    train.add_argument("--steps", type=int, default=300, help="(default: %(default)s)")
    train.add_argument("--patch", type=int, default=64, help="edge of a patch, voxels (default: %(default)s)")
    train.add_argument("--batch", type=int, default=8, help="patches in a step (default: %(default)s)")
    train.add_argument("--large", action="store_true", help="DenseNet-121, for a GPU, instead of a network for CPUs")
    train.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    _device_argument(train)
    train.set_defaults(run=_train_router, starts_anew=True)

    _add_predict_routed(parts)

    small = parts.add_parser("remove-small", help="remove small components from the segmentations in a folder")
    small.add_argument("folder", type=path, help="segmentations, NIfTI")
    small.add_argument("-o", dest="output", type=path, required=True, metavar="FOLDER", help="folder to write")
    small.add_argument("--below", type=int, default=5, help="voxels of the smallest to stay (default: %(default)s)")
    small.set_defaults(run=_remove_small, starts_anew=True)


def _add_predict_routed(parts: Any) -> None:
    routed = parts.add_parser(
        "predict-routed",
        help="predict each image with the model of the structure that it shows, with nnU-Net's command",
    )
    routed.add_argument(
        "-i", dest="input", type=path, required=True, metavar="FOLDER", help="images, named as for nnUNetv2_predict"
    )
    routed.add_argument("-o", dest="output", type=path, required=True, metavar="FOLDER", help="folder to write")
    routed.add_argument(
        "--router",
        type=path,
        required=True,
        metavar="PATH",
        help="file of train-router, or the fold folder of a finished pretraining by SelmaSSLTrainer_MultiTask",
    )
    routed.add_argument(
        "--model",
        dest="models",
        action="append",
        required=True,
        metavar="CLASS=FOLDER",
        help="the trained model of a class, or of all others (other=FOLDER); once for each model",
    )
    routed.add_argument("-f", dest="folds", nargs="+", default=["0"], help="folds, or all (default: 0)")
    routed.add_argument("--checkpoint", default="checkpoint_final.pth", help="(default: %(default)s)")
    routed.add_argument(
        "--remove-below",
        type=int,
        default=5,
        metavar="VOXELS",
        help="remove components of fewer voxels; 0 removes none (default: %(default)s)",
    )
    _device_argument(routed)
    routed.add_argument("--disable_tta", action="store_true", help="no mirroring: faster, a little less accurate")
    routed.add_argument("-step_size", type=float, default=0.5, help="of the sliding window (default: %(default)s)")
    workers_argument(routed, "so many read and so many write")
    routed.set_defaults(run=_predict_routed, starts_anew=True)
