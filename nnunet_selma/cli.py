"""`nnunet-selma …`: reads arguments and environment, calls the library, prints."""

import argparse
import errno
import json
import os
import shlex
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from nnunet_selma import __version__, commands
from nnunet_selma.conversion.annotated import AnnotatedSettings, convert_annotated
from nnunet_selma.conversion.inspection import as_text, inspect
from nnunet_selma.conversion.raw_dataset import dataset_folder_name
from nnunet_selma.conversion.spacing import Spacing
from nnunet_selma.conversion.unannotated import StoreSettings, UnannotatedSettings, convert_unannotated
from nnunet_selma.cpu.resources import usable_cores
from nnunet_selma.errors import SelmaError
from nnunet_selma.folders import Folders
from nnunet_selma.json_files import read_json, write_json
from nnunet_selma.planning import RECIPES, plan_pretraining, store_plans, write_small_plans
from nnunet_selma.settings import as_lines, parse_assignments, read_settings, with_settings
from nnunet_selma.structures import named
from nnunet_selma.tiles import TileSettings


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0, 1 (inspect found problems) or 2 (it could not be done)."""
    parser = _parser()
    chosen = parser.parse_args(arguments)
    try:
        code: int = chosen.run(chosen)
    except SelmaError as error:
        _complain(str(error))
        return 2
    except OSError as error:
        where = error.filename or "the disk"
        remedy = (
            "make room and run the command again"
            if error.errno == errno.ENOSPC
            else "check the path and its permissions"
        )
        _complain(f"{where}: {error.strerror or error}; {remedy}")
        return 2
    except KeyboardInterrupt:
        _complain("stopped; the same command goes on from here")
        return 130
    return code


def _progress(items: Sequence[Any], label: str) -> Iterable[Any]:
    from tqdm import tqdm

    with tqdm(items, desc=label, dynamic_ncols=True, mininterval=1.0) as bar:
        _bars.append(bar)
        yield from bar


_bars: list[Any] = []


def _complain(sentence: str) -> None:
    for bar in _bars:  # an error leaves the bar open, and the cursor behind it
        bar.close()
    print(f"nnunet-selma: {sentence}", file=sys.stderr)


def _folders() -> Folders:
    missing = [name for name in commands.FOLDER_VARIABLES if not os.environ.get(name)]
    if missing:
        raise SelmaError(f'{", ".join(missing)} not set; run: eval "$(nnunet-selma env FOLDER)"')
    raw, preprocessed, results = (Path(os.environ[name]) for name in commands.FOLDER_VARIABLES)
    return Folders(raw=raw, preprocessed=preprocessed, results=results)


def _env(chosen: argparse.Namespace) -> int:
    for name, value in commands.workspace_environment(chosen.root).items():
        print(f"export {name}={shlex.quote(value)}")
    return 0


def _convert_annotated(chosen: argparse.Namespace) -> int:
    settings = AnnotatedSettings(
        dataset_id=chosen.dataset_id, name=chosen.name, structures=chosen.structures, spacing=chosen.spacing,
        vessel_channels=chosen.vessel_channels, layout=chosen.layout, leave_out_unpaired=chosen.leave_out_unpaired,
        folds=chosen.folds, seed=chosen.seed,
    )  # fmt: skip
    folders = _folders()
    manifest = convert_annotated(chosen.source, settings, folders, _progress)
    _print_cases(manifest, folders.raw / dataset_folder_name(chosen.dataset_id, chosen.name))
    print(f"next: nnUNetv2_plan_and_preprocess -d {chosen.dataset_id} -c 3d_fullres --verify_dataset_integrity")
    return 0


def _convert_unannotated(chosen: argparse.Namespace) -> int:
    settings = UnannotatedSettings(
        dataset_id=chosen.dataset_id, name=chosen.name, structures=chosen.structures, structure=chosen.structure,
        spacing=chosen.spacing, vessel_channels=chosen.vessel_channels, on_bad_slice=chosen.on_bad_slice, channel=chosen.channel, level=chosen.level,
        tiles=TileSettings(tile=chosen.tile, per_volume=chosen.tiles_per_volume, min_foreground=chosen.min_foreground, seed=chosen.seed),
    )  # fmt: skip
    folders = _folders()
    store = _store(chosen)
    manifest = convert_unannotated(chosen.source, settings, folders, _progress, store=store, workers=chosen.workers)
    for name, volume in manifest["volumes"].items():
        for warning in [*volume["warnings"], *(f"interpolated {s}" for s in volume["interpolated_slices"])]:
            print(f"  {name}: {warning}")
    name = dataset_folder_name(chosen.dataset_id, chosen.name)
    if store is None:
        _print_cases(manifest, folders.raw / name)
        print(f"next: nnunet-selma plan-pretraining -s <annotated id> -t {chosen.dataset_id}")
    else:
        plans = store_plans(store.plans_from, name, folders, **store.choice)
        _print_cases(manifest, folders.preprocessed / name)
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
    return StoreSettings(
        plans_from=chosen.plans_from, plans_name=chosen.plans, configuration=chosen.configuration, recipe=chosen.recipe
    )


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
    result = inspect(chosen.source, settings, _progress)
    print(json.dumps(result.as_json(), indent=2, ensure_ascii=False) if chosen.json else as_text(result))
    return 1 if result.problems else 0


def _plan_small(chosen: argparse.Namespace) -> int:
    path = write_small_plans(
        chosen.dataset_id, chosen.plans, chosen.save_as, _folders(),
        configuration=chosen.configuration, patch_edge=chosen.patch, batch_size=chosen.batch, features=chosen.features,
    )  # fmt: skip
    own = read_json(path)["configurations"][chosen.configuration]
    print(
        f"{path}: patch {own['patch_size']}, batch {own['batch_size']}, features {own['architecture']['arch_kwargs']['features_per_stage']}"
    )
    print(f"use it with: -p {chosen.save_as}")
    return 0


def _plan_pretraining(chosen: argparse.Namespace) -> int:
    folders = _folders()
    plans = plan_pretraining(
        chosen.source_id,
        chosen.target_id,
        folders,
        plans_name=chosen.plans,
        recipe=chosen.recipe,
        configuration=chosen.configuration,
    )
    workers = str(chosen.workers)
    steps = [
        ["nnUNetv2_extract_fingerprint", "-d", str(chosen.target_id), "-np", workers],
        [
            "nnUNetv2_preprocess",
            "-d",
            str(chosen.target_id),
            "-plans_name",
            plans,
            "-c",
            chosen.configuration,
            "-np",
            workers,
        ],
    ]
    for step in steps:
        print(shlex.join(step), flush=True)
        if not chosen.no_preprocess:
            commands.run(step)
    print(f"next: nnUNetv2_train {chosen.target_id} {chosen.configuration} all -tr SelmaSSLTrainer -p {plans}")
    return 0


def _settings(chosen: argparse.Namespace) -> int:
    folders = _folders()
    path = folders.plans(folders.dataset(chosen.dataset_id), chosen.plans)
    plans = read_json(path)
    if chosen.assignments or chosen.save_as:
        plans = with_settings(plans, parse_assignments(chosen.assignments))
        plans["plans_name"] = chosen.save_as or plans["plans_name"]
        path = path.with_name(f"{plans['plans_name']}.json")
        write_json(path, plans)
    print(path)
    print("\n".join(as_lines(read_settings(plans))))
    return 0


def _demo(chosen: argparse.Namespace) -> int:
    from nnunet_selma.demo import run_demo

    report = run_demo(
        chosen.output,
        data=chosen.data,
        device=chosen.device,
        seed=chosen.seed,
        say=lambda line: print(line, flush=True),
    )
    print(f"open {report}")
    return 0


def _path(text: str) -> Path:
    return Path(text).expanduser()


def _spacing(text: str) -> Spacing:
    if text == "physical":
        return "physical"
    if text == "voxel":
        return "voxel"
    try:
        z, y, x = (float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: give physical, voxel, or three numbers Z,Y,X in µm") from None
    if min(z, y, x) <= 0:
        raise argparse.ArgumentTypeError(f"{text!r}: a voxel size is above 0")
    return (z, y, x)


class _Structures(argparse.Action):
    """Names of structures or of their folders, to prefixes; an unknown one ends as every other `SelmaError`."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: str | None = None
    ) -> None:
        try:
            setattr(namespace, self.dest, tuple(named(value).prefix for value in values))
        except SelmaError as error:
            parser.exit(2, f"nnunet-selma: {error}\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="nnunet-selma", description="Self-supervised nnU-Net for light-sheet microscopy."
    )
    parser.add_argument("--version", action="version", version=__version__)
    parts = parser.add_subparsers(required=True, metavar="command")

    env = parts.add_parser("env", help='print the environment of a workspace: eval "$(nnunet-selma env ~/selma)"')
    env.add_argument("root", type=_path, help="folder for nnU-Net's raw, preprocessed and result folders")
    env.set_defaults(run=_env)

    look = parts.add_parser(
        "inspect", help="look at a download and say what a conversion would do; exit code 1 if something would stop it"
    )
    look.add_argument("source", type=_path)
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

    _planning_commands(parts)

    demo = parts.add_parser(
        "demo", help="run everything on a synthetic brain, with the real commands, and write a report"
    )
    demo.add_argument(
        "-o", dest="output", type=_path, default=Path("demo"), help="folder for everything (default: %(default)s)"
    )
    demo.add_argument("--data", type=_path, help="a real download instead of the synthetic one")
    demo.add_argument("--device", default="cpu", choices=("cpu", "cuda", "mps"))
    demo.add_argument("--seed", type=int, default=0)
    demo.set_defaults(run=_demo)
    return parser


def _planning_commands(parts: Any) -> None:
    small = parts.add_parser("plan-small", help="plans with a smaller network and patch, for a machine without GPU")
    small.add_argument("-d", dest="dataset_id", type=int, required=True, help="dataset id")
    small.add_argument("-p", dest="plans", default="nnUNetPlans", help="plans to start from (default: %(default)s)")
    small.add_argument("-c", dest="configuration", default="3d_fullres")
    small.add_argument("--save-as", default="nnUNetSmallPlans", help="name of the new plans (default: %(default)s)")
    small.add_argument("--patch", type=int, default=32, help="longest edge of a patch, voxels (default: %(default)s)")
    small.add_argument("--batch", type=int, default=4, help="patches in a batch (default: %(default)s)")
    small.add_argument(
        "--features", type=int, nargs="+", default=[16, 32, 64], help="features of each stage (default: 16 32 64)"
    )
    small.set_defaults(run=_plan_small)

    pretraining = parts.add_parser(
        "plan-pretraining", help="give the unlabelled dataset the plans of the annotated one, and preprocess it"
    )
    pretraining.add_argument("-s", dest="source_id", type=int, required=True, help="annotated dataset, already planned")
    pretraining.add_argument("-t", dest="target_id", type=int, required=True, help="unlabelled dataset")
    _source_plans_arguments(pretraining)
    pretraining.add_argument(
        "--workers",
        type=int,
        default=min(8, os.cpu_count() or 1),
        help="processes of nnU-Net's preprocessing (default: %(default)s)",
    )
    pretraining.add_argument("--no-preprocess", action="store_true", help="only print the preprocessing commands")
    pretraining.set_defaults(run=_plan_pretraining)

    settings = parts.add_parser(
        "settings", help="show or change what a plans file says about pretraining and fine-tuning"
    )
    settings.add_argument("-d", dest="dataset_id", type=int, required=True, help="dataset id")
    settings.add_argument("-p", dest="plans", default="nnUNetPlans", help="plans (default: %(default)s)")
    settings.add_argument("--save-as", help="write the changed plans under another name")
    settings.add_argument("assignments", nargs="*", metavar="section.setting=value")
    settings.set_defaults(run=_settings)


def _volume_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--structure", help="structure of volumes whose folders do not tell it")
    parser.add_argument("--channel", type=int, help="which channel of files that hold several")
    parser.add_argument(
        "--level", type=int, default=0, help="which resolution level of an OME-Zarr (default: 0, the finest)"
    )


def _common_arguments(parser: argparse.ArgumentParser, defaults: AnnotatedSettings | UnannotatedSettings) -> None:
    parser.add_argument("source", type=_path, help="the download, or any folder of it")
    parser.add_argument(
        "-d", dest="dataset_id", type=int, default=defaults.dataset_id, help="dataset id (default: %(default)s)"
    )
    parser.add_argument("--name", default=defaults.name, help="dataset name (default: %(default)s)")
    parser.add_argument(
        "--structures", nargs="+", default=(), action=_Structures, metavar="NAME", help="take these structures only"
    )
    parser.add_argument(
        "--spacing",
        type=_spacing,
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
    parser.add_argument(
        "--workers",
        type=int,
        default=min(_MOST_WORKERS, usable_cores()),
        help="processes; each takes about 1.3 GB, more where one tile is larger (default: %(default)s)",
    )
    parser.add_argument(
        "--to",
        choices=("raw", "preprocessed"),
        default="raw",
        help="nnU-Net's raw format, or straight to what SelmaSSLTrainer reads, which is faster and smaller (default: %(default)s)",
    )
    store = parser.add_argument_group("with --to preprocessed")
    store.add_argument("--plans-from", type=int, metavar="ID", help="annotated dataset, already planned")
    _source_plans_arguments(store)
    parser.set_defaults(run=_convert_unannotated)


_MOST_WORKERS = 4
"""Of the default; each takes memory, and a laptop has little to spare."""


def _source_plans_arguments(parser: Any) -> None:
    parser.add_argument(
        "-p", dest="plans", default="nnUNetPlans", help="plans of the annotated dataset (default: %(default)s)"
    )
    parser.add_argument("-c", dest="configuration", default="3d_fullres", help="(default: %(default)s)")
    parser.add_argument(
        "--recipe", choices=sorted(RECIPES), default="default", help="patch, batch and settings of a SELMA3D team"
    )


if __name__ == "__main__":
    sys.exit(main())
