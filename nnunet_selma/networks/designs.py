"""nnU-Net plans for the networks of `nnunet_selma.networks`; they share the preprocessed data of the plans they are made from."""

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from nnunet_selma.errors import SelmaError
from nnunet_selma.networks import MONAI_MISSING
from nnunet_selma.nnunet.plans import LEAST_STAGES, Plans, fitting_patch, whole_configuration
from nnunet_selma.nnunet.settings import with_settings

_ADAMW: dict[str, dict[str, Any]] = {
    "pretraining": {"optimizer": "adamw", "learning_rate": 3e-4},
    "finetuning": {"optimizer": "adamw"},
}
_LEAST_HALVINGS = LEAST_STAGES - 1


@dataclass(frozen=True, kw_only=True)
class Design:
    """Facts about a network that planning needs."""

    class_name: str
    """Module and class within `nnunet_selma.networks`."""
    configuration: str
    """The default configuration."""
    dimensions: int
    """2 or 3."""
    halvings: int
    """Number of times that the network halves its patch, unless the patch is too small."""
    features: int
    """Number of features in the paper."""
    unit: int
    """Number that features must be a multiple of."""
    arch_kwargs: Callable[[int, list[list[int]]], dict[str, Any]]
    """Function from features and strides to the arguments of the network's constructor."""
    settings: dict[str, dict[str, Any]]
    """Settings for training the network."""
    needs_monai: bool


def _swin_unetr(features: int, strides: list[list[int]]) -> dict[str, Any]:
    """Swin UNETR with two blocks a stage; its windows shrink with the patch, because 7 tokens would be mostly padding in a small one."""
    stages = len(strides) - 2
    return {
        "strides": strides,
        "feature_size": features,
        "depths": [2] * stages,
        "num_heads": [3 * 2**stage for stage in range(stages)],
        "window_size": 7 if stages == 4 else 4,
    }


def _vit_adapter(features: int, strides: list[list[int]]) -> dict[str, Any]:
    """A transformer as deep as ViT-S; adapter and decoder start with a twelfth of its features, 32 of 384."""
    return {
        "strides": strides,
        "embed_dim": features,
        "depth": 12,
        "num_heads": 8,
        "features_per_stage": [features // 12 * 2**stage for stage in range(len(strides))],
    }


def _attention_unet(features: int, strides: list[list[int]]) -> dict[str, Any]:
    """An attention U-Net whose features double at every stage."""
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
    """Plans of one configuration with another network; they share the preprocessed data of the plans they are made from.

    The patch is the plan's, with edges of at most `patch_edge`, cut to a size that the network can halve. For a small patch the network
    has fewer halvings, so that its coarsest map has more than one voxel.

    Args:
        plans: plans of nnU-Net's planner.
        name: name of the new plans.
        network: a key of `NETWORKS`.
        configuration: None: the network's default.
        patch_edge: longest edge of the patch, voxels; None: the plan's.
        batch_size: None: the plan's.
        features: features of the embedding (transformers) or of the first stage; None: the paper's.

    Raises:
        SelmaError: an unknown network, a configuration of another dimension, numbers that do not fit, the name of the given plans, or
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
    planned = _of_dimension(plans, configuration, network, design.dimensions)
    edges = [edge if patch_edge is None else min(edge, patch_edge) for edge in planned["patch_size"]]
    halvings, planned["patch_size"] = _halved(edges, design.halvings)
    strides = [[1] * design.dimensions, *[[2] * design.dimensions] * halvings]
    planned["architecture"] = {
        "network_class_name": f"nnunet_selma.networks.{design.class_name}",
        "arch_kwargs": design.arch_kwargs(features, deepcopy(strides)),
        "_kw_requires_import": [],
    }
    planned["batch_size"] = planned["batch_size"] if batch_size is None else batch_size
    changed = with_settings(deepcopy(plans), design.settings)
    return {**changed, "plans_name": name, "configurations": {configuration: planned}}


def _design(network: str) -> Design:
    """The design of a network; raises `SelmaError` if there is none, or if MONAI is missing."""
    if network not in NETWORKS:
        raise SelmaError(f"unknown network {network!r}: choose one of {', '.join(NETWORKS)}")
    if NETWORKS[network].needs_monai and find_spec("monai") is None:
        raise SelmaError(f"{network}: {MONAI_MISSING}")
    return NETWORKS[network]


def _halved(edges: Sequence[int], halvings: int) -> tuple[int, list[int]]:
    """Number of times that a patch with these edges can be halved, at most `halvings`, and the largest such patch within the edges."""
    while halvings > _LEAST_HALVINGS and (min(edges) < 2**halvings or max(edges) < 2 ** (halvings + 1)):
        halvings -= 1
    stride = 2**halvings
    within = [max(edge // stride, 1) * stride for edge in edges]
    return halvings, fitting_patch(within, [stride] * len(edges))


def _of_dimension(plans: Plans, configuration: str, network: str, dimensions: int) -> dict[str, Any]:
    """A copy of a configuration with all that it inherits; raises `SelmaError` if it has another dimension, or is a second stage."""
    whole = {name: whole_configuration(plans, name) for name in plans["configurations"]}
    fitting = [
        name for name, each in whole.items() if len(each["patch_size"]) == dimensions and not each.get("previous_stage")
    ]
    if configuration not in fitting:
        remedy = f"choose {' or '.join(fitting)} with -c" if fitting else "these have none, take others with -p"
        raise SelmaError(
            f"{network} needs a {dimensions}D configuration that is no second stage of a cascade, which {configuration!r} of plans "
            f"{plans['plans_name']} is not: {remedy}"
        )
    planned = whole[configuration]
    planned.pop("next_stage", None)  # the new plans do not have that configuration
    return planned
