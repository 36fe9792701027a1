"""`nnunet-selma train-router`, `predict-routed` and `remove-small`."""

import argparse
import os
from pathlib import Path
from typing import Any

from nnunet_selma.cli.arguments import device_argument, path, workers_argument
from nnunet_selma.cli.options import add_options, settings_from
from nnunet_selma.cli.shell import computing_device, folders, progress
from nnunet_selma.errors import SelmaError, counted
from nnunet_selma.nnunet.folders import TRAINER_FOLDER
from nnunet_selma.running.json_files import read_json


def _train_router(chosen: argparse.Namespace) -> int:
    from nnunet_selma.routing.router_training import RouterTraining, train_router
    from nnunet_selma.routing.routers import class_named

    where = folders()
    classes = tuple(class_named(name) for name in chosen.classes)
    settings = settings_from(RouterTraining, chosen, classes=classes)
    if chosen.output.is_dir() or not chosen.output.parent.is_dir():
        raise SelmaError(f"{chosen.output}: give a file in a folder that exists, as in -o router.pt")
    name = where.dataset(chosen.dataset_id)
    left_out = _validation_cases(where.preprocessed / name / "splits_final.json", chosen.fold)
    router, results = train_router(
        where.raw / name, settings, computing_device(chosen.device), progress, left_out=left_out
    )
    router.save(chosen.output)
    for name, result in results.items():
        unseen = f"; {sum(result.unseen)} of {len(result.unseen)} unseen cases recognised" if left_out else ""
        print(f"{name}: {counted(result.cases, 'case')}, {result.recognised:.0%} of their patches recognised{unseen}")
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
    from nnunet_selma.routing.routed import ROUTES, RoutedSettings, predict_routed
    from nnunet_selma.routing.routers import open_router

    models = models_by_class(chosen.models)
    device = computing_device(chosen.device)
    settings = settings_from(RoutedSettings, chosen, device=device.type)
    router = open_router(chosen.router, device)
    # a checkpoint may name a trainer of this package, which nnU-Net finds by this variable
    environment = {"nnUNet_extTrainer": os.environ.get("nnUNet_extTrainer") or str(TRAINER_FOLDER)}
    records = predict_routed(
        chosen.input, chosen.output, router, models, settings, environment=environment, progress=progress
    )
    for record in records:
        print(
            f"{record['case']}: {record['class']} ({record['probabilities'][record['class']]:.2f}), model {record['model']}, "
            f"{counted(record['removed_components'], 'small component')} removed"
        )
    print(f"segmentations and {ROUTES}: {chosen.output}")
    return 0


def _remove_small(chosen: argparse.Namespace) -> int:
    from nnunet_selma.prediction.small_objects import remove_small_in_folder

    removed = remove_small_in_folder(chosen.folder, chosen.output, chosen.below, progress)
    for name, count in removed.items():
        print(f"{name}: {counted(count, 'component')} of fewer than {counted(chosen.below, 'voxel')} removed")
    print(f"segmentations: {chosen.output}")
    return 0


def models_by_class(texts: list[str]) -> dict[str, Path]:
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


def add_to(parts: Any) -> None:
    """Add the commands."""
    parts.add_parser(
        "train-router",
        options=_train_router_options,
        help="train a classifier that says which structure a volume shows",
    )
    parts.add_parser(
        "predict-routed",
        options=_predict_routed_options,
        help="predict each image with the model of the structure that it shows, with nnU-Net's command",
    )
    parts.add_parser(
        "remove-small", options=_remove_small_options, help="remove small components from the segmentations in a folder"
    )


def _train_router_options(parser: argparse.ArgumentParser) -> None:
    from nnunet_selma.routing.router_training import RouterTraining

    parser.add_argument("-d", dest="dataset_id", type=int, required=True, help="annotated dataset, in nnUNet_raw")
    parser.add_argument("-o", dest="output", type=path, required=True, metavar="FILE", help="file to write: router.pt")
    parser.add_argument(
        "-f",
        dest="fold",
        default="all",
        help="leave out the validation cases of this fold, and say how many of them are recognised (default: train on all)",
    )
    add_options(parser, RouterTraining, classes="", steps="", patch="", batch="", large="", seed="")
    device_argument(parser)
    parser.set_defaults(run=_train_router, starts_anew=True)


def _remove_small_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=path, help="segmentations, NIfTI")
    parser.add_argument("-o", dest="output", type=path, required=True, metavar="FOLDER", help="folder to write")
    parser.add_argument("--below", type=int, default=5, help="voxels of the smallest to stay (default: %(default)s)")
    parser.set_defaults(run=_remove_small, starts_anew=True)


def _predict_routed_options(parser: argparse.ArgumentParser) -> None:
    from nnunet_selma.routing.routed import RoutedSettings

    parser.add_argument(
        "-i", dest="input", type=path, required=True, metavar="FOLDER", help="images, named as for nnUNetv2_predict"
    )
    parser.add_argument("-o", dest="output", type=path, required=True, metavar="FOLDER", help="folder to write")
    parser.add_argument(
        "--router",
        type=path,
        required=True,
        metavar="PATH",
        help="file of train-router, or the fold folder of a finished pretraining by SelmaSSLTrainer_MultiTask",
    )
    parser.add_argument(
        "--model",
        dest="models",
        action="append",
        required=True,
        metavar="CLASS=FOLDER",
        help="the trained model of a class, or of all others (other=FOLDER); once for each model",
    )
    add_options(
        parser, RoutedSettings, folds="-f FOLD", checkpoint=" FILE", remove_below=" VOXELS", step_size="-step_size"
    )
    device_argument(parser)
    parser.add_argument(
        "--disable_tta", dest="mirroring", action="store_false", help="no mirroring: faster, a little less accurate"
    )
    workers_argument(parser, "so many read and so many write")
    parser.set_defaults(run=_predict_routed, starts_anew=True)
