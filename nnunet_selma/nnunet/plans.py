"""nnU-Net plans for pretraining and for small machines, with networks that nnU-Net configured."""

import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

from nnunet_selma.errors import SelmaError, counted
from nnunet_selma.nnunet.folders import MANIFEST, Folders
from nnunet_selma.running.json_files import read_json, write_json
from nnunet_selma.volumes.units import um_in_header_unit

Plans = dict[str, Any]

TILE_STORE = "selma_tile_store"
"""Key of a configuration whose preprocessed data are a tile store, not nnU-Net's own."""
LEAST_STAGES = 3
"""Least number of stages: nnU-Net's loss leaves the coarsest output of the decoder out, and with two stages it would be NaN."""


def total_strides(configuration: Mapping[str, Any]) -> list[int]:
    """The product of a network's strides along each axis."""
    return [math.prod(axis) for axis in zip(*configuration["architecture"]["arch_kwargs"]["strides"], strict=True)]


def fitting_patch(edges: Sequence[int], strides: Sequence[int]) -> list[int]:
    """The next larger patch whose edges the strides divide.

    Its coarsest map has more than one voxel, because instance norm needs a variance.
    """
    patch = [math.ceil(edge / stride) * stride for edge, stride in zip(edges, strides, strict=True)]
    if math.prod(edge // stride for edge, stride in zip(patch, strides, strict=True)) == 1:
        patch = [edge * 2 for edge in patch]
    return patch


def own_configuration(plans: Plans, configuration: str) -> dict[str, Any]:
    """The entry of a configuration, without what it inherits; raises `SelmaError` if the plans have none of that name."""
    if configuration not in plans["configurations"]:
        raise SelmaError(
            f"plans {plans['plans_name']} have no configuration {configuration!r}: choose one of {', '.join(plans['configurations'])}"
        )
    entry: dict[str, Any] = plans["configurations"][configuration]
    return entry


def pretraining_configuration(plans: Plans, configuration: str) -> dict[str, Any]:
    """A copy of a configuration with all that it inherits; raises `SelmaError` if there is none of that name, or it is a second stage."""
    own_configuration(plans, configuration)
    whole = whole_configuration(plans, configuration)
    check_first_stage(whole, configuration)
    return whole


def whole_configuration(plans: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A copy of a configuration with all that it inherits, as nnU-Net's `PlansManager` resolves it."""
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
    """Plans with a smaller network, patch and batch, for a machine without GPU; they share the preprocessed data.

    The network has nnU-Net's class, and the kernels and strides of its first `len(features)` stages.

    Args:
        plans: plans of nnU-Net's planner.
        name: name of the new plans.
        configuration: the configuration to make smaller; the new plans have no other.
        patch_edge: longest edge of the patch, voxels; rounded up to a multiple of the strides.
        batch_size: patches in a batch.
        features: features of each stage, at least three.

    Raises:
        SelmaError: fewer than three stages, numbers below 1, no such configuration, or a network that nnU-Net did not configure.
    """
    if patch_edge < 1 or batch_size < 1 or min(features, default=0) < 1:
        raise SelmaError("patch, batch and features are numbers of at least 1")
    if len(features) < LEAST_STAGES:
        raise SelmaError(
            f"{len(features)} stages: give at least {LEAST_STAGES} numbers of features; nnU-Net's deep supervision needs them"
        )
    changed = deepcopy(plans)
    changed["plans_name"] = name
    entry = own_configuration(changed, configuration)
    kwargs = entry["architecture"]["arch_kwargs"]
    if "n_stages" not in kwargs:
        raise SelmaError(
            f"{entry['architecture']['network_class_name']} is no network that nnU-Net configured; make its plans smaller with nnunet-selma plan-network"
        )
    stages, kept = kwargs["n_stages"], min(len(features), kwargs["n_stages"])
    for key, value in kwargs.items():
        if isinstance(value, (list, tuple)) and len(value) in (stages, stages - 1):
            kwargs[key] = list(value[: kept - (stages - len(value))])
    kwargs["n_stages"], kwargs["features_per_stage"] = kept, list(features[:kept])
    entry["patch_size"] = fitting_patch([min(edge, patch_edge) for edge in entry["patch_size"]], total_strides(entry))
    entry["batch_size"] = batch_size
    changed["configurations"] = {configuration: entry}
    return changed


def write_plans(
    change: Callable[..., Plans], dataset_id: int, plans_name: str, name: str, folders: Folders, **choice: Any
) -> Path:
    """Write changed plans beside the plans of a dataset; returns the file.

    Args:
        change: called as `change(plans, name, **choice)`: `small_plans` or `network_plans`.
        dataset_id: the dataset.
        plans_name: name of its plans.
        name: name of the changed plans, and of their file.
        folders: nnU-Net's folders.
        choice: arguments of `change`.
    """
    source = folders.plans(folders.dataset(dataset_id), plans_name)
    target = source.with_name(f"{name}.json")
    write_json(target, change(read_json(source), name, **choice))
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
    # all checks come before anything is written
    pretraining_configuration(read_json(folders.plans(source, plans_name)), configuration)
    check_like_datasets(source, target, folders)
    name = f"{plans_name}_from{source_id:03d}"
    (folders.preprocessed / target).mkdir(parents=True, exist_ok=True)
    from nnunetv2.experiment_planning.plans_for_pretraining.move_plans_between_datasets import (
        move_plans_between_datasets,
    )

    move_plans_between_datasets(source, target, plans_name, name)  # reads nnU-Net's folders from the environment
    # nnU-Net's training reads it there, and only nnU-Net's planning copies it
    shutil.copyfile(folders.raw / target / "dataset.json", folders.preprocessed / target / "dataset.json")
    return name


def store_plans(source_id: int, dataset: str, folders: Folders, *, plans_name: str, configuration: str) -> Plans:
    """Plans of the annotated dataset for a tile store of unlabelled tiles, with one configuration and separate preprocessed data.

    Raises:
        SelmaError: the annotated dataset or its plans are missing, have no such configuration, or it is a second stage.
    """
    plans = deepcopy(read_json(folders.plans(folders.dataset(source_id), plans_name)))
    plans["dataset_name"] = dataset
    plans["plans_name"] = f"{plans_name}_from{source_id:03d}_store"
    stored = pretraining_configuration(plans, configuration)
    stored["data_identifier"] = f"{plans_name}_from{source_id:03d}_store_{configuration}"
    stored[TILE_STORE] = True
    plans["configurations"] = {configuration: stored}
    return plans


def check_like_datasets(source: str, target: str, folders: Folders) -> None:
    """Raise `SelmaError` if two raw datasets, by their folders' names, differ in the number of channels or in the unit of their spacing."""
    channels = [read_json(folders.raw / name / "dataset.json")["channel_names"] for name in (source, target)]
    if len(channels[0]) != len(channels[1]):
        raise SelmaError(
            f"{source} has {counted(len(channels[0]), 'input channel')}, {target} has {len(channels[1])}; convert both again (nnunet-selma convert) with the same --vessel-channels"
        )
    check_same_unit(source, folders, target, _spacings(folders, target))


def check_same_unit(source: str, folders: Folders, target: str, spacings: Sequence[Sequence[float]] | None) -> None:
    """Raise `SelmaError` if the spacing of one dataset is in voxels and that of the other in µm.

    Args:
        source: folder name of a raw dataset; if it has no manifest, nothing is checked.
        folders: nnU-Net's folders.
        target: name of the other dataset.
        spacings: voxel sizes of the other dataset's cases; None: unknown.
    """
    units = [
        None if sizes is None else all(um_in_header_unit(size) is None for size in sizes)
        for sizes in (_spacings(folders, source), spacings)
    ]
    if None not in units and units[0] != units[1]:
        unit = {True: "voxel units", False: "µm"}
        raise SelmaError(
            f"{source} has its spacing in {unit[bool(units[0])]}, {target} in {unit[bool(units[1])]}; convert both again (nnunet-selma convert) with the same --spacing"
        )


def _spacings(folders: Folders, dataset: str) -> list[list[float]] | None:
    """Voxel sizes of the cases in the manifest of a raw dataset; None without a manifest."""
    manifest = folders.raw / dataset / MANIFEST
    cases = read_json(manifest)["cases"] if manifest.is_file() else {}
    return [case["spacing_zyx"] for case in cases.values()] or None
