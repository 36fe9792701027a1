"""nnU-Net plans for pretraining and for small machines, with networks that nnU-Net configured."""

import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

from nnunet_selma.errors import SelmaError, counted
from nnunet_selma.nnunet.folders import Folders
from nnunet_selma.nnunet.raw_cases import raw_cases, raw_reader
from nnunet_selma.nnunet.voxel_sizes import check_voxel_sizes, raw_spacings
from nnunet_selma.running.json_files import read_json, write_json

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
        SelmaError: a dataset or its plans are missing, the configuration is a second stage, or the two differ in channels or contradict
            each other in voxel size.
    """
    source, target = folders.dataset(source_id), folders.dataset(target_id)
    # all checks come before anything is written
    check_like_plans(read_json(folders.plans(source, plans_name)), configuration, target, folders)
    name = f"{plans_name}_from{source_id:03d}"
    (folders.preprocessed / target).mkdir(parents=True, exist_ok=True)
    from nnunetv2.experiment_planning.plans_for_pretraining.move_plans_between_datasets import (
        move_plans_between_datasets,
    )

    move_plans_between_datasets(source, target, plans_name, name)  # reads nnU-Net's folders from the environment
    # the two datasets may be of different formats, and nnU-Net's preprocessing reads with the reader of the plans
    raw, path = folders.raw / target, folders.preprocessed / target / f"{name}.json"
    write_json(path, {**read_json(path), "image_reader_writer": raw_reader(raw, raw_cases(raw)).__name__})
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


def check_like_plans(plans: Plans, configuration: str, target: str, folders: Folders) -> None:
    """Raise `SelmaError` if a raw dataset differs from plans in the number of channels, or contradicts their voxel size.

    Args:
        plans: plans of the annotated dataset.
        configuration: configuration of these plans.
        target: folder name of the raw dataset.
        folders: nnU-Net's folders.
    """
    whole = pretraining_configuration(plans, configuration)
    planned, present = (
        len(whole["normalization_schemes"]),
        len(channels_of(read_json(folders.raw / target / "dataset.json"))),
    )
    if planned != present:
        raise SelmaError(
            f"{target} has {counted(present, 'input channel')}, the plans {plans['plans_name']} are for {planned}; both datasets need the same channels"
        )
    sizes = raw_spacings(folders.raw / target)
    check_voxel_sizes(plans, whole, {f"{target}: {case}": size for case, size in sizes.items()})


def channels_of(description: Mapping[str, Any]) -> list[str]:
    """Names of the input channels in a dataset.json; datasets of nnU-Net's version 1 call them modality."""
    names: Mapping[str, str] = description.get("modality") or description["channel_names"]
    return list(names.values())
