"""`nnunet-selma inspect`, `convert` and `splits`."""

import argparse
import json
from pathlib import Path
from typing import Any

from nnunet_selma.annotation.conversion import convert_cubes
from nnunet_selma.annotation.cube_settings import CubeSettings, check_no_cube_settings
from nnunet_selma.annotation.next_commands import next_commands
from nnunet_selma.annotation.returned import is_folder_of_cubes
from nnunet_selma.annotation.rounds import standing
from nnunet_selma.cli.arguments import path, prefixes, scheduler_argument, workers_argument
from nnunet_selma.cli.options import add_options, settings_from
from nnunet_selma.cli.shell import folders, progress
from nnunet_selma.conversion.annotated import AnnotatedSettings, convert_annotated
from nnunet_selma.conversion.dataset_folds import FoldSettings, write_folds
from nnunet_selma.conversion.inspection import as_text, inspect
from nnunet_selma.conversion.raw_dataset import dataset_folder_name
from nnunet_selma.conversion.tiles import TileSettings
from nnunet_selma.conversion.unannotated import StoreSettings, UnannotatedSettings, convert_unannotated
from nnunet_selma.conversion.walk import PassedBy
from nnunet_selma.errors import SelmaError, counted
from nnunet_selma.nnunet.folders import MANIFEST
from nnunet_selma.nnunet.plans import store_plans


def add_to(parts: Any) -> None:
    """Add the commands."""
    look = parts.add_parser(
        "inspect", help="look at a download and say what a conversion would do; exit code 1 if something would stop it"
    )
    look.add_argument("source", type=path)
    add_options(look, UnannotatedSettings, **_SHOWN, **_VOLUME)
    look.add_argument("--full", action="store_true", help="read unannotated volumes whole, instead of a few slices")
    look.add_argument("--json", action="store_true", help="everything as JSON")
    look.set_defaults(run=_inspect)

    kinds = parts.add_parser("convert", help="write a download into nnU-Net's formats").add_subparsers(
        required=True, metavar="kind"
    )
    _annotated_arguments(
        kinds.add_parser("annotated", help="patches with labels: downloads of SELMA3D and DELiVR, and your own")
    )
    _unannotated_arguments(
        kinds.add_parser("unannotated", help="whole brains: SELMA3D's tree of TIFF slices, or any volume")
    )

    folds = parts.add_parser("splits", help="write folds of an nnU-Net dataset that part no animal and no tissue")
    add_options(folds, FoldSettings, dataset_id="-d", group=" REGEX|CSV", folds="", seed="", overwrite="")
    folds.set_defaults(run=_splits)


def _splits(chosen: argparse.Namespace) -> int:
    where = folders()
    if chosen.dataset_id is None:
        raise SelmaError("give the dataset with -d")
    splits = write_folds(settings_from(FoldSettings, chosen), where, progress)
    for number, split in enumerate(splits):
        print(f"fold {number}: {len(split['train'])} training and {counted(len(split['val']), 'validation case')}")
    print(f"folds: {where.preprocessed / where.dataset(chosen.dataset_id) / 'splits_final.json'}")
    return 0


def _convert_annotated(chosen: argparse.Namespace) -> int:
    settings = settings_from(AnnotatedSettings, chosen, structures=prefixes(chosen.structures))
    where = folders()
    of_cubes = settings_from(CubeSettings, chosen)
    if is_folder_of_cubes(chosen.source):
        return _convert_cubes(chosen, settings, of_cubes)
    check_no_cube_settings(of_cubes, chosen.source)
    manifest = convert_annotated(chosen.source, settings, where, progress)
    _print_cases(manifest, where.raw / dataset_folder_name(chosen.dataset_id, chosen.name))
    print(f"next: nnUNetv2_plan_and_preprocess -d {chosen.dataset_id} -c 3d_fullres --verify_dataset_integrity")
    return 0


def _convert_cubes(chosen: argparse.Namespace, settings: AnnotatedSettings, of_cubes: CubeSettings) -> int:
    where, name = folders(), dataset_folder_name(settings.dataset_id, settings.name)
    if (where.raw / name / MANIFEST).is_file():
        standing(settings.dataset_id, where, chosen.source)  # keeps validations by the folds as they were
    given = _NUMBERS & vars(chosen).keys()
    manifest = convert_cubes(chosen.source, settings, of_cubes, where, progress, given=given)
    _print_cases(manifest, where.raw / name)
    for sentence in manifest["parted"]:
        print(f"  {sentence}")
    if len(set(manifest["groups"].values())) == 1:
        print(
            "all cubes are one group, which no fold may part: every fold trains and validates on all of them. Annotate a second brain, or begin the "
            "dataset with --group 'cube_[0-9]+' to hold out single cubes, which says nothing about other brains"
        )
    entry, version = manifest["history"][-1], len(manifest["history"])
    if not manifest["grown"]:
        print("nothing new: the dataset stays as it is")
    else:
        print(
            f"version {version}: {len(entry['added'])} new, {len(entry['changed'])} corrected, {len(entry['removed'])} taken out"
        )
    print(
        "\n".join(
            ["next:", *(f"  {line}" for line in next_commands(standing(settings.dataset_id, where, chosen.source)))]
        )
    )
    return 0


def _convert_unannotated(chosen: argparse.Namespace) -> int:
    settings = settings_from(
        UnannotatedSettings,
        chosen,
        structures=prefixes(chosen.structures),
        tiles=settings_from(TileSettings, chosen),
    )
    where = folders()
    store = _store(chosen)
    manifest = convert_unannotated(
        chosen.source, settings, where, progress, store=store, workers=chosen.workers, scheduler=chosen.scheduler
    )
    for name, volume in manifest["volumes"].items():
        for warning in [*volume["warnings"], *(f"interpolated {s}" for s in volume["interpolated_slices"])]:
            print(f"  {name}: {warning}")
    name = dataset_folder_name(chosen.dataset_id, chosen.name)
    if store is None:
        _print_cases(manifest, where.raw / name)
        print(f"next: nnunet-selma plan-pretraining -s <annotated id> -t {chosen.dataset_id}")
    else:
        plans = store_plans(store.plans_from, name, where, **store.choice)
        _print_cases(manifest, where.preprocessed / name)
        print(
            f"next: nnUNetv2_train {chosen.dataset_id} {store.configuration} all -tr SelmaSSLTrainer -p {plans['plans_name']}"
        )
    return 0


def _store(chosen: argparse.Namespace) -> StoreSettings | None:
    if chosen.to == "raw":
        if chosen.plans_from is not None:
            raise SelmaError(
                "--plans-from is for --to preprocessed; raw tiles get their plans from nnunet-selma plan-pretraining"
            )
        return None
    if chosen.plans_from is None:
        raise SelmaError("--to preprocessed needs --plans-from with the id of the annotated dataset, already planned")
    return settings_from(StoreSettings, chosen)


def _print_cases(manifest: dict[str, Any], where: Path) -> None:
    warnings = 0
    for name, case in manifest["cases"].items():
        files = [*case["images"], *([case["label"]] if "label" in case else [])]
        for warning in [warning for file in files for warning in file["warnings"]]:
            print(f"  {name}: {warning}")
            warnings += 1
    for sentence in manifest.get("left_out", []):
        print(f"  left out: {sentence}")
    groups = [PassedBy(**group) for group in manifest["passed_by"]]
    for group in groups:
        print(f"  passed by: {group}")
    print(f"voxel size: {'; '.join(manifest['spacing'])}")
    print(
        f"{counted(len(manifest['cases']), 'case')}, {counted(warnings, 'warning')}, {counted(sum(g.files for g in groups), 'file')} passed by: {where}"
    )


def _inspect(chosen: argparse.Namespace) -> int:
    result = inspect(chosen.source, settings_from(UnannotatedSettings, chosen), progress, full=chosen.full)
    print(json.dumps(result.as_json(), indent=2) if chosen.json else as_text(result))
    return 1 if result.problems else 0


_SHOWN = {"structure": "", "spacing": "", "stains": "", "scene": "", "channel": "", "time": ""}
_COMMON = {"dataset_id": "-d", "name": "", "structures": "", "vessel_channels": "", **_SHOWN}
_NUMBERS = frozenset({"folds", "seed"})
"""Options whose default is a number, which does not tell whether a user gave it."""
_VOLUME = {"level": "", "slice_pattern": " REGEX", "on_bad_slice": ""}


def _annotated_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source",
        type=path,
        nargs="?",
        help="the download, or any folder of it; or a folder with images and labels in raw and gt, images and masks, or imagesTr and labelsTr",
    )
    add_options(
        parser,
        AnnotatedSettings,
        only_given=_NUMBERS,
        images="--images DIR",
        labels="--labels DIR",
        **_COMMON,
        kind="",
        layout="",
        foreground=" VALUE",
        group=" REGEX|CSV",
        leave_out_unpaired="",
        folds="",
        seed="",
    )
    cubes = parser.add_argument_group("with a folder of cubes from propose, whose dataset grows when this is run again")
    add_options(cubes, CubeSettings, classes="", without_unchanged="", without=" CUBE", as_is=" CUBE")
    parser.set_defaults(run=_convert_annotated)


def _unannotated_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", type=path, help="the download, or any folder of it, or a volume")
    add_options(parser, UnannotatedSettings, **_COMMON, **_VOLUME)
    add_options(parser, TileSettings, tile="", per_volume="--tiles-per-volume", min_foreground="", seed="")
    workers_argument(parser, "each takes about 1.3 GB, more where one tile is larger")
    scheduler_argument(parser)
    parser.add_argument(
        "--to",
        choices=("raw", "preprocessed"),
        default="raw",
        help="nnU-Net's raw format, or straight to what SelmaSSLTrainer reads, which is faster and smaller (default: %(default)s)",
    )
    store = parser.add_argument_group("with --to preprocessed")
    add_options(store, StoreSettings, plans_from=" ID", plans_name="-p", configuration="-c")
    parser.set_defaults(run=_convert_unannotated)
