"""`nnunet-selma plan-small`, `plan-network`, `plan-pretraining` and `settings`."""

import argparse
import os
import shlex
from typing import Any

from nnunet_selma.cli.arguments import source_plans_arguments
from nnunet_selma.cli.shell import folders, progress
from nnunet_selma.conversion.unlabelled_raw import has_foreground, store_unlabelled
from nnunet_selma.errors import SelmaError
from nnunet_selma.networks.designs import NETWORKS, network_plans
from nnunet_selma.nnunet import commands
from nnunet_selma.nnunet.folders import Folders
from nnunet_selma.nnunet.plans import TILE_STORE, plan_pretraining, small_plans, write_plans
from nnunet_selma.nnunet.preprocessed_cases import padding_sentence, shapes_of_cases
from nnunet_selma.nnunet.settings import as_lines, parse_assignments, read_settings, with_settings
from nnunet_selma.running.json_files import read_json, write_json


def _plan_small(chosen: argparse.Namespace) -> int:
    path = write_plans(
        small_plans,
        chosen.dataset_id,
        chosen.plans,
        chosen.save_as,
        folders(),
        configuration=chosen.configuration,
        patch_edge=chosen.patch,
        batch_size=chosen.batch,
        features=chosen.features,
    )
    planned = read_json(path)["configurations"][chosen.configuration]
    print(
        f"{path}: patch {planned['patch_size']}, batch {planned['batch_size']}, features {planned['architecture']['arch_kwargs']['features_per_stage']}"
    )
    print(f"use it with: -p {chosen.save_as}")
    return 0


def _plan_network(chosen: argparse.Namespace) -> int:
    name = chosen.save_as or f"{chosen.plans}_{chosen.network}"
    path = write_plans(
        network_plans,
        chosen.dataset_id,
        chosen.plans,
        name,
        folders(),
        network=chosen.network,
        configuration=chosen.configuration,
        patch_edge=chosen.patch,
        batch_size=chosen.batch,
        features=chosen.features,
    )
    ((configuration, planned),) = read_json(path)["configurations"].items()
    print(f"{path}: {chosen.network} for {configuration}, patch {planned['patch_size']}, batch {planned['batch_size']}")
    which = f"-p {name} -c {configuration}"
    print(f"pretrain it: nnunet-selma plan-pretraining -s {chosen.dataset_id} -t UNLABELLED {which}")
    print(f"then train it: nnUNetv2_train {chosen.dataset_id} {configuration} FOLD -tr SelmaFinetuneTrainer -p {name}")
    print(f"without pretraining: nnunet-selma settings -d {chosen.dataset_id} -p {name} finetuning.pretrained=none")
    return 0


def _plan_pretraining(chosen: argparse.Namespace) -> int:
    where = folders()
    if has_foreground(where.raw / where.dataset(chosen.target_id)):
        plans = _preprocess(chosen, where)
    else:
        print(
            f"dataset {chosen.target_id} has no labels with a foreground: its images are stored without nnU-Net's preprocessing"
        )
        if chosen.no_preprocess:
            raise SelmaError("--no-preprocess: images without labels are stored by this command; leave it out")
        plans = store_unlabelled(
            chosen.source_id,
            chosen.target_id,
            where,
            plans_name=chosen.plans,
            configuration=chosen.configuration,
            workers=chosen.workers,
            progress=progress,
        )
    if not chosen.no_preprocess:
        _warn_of_thin_cases(where, chosen.target_id, plans, chosen.configuration)
    print(f"next: nnUNetv2_train {chosen.target_id} {chosen.configuration} all -tr SelmaSSLTrainer -p {plans}")
    return 0


def _preprocess(chosen: argparse.Namespace, where: Folders) -> str:
    """Move the plans and run nnU-Net's preprocessing, or print its commands; returns the name of the plans."""
    plans = plan_pretraining(
        chosen.source_id, chosen.target_id, where, plans_name=chosen.plans, configuration=chosen.configuration
    )
    target, workers = str(chosen.target_id), str(chosen.workers)
    for step in (
        ["nnUNetv2_extract_fingerprint", "-d", target, "-np", workers],
        ["nnUNetv2_preprocess", "-d", target, "-plans_name", plans, "-c", chosen.configuration, "-np", workers],
    ):
        print(shlex.join(step), flush=True)
        if not chosen.no_preprocess:
            commands.run(step)
    return plans


def _warn_of_thin_cases(where: Folders, dataset_id: int, plans_name: str, name: str) -> None:
    """Print a warning where preprocessed cases are thinner than the patch; raises `SelmaError` where they are much thinner."""
    from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    from nnunet_selma.nnunet.tile_store import TileStore

    dataset = where.dataset(dataset_id)
    configuration = PlansManager(read_json(where.plans(dataset, plans_name))).get_configuration(name)
    folder = where.preprocessed / dataset / configuration.data_identifier
    stored = configuration.configuration.get(TILE_STORE)
    shapes = shapes_of_cases(folder, TileStore if stored else infer_dataset_class(str(folder)))
    if thin := padding_sentence(shapes, configuration.patch_size):
        print(f"WARNING: {thin}.", flush=True)


def _settings(chosen: argparse.Namespace) -> int:
    where = folders()
    path = where.plans(where.dataset(chosen.dataset_id), chosen.plans)
    plans = read_json(path)
    if chosen.assignments or chosen.save_as:
        plans = with_settings(plans, parse_assignments(chosen.assignments))
        plans["plans_name"] = chosen.save_as or plans["plans_name"]
        path = path.with_name(f"{plans['plans_name']}.json")
        write_json(path, plans)
    print(path)
    print("\n".join(as_lines(read_settings(plans))))
    return 0


def _add_plan_network(parts: Any) -> None:
    network = parts.add_parser("plan-network", help="plans with a network that nnU-Net does not have")
    network.add_argument("-d", dest="dataset_id", type=int, required=True, help="dataset id")
    network.add_argument("--network", choices=sorted(NETWORKS), required=True)
    network.add_argument("-p", dest="plans", default="nnUNetPlans", help="plans to start from (default: %(default)s)")
    network.add_argument("-c", dest="configuration", help="(default: 3d_fullres, for attention_unet 2d)")
    network.add_argument("--save-as", help="name of the new plans (default: PLANS_NETWORK)")
    network.add_argument("--patch", type=int, help="longest edge of a patch, voxels (default: as in the plans)")
    network.add_argument("--batch", type=int, help="patches in a batch (default: as in the plans)")
    usual = ", ".join(f"{name} {design.features}" for name, design in NETWORKS.items())
    network.add_argument("--features", type=int, help=f"size of the embedding or of the first stage (default: {usual})")
    network.set_defaults(run=_plan_network)


def add_to(parts: Any) -> None:
    """Add the commands."""
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

    _add_plan_network(parts)

    pretraining = parts.add_parser(
        "plan-pretraining", help="give the unlabelled dataset the plans of the annotated one, and preprocess it"
    )
    pretraining.add_argument("-s", dest="source_id", type=int, required=True, help="annotated dataset, already planned")
    pretraining.add_argument("-t", dest="target_id", type=int, required=True, help="unlabelled dataset")
    source_plans_arguments(pretraining)
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
