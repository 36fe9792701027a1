"""`nnunet-selma inspect` and `nnunet-selma convert`."""

import argparse
import json
from pathlib import Path
from typing import Any

from nnunet_selma.cli.arguments import (
    Structures,
    path,
    scheduler_argument,
    source_plans_arguments,
    spacing,
    workers_argument,
)
from nnunet_selma.cli.shell import folders, progress
from nnunet_selma.conversion.annotated import AnnotatedSettings, convert_annotated
from nnunet_selma.conversion.inspection import as_text, inspect
from nnunet_selma.conversion.raw_dataset import dataset_folder_name
from nnunet_selma.conversion.tiles import TileSettings
from nnunet_selma.conversion.unannotated import StoreSettings, UnannotatedSettings, convert_unannotated
from nnunet_selma.errors import SelmaError
from nnunet_selma.nnunet.plans import store_plans


def add_to(parts: Any) -> None:
    """Add the commands."""
    look = parts.add_parser(
        "inspect", help="look at a download and say what a conversion would do; exit code 1 if something would stop it"
    )
    look.add_argument("source", type=path)
    _volume_arguments(look)
    look.add_argument("--json", action="store_true", help="everything as JSON")
    look.set_defaults(run=_inspect)

    kinds = parts.add_parser("convert", help="write a download into nnU-Net's formats").add_subparsers(
        required=True, metavar="kind"
    )
    _annotated_arguments(
        kinds.add_parser("annotated", help="patches with ground truth: BioImage Archive, challenge zips, DELiVR")
    )
    _unannotated_arguments(
        kinds.add_parser("unannotated", help="whole brains: SELMA3D's tree of TIFF slices, or any volume")
    )


def _convert_annotated(chosen: argparse.Namespace) -> int:
    settings = AnnotatedSettings(
        dataset_id=chosen.dataset_id,
        name=chosen.name,
        structures=chosen.structures,
        spacing=chosen.spacing,
        vessel_channels=chosen.vessel_channels,
        layout=chosen.layout,
        leave_out_unpaired=chosen.leave_out_unpaired,
        folds=chosen.folds,
        seed=chosen.seed,
    )
    where = folders()
    manifest = convert_annotated(chosen.source, settings, where, progress)
    _print_cases(manifest, where.raw / dataset_folder_name(chosen.dataset_id, chosen.name))
    print(f"next: nnUNetv2_plan_and_preprocess -d {chosen.dataset_id} -c 3d_fullres --verify_dataset_integrity")
    return 0


def _convert_unannotated(chosen: argparse.Namespace) -> int:
    settings = UnannotatedSettings(
        dataset_id=chosen.dataset_id,
        name=chosen.name,
        structures=chosen.structures,
        structure=chosen.structure,
        spacing=chosen.spacing,
        vessel_channels=chosen.vessel_channels,
        on_bad_slice=chosen.on_bad_slice,
        channel=chosen.channel,
        level=chosen.level,
        tiles=TileSettings(
            tile=chosen.tile, per_volume=chosen.tiles_per_volume, min_foreground=chosen.min_foreground, seed=chosen.seed
        ),
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
    return StoreSettings(plans_from=chosen.plans_from, plans_name=chosen.plans, configuration=chosen.configuration)


def _print_cases(manifest: dict[str, Any], where: Path) -> None:
    warnings = 0
    for name, case in manifest["cases"].items():
        facts = [*case["images"], *([case["label"]] if "label" in case else [])]
        for warning in [w for one in facts for w in one["warnings"]]:
            print(f"  {name}: {warning}")
            warnings += 1
    for sentence in manifest.get("left_out", []):
        print(f"  left out: {sentence}")
    print(f"{len(manifest['cases'])} cases, {warnings} warnings: {where}")


def _inspect(chosen: argparse.Namespace) -> int:
    settings = UnannotatedSettings(structure=chosen.structure, channel=chosen.channel, level=chosen.level)
    result = inspect(chosen.source, settings, progress)
    print(json.dumps(result.as_json(), indent=2, ensure_ascii=False) if chosen.json else as_text(result))
    return 1 if result.problems else 0


def _volume_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--structure", help="structure of volumes whose folders do not tell it")
    parser.add_argument("--channel", type=int, help="which channel of files that hold several")
    parser.add_argument(
        "--level", type=int, default=0, help="which resolution level of an OME-Zarr (default: 0, the finest)"
    )


def _common_arguments(parser: argparse.ArgumentParser, defaults: AnnotatedSettings | UnannotatedSettings) -> None:
    parser.add_argument("source", type=path, help="the download, or any folder of it")
    parser.add_argument(
        "-d", dest="dataset_id", type=int, default=defaults.dataset_id, help="dataset id (default: %(default)s)"
    )
    parser.add_argument("--name", default=defaults.name, help="dataset name (default: %(default)s)")
    parser.add_argument(
        "--structures", nargs="+", default=(), action=Structures, metavar="NAME", help="take these structures only"
    )
    parser.add_argument(
        "--spacing",
        type=spacing,
        metavar="physical|voxel|Z,Y,X",
        help="voxel size to write (default: physical for one structure, voxel for several)",
    )
    parser.add_argument(
        "--vessel-channels",
        choices=("wga", "eb", "both", "separate"),
        default=defaults.vessel_channels,
        help="(default: %(default)s)",
    )


def _annotated_arguments(parser: argparse.ArgumentParser) -> None:
    defaults = AnnotatedSettings()
    _common_arguments(parser, defaults)
    parser.add_argument(
        "--layout",
        choices=("bioimage_archive", "challenge_zip", "delivr"),
        help="force a layout instead of detecting it",
    )
    parser.add_argument(
        "--leave-out-unpaired", action="store_true", help="leave out raw files without ground truth and the reverse"
    )
    parser.add_argument("--folds", type=int, default=defaults.folds, help="(default: %(default)s)")
    parser.add_argument("--seed", type=int, default=defaults.seed, help="seed of the folds (default: %(default)s)")
    parser.set_defaults(run=_convert_annotated)


def _unannotated_arguments(parser: argparse.ArgumentParser) -> None:
    defaults = UnannotatedSettings()
    _common_arguments(parser, defaults)
    _volume_arguments(parser)
    parser.add_argument(
        "--tile", type=int, default=defaults.tiles.tile, help="edge of a tile, voxels (default: %(default)s)"
    )
    parser.add_argument(
        "--tiles-per-volume", type=int, default=defaults.tiles.per_volume, help="(default: %(default)s)"
    )
    parser.add_argument(
        "--min-foreground",
        type=float,
        default=defaults.tiles.min_foreground,
        help="least share of tissue in a tile (default: %(default)s)",
    )
    parser.add_argument(
        "--seed", type=int, default=defaults.tiles.seed, help="seed of the choice (default: %(default)s)"
    )
    parser.add_argument(
        "--on-bad-slice", choices=("error", "interpolate"), default=defaults.on_bad_slice, help="(default: %(default)s)"
    )
    workers_argument(parser, "each takes about 1.3 GB, more where one tile is larger")
    scheduler_argument(parser)
    parser.add_argument(
        "--to",
        choices=("raw", "preprocessed"),
        default="raw",
        help="nnU-Net's raw format, or straight to what SelmaSSLTrainer reads, which is faster and smaller (default: %(default)s)",
    )
    store = parser.add_argument_group("with --to preprocessed")
    store.add_argument("--plans-from", type=int, metavar="ID", help="annotated dataset, already planned")
    source_plans_arguments(store)
    parser.set_defaults(run=_convert_unannotated)
