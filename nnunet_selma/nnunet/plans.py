"""nnU-Net plans for pretraining and for small machines; every network stays the one nnU-Net configured."""

import math
import shutil
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

from nnunet_selma.errors import SelmaError
from nnunet_selma.nnunet.folders import MANIFEST, Folders
from nnunet_selma.running.json_files import read_json, write_json
from nnunet_selma.volumes.units import um_in_header_unit

Plans = dict[str, Any]

TILE_STORE = "selma_tile_store"
"""Set in a configuration whose preprocessed data are a tile store, not nnU-Net's own."""

# nnU-Net weighs the outputs of its decoder and leaves the coarsest out; with two stages none is left and the loss is NaN
_LEAST_STAGES = 3


def total_strides(configuration: Mapping[str, Any]) -> list[int]:
    """The product of a network's strides along each axis."""
    return [math.prod(axis) for axis in zip(*configuration["architecture"]["arch_kwargs"]["strides"], strict=True)]


def fitting_patch(edges: Sequence[int], strides: Sequence[int]) -> list[int]:
    """The next larger patch whose edges the strides divide, with more than one voxel at the bottleneck.

    Instance normalisation needs more than one voxel to have a variance.
    """
    patch = [math.ceil(edge / stride) * stride for edge, stride in zip(edges, strides, strict=True)]
    if math.prod(edge // stride for edge, stride in zip(patch, strides, strict=True)) == 1:
        patch = [edge * 2 for edge in patch]
    return patch


def own_configuration(plans: Plans, configuration: str) -> dict[str, Any]:
    """The configuration's own dictionary; raises `SelmaError` where the plans have none of that name."""
    if configuration not in plans["configurations"]:
        raise SelmaError(
            f"plans {plans['plans_name']} have no configuration {configuration!r}: choose one of {', '.join(plans['configurations'])}"
        )
    own: dict[str, Any] = plans["configurations"][configuration]
    return own


def pretraining_configuration(plans: Plans, configuration: str) -> dict[str, Any]:
    """The configuration with what it inherits; raises `SelmaError` where there is none of that name, or it is a second stage."""
    own_configuration(plans, configuration)
    whole = whole_configuration(plans, configuration)
    check_first_stage(whole, configuration)
    return whole


def whole_configuration(plans: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A copy of a configuration with everything that it inherits, as nnU-Net's `PlansManager` resolves it."""
    whole = dict(plans["configurations"][name])
    while parent := whole.pop("inherits_from", None):
        whole = {**plans["configurations"][parent], **whole}
    return deepcopy(whole)


def check_first_stage(configuration: Mapping[str, Any], name: str) -> None:
    """Raise `SelmaError` for the second stage of a cascade, whose network reads a segmentation beside the image."""
    if configuration.get("previous_stage"):
        raise SelmaError(
            f"{name} is the second stage of a cascade, which cannot be pretrained on images alone; pretrain 3d_fullres and fine-tune {name} from that"
        )


def small_plans(
    plans: Plans, name: str, *, configuration: str, patch_edge: int, batch_size: int, features: Sequence[int]
) -> Plans:
    """Plans with a smaller network, patch and batch, for a machine without GPU; preprocessed data are shared.

    The network keeps nnU-Net's class, and the kernels and strides of its first `len(features)` stages; the patch is at most
    `patch_edge` along each axis, as the strides allow.

    Raises:
        SelmaError: fewer than three stages.
    """
    if patch_edge < 1 or batch_size < 1 or min(features, default=0) < 1:
        raise SelmaError("patch, batch and features are numbers of at least 1")
    if len(features) < _LEAST_STAGES:
        raise SelmaError(
            f"{len(features)} stages: give at least {_LEAST_STAGES} numbers of features; nnU-Net's deep supervision needs them"
        )
    changed = deepcopy(plans)
    changed["plans_name"] = name
    own = own_configuration(changed, configuration)
    kwargs = own["architecture"]["arch_kwargs"]
    if "n_stages" not in kwargs:
        raise SelmaError(
            f"{own['architecture']['network_class_name']} is no network that nnU-Net configured; make its plans smaller with nnunet-selma plan-network"
        )
    stages, kept = kwargs["n_stages"], min(len(features), kwargs["n_stages"])
    for key, value in kwargs.items():
        if isinstance(value, (list, tuple)) and len(value) in (stages, stages - 1):
            kwargs[key] = list(value[: kept - (stages - len(value))])
    kwargs["n_stages"], kwargs["features_per_stage"] = kept, list(features[:kept])
    own["patch_size"] = fitting_patch([min(edge, patch_edge) for edge in own["patch_size"]], total_strides(own))
    own["batch_size"] = batch_size
    changed["configurations"] = {configuration: own}
    return changed


def write_small_plans(dataset_id: int, plans_name: str, name: str, folders: Folders, **choice: Any) -> Path:
    """Write `small_plans` beside the plans they come from; returns the file."""
    source = folders.plans(folders.dataset(dataset_id), plans_name)
    target = source.with_name(f"{name}.json")
    write_json(target, small_plans(read_json(source), name, **choice))
    return target


def plan_pretraining(
    source_id: int,
    target_id: int,
    folders: Folders,
    *,
    plans_name: str,
    configuration: str = "3d_fullres",
) -> str:
    """Give the unlabelled dataset the plans of the annotated one, as `nnUNetv2_move_plans_between_datasets` does, checked.

    Returns the plans' new name, `<plans>_from<source id>`. Preprocessing is left to nnU-Net.

    Raises:
        SelmaError: a dataset or its plans are missing, the configuration is a second stage, or the two differ in channels or in the unit
            of their spacing.
    """
    source, target = folders.dataset(source_id), folders.dataset(target_id)
    # what is wrong is said before anything is written
    pretraining_configuration(read_json(folders.plans(source, plans_name)), configuration)
    check_like_datasets(source, target, folders)
    name = f"{plans_name}_from{source_id:03d}"
    (folders.preprocessed / target).mkdir(parents=True, exist_ok=True)
    from nnunetv2.experiment_planning.plans_for_pretraining.move_plans_between_datasets import (
        move_plans_between_datasets,
    )

    # it takes its folders from the environment, which are these
    move_plans_between_datasets(source, target, plans_name, name)
    # nnU-Net's training reads it there; only its own planning would have copied it
    shutil.copyfile(folders.raw / target / "dataset.json", folders.preprocessed / target / "dataset.json")
    return name


def store_plans(source_id: int, dataset: str, folders: Folders, *, plans_name: str, configuration: str) -> Plans:
    """Plans of the annotated dataset for a tile store of unlabelled tiles: one configuration, with data of its own.

    Raises:
        SelmaError: the annotated dataset or its plans are missing, have no such configuration, or it is a second stage.
    """
    plans = deepcopy(read_json(folders.plans(folders.dataset(source_id), plans_name)))
    plans["dataset_name"] = dataset
    plans["plans_name"] = f"{plans_name}_from{source_id:03d}_store"
    own = pretraining_configuration(plans, configuration)
    own["data_identifier"] = f"{plans_name}_from{source_id:03d}_store_{configuration}"
    own[TILE_STORE] = True
    plans["configurations"] = {configuration: own}
    return plans


def check_like_datasets(source: str, target: str, folders: Folders) -> None:
    """Raise `SelmaError` if two raw datasets, by their folders' names, differ in the number of channels or in the unit of their spacing."""
    channels = [read_json(folders.raw / name / "dataset.json")["channel_names"] for name in (source, target)]
    if len(channels[0]) != len(channels[1]):
        raise SelmaError(
            f"{source} has {len(channels[0])} input channel(s), {target} has {len(channels[1])}; convert both with the same --vessel-channels"
        )
    check_same_unit(source, folders, target, _spacings(folders, target))


def check_same_unit(source: str, folders: Folders, target: str, spacings: Sequence[Sequence[float]] | None) -> None:
    """Raise `SelmaError` if a raw dataset has its spacing in voxels and another in µm, or the other way round.

    Args:
        source: folder name of the raw dataset; where nothing is known about it, nothing is said.
        folders: nnU-Net's folders.
        target: name of the other dataset.
        spacings: voxel sizes of the other's cases, None where they are not known.
    """
    units = [
        None if some is None else all(um_in_header_unit(spacing) is None for spacing in some)
        for some in (_spacings(folders, source), spacings)
    ]
    if None not in units and units[0] != units[1]:
        unit = {True: "voxel units", False: "µm"}
        raise SelmaError(
            f"{source} has its spacing in {unit[bool(units[0])]}, {target} in {unit[bool(units[1])]}; convert both with the same --spacing"
        )


def _spacings(folders: Folders, dataset: str) -> list[list[float]] | None:
    manifest = folders.raw / dataset / MANIFEST
    cases = read_json(manifest)["cases"] if manifest.is_file() else {}
    return [case["spacing_zyx"] for case in cases.values()] or None
