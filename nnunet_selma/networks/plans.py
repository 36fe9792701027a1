"""nnU-Net plans for the networks of `nnunet_selma.networks`; preprocessed data are those of the plans they come from."""

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from nnunet_selma.errors import SelmaError
from nnunet_selma.networks import MONAI_MISSING
from nnunet_selma.nnunet.folders import Folders
from nnunet_selma.nnunet.plans import Plans, fitting_patch, whole_configuration
from nnunet_selma.nnunet.settings import with_settings
from nnunet_selma.running.json_files import read_json, write_json

_ADAMW: dict[str, dict[str, Any]] = {
    "pretraining": {"optimizer": "adamw", "learning_rate": 3e-4},
    "finetuning": {"optimizer": "adamw"},
}
# nnU-Net weighs the outputs of its decoder and leaves the coarsest out; with two stages none is left and the loss is NaN
_LEAST_HALVINGS = 2


@dataclass(frozen=True, kw_only=True)
class Design:
    """Facts about a network that planning needs."""

    class_name: str
    """Import path, below `nnunet_selma.networks`."""
    configuration: str
    """The configuration that is planned unless another is asked for."""
    dimensions: int
    """2 or 3."""
    halvings: int
    """How often the network halves its patch, unless the patch is too small."""
    features: int
    """Features, as the paper has them."""
    unit: int
    """Features are a multiple of it."""
    arch_kwargs: Callable[[int, list[list[int]]], dict[str, Any]]
    """Arguments of the network's constructor, from features and strides."""
    settings: dict[str, dict[str, Any]]
    """Settings that go with the network."""
    needs_monai: bool


def _swin_unetr(features: int, strides: list[list[int]]) -> dict[str, Any]:
    """Two blocks a stage; windows of 7 tokens would mostly be padding in a patch too small for all four stages."""
    stages = len(strides) - 2
    return {
        "strides": strides,
        "feature_size": features,
        "depths": [2] * stages,
        "num_heads": [3 * 2**stage for stage in range(stages)],
        "window_size": 7 if stages == 4 else 4,
    }


def _vit_adapter(features: int, strides: list[list[int]]) -> dict[str, Any]:
    """As deep as ViT-S; adapter and decoder start with a twelfth of the embedding, 32 features of 384."""
    return {
        "strides": strides,
        "embed_dim": features,
        "depth": 12,
        "num_heads": 8,
        "features_per_stage": [features // 12 * 2**stage for stage in range(len(strides))],
    }


def _attention_unet(features: int, strides: list[list[int]]) -> dict[str, Any]:
    """Features double at every stage."""
    return {
        "spatial_dims": 2,
        "strides": strides,
        "features_per_stage": [features * 2**stage for stage in range(len(strides))],
    }


NETWORKS: dict[str, Design] = {
    # Hatamizadeh et al. 2022; bioAI and XunDJ (SELMA3D paper, sections 4.2.2 and 4.2.3)
    "swin_unetr": Design(
        class_name="swin_unetr.SwinUNETR",
        configuration="3d_fullres",
        dimensions=3,
        halvings=5,
        features=48,
        unit=12,
        arch_kwargs=_swin_unetr,
        settings=_ADAMW,
        needs_monai=True,
    ),
    # Tonyxu (section 4.2.4), which does not say how large its transformer was: here ViT-S, with tokens of 8³ voxels
    "vit_adapter": Design(
        class_name="vit_adapter.ViTAdapter",
        configuration="3d_fullres",
        dimensions=3,
        halvings=3,
        features=384,
        unit=48,
        arch_kwargs=_vit_adapter,
        settings=_ADAMW,
        needs_monai=False,
    ),
    # Oktay et al. 2018; Wu (section 4.2.5)
    "attention_unet": Design(
        class_name="attention_unet.AttentionUNet",
        configuration="2d",
        dimensions=2,
        halvings=4,
        features=32,
        unit=2,
        arch_kwargs=_attention_unet,
        settings={},
        needs_monai=True,
    ),
}


def network_plans(
    plans: Plans,
    name: str,
    *,
    network: str,
    configuration: str | None = None,
    patch_edge: int | None = None,
    batch_size: int | None = None,
    features: int | None = None,
) -> Plans:
    """Plans of one configuration with another network; the plans' preprocessed data are shared.

    The patch is the plan's, or `patch_edge` along axes where it is smaller, cut to what the network can halve. A patch too small for all
    of a network's halvings gets a network with fewer, so that more than one voxel is left where it is coarsest.

    Args:
        plans: those of nnU-Net's planner.
        name: of the new plans.
        network: a key of `NETWORKS`.
        configuration: None is the network's usual one.
        patch_edge: longest edge of the patch, voxels; None is the plan's.
        batch_size: None is the plan's.
        features: size of the embedding (transformers) or of the first stage; None is the paper's.

    Raises:
        SelmaError: an unknown network, a configuration of another dimension, numbers that do not fit, the plans' own name, or
            MONAI is missing.
    """
    design = _design(network)
    features = design.features if features is None else features
    if min(value for value in (patch_edge, batch_size, features) if value is not None) < 1:
        raise SelmaError("patch, batch and features are numbers of at least 1")
    if features % design.unit:
        raise SelmaError(f"{features} features do not fit {network}: give a multiple of {design.unit}")
    if name == plans["plans_name"]:
        raise SelmaError(f"{name} are the plans to start from, which would be lost: save under another name")
    configuration = configuration or design.configuration
    own = _of_dimension(plans, configuration, network, design.dimensions)
    edges = [edge if patch_edge is None else min(edge, patch_edge) for edge in own["patch_size"]]
    halvings, own["patch_size"] = _halved(edges, design.halvings)
    strides = [[1] * design.dimensions, *[[2] * design.dimensions] * halvings]
    own["architecture"] = {
        "network_class_name": f"nnunet_selma.networks.{design.class_name}",
        "arch_kwargs": design.arch_kwargs(features, deepcopy(strides)),
        "_kw_requires_import": [],
    }
    own["batch_size"] = own["batch_size"] if batch_size is None else batch_size
    changed = with_settings(deepcopy(plans), design.settings)
    return {**changed, "plans_name": name, "configurations": {configuration: own}}


def write_network_plans(dataset_id: int, plans_name: str, name: str, folders: Folders, **choice: Any) -> Path:
    """Write `network_plans` beside the plans they come from; returns the file."""
    source = folders.plans(folders.dataset(dataset_id), plans_name)
    target = source.with_name(f"{name}.json")
    write_json(target, network_plans(read_json(source), name, **choice))
    return target


def _design(network: str) -> Design:
    """The network's design; raises `SelmaError` if there is none, or if it could not be built here."""
    if network not in NETWORKS:
        raise SelmaError(f"unknown network {network!r}: choose one of {', '.join(NETWORKS)}")
    if NETWORKS[network].needs_monai and find_spec("monai") is None:
        raise SelmaError(f"{network}: {MONAI_MISSING}")
    return NETWORKS[network]


def _halved(edges: Sequence[int], halvings: int) -> tuple[int, list[int]]:
    """How often a patch of these edges can be halved, at most so many times, and the largest such patch within them."""
    while halvings > _LEAST_HALVINGS and (min(edges) < 2**halvings or max(edges) < 2 ** (halvings + 1)):
        halvings -= 1
    stride = 2**halvings
    within = [max(edge // stride, 1) * stride for edge in edges]
    return halvings, fitting_patch(within, [stride] * len(edges))


def _of_dimension(plans: Plans, configuration: str, network: str, dimensions: int) -> dict[str, Any]:
    """A copy of the configuration that stands alone; raises `SelmaError` if it is none of this dimension."""
    whole = {name: whole_configuration(plans, name) for name in plans["configurations"]}
    fitting = [
        name for name, own in whole.items() if len(own["patch_size"]) == dimensions and not own.get("previous_stage")
    ]
    if configuration not in fitting:
        remedy = f"choose {' or '.join(fitting)} with -c" if fitting else "these have none, take others with -p"
        raise SelmaError(
            f"{network} needs a {dimensions}D configuration that is no second stage of a cascade, which {configuration!r} of plans "
            f"{plans['plans_name']} is not: {remedy}"
        )
    own = whole[configuration]
    # it would name a configuration that the new plans do not have
    own.pop("next_stage", None)
    return own
