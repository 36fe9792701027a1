"""Measurements of what a pretraining taught each part of a network.

Skip connections can make a pretext so easy that the finest level alone solves it. The loss then falls, while the deep half of the network,
which segmentation needs, stays random. Two measurements show it: the angle between the weights of a stage and their random start, and the
error of the reconstruction when the coarsest map, or a skip connection, is replaced by zeros.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nnunet_selma.networks.parts import encoder_of, has_encoder_and_decoder, stage_of
from nnunet_selma.nnunet.checkpoints import distinct
from nnunet_selma.pretraining.base import Pretext
from nnunet_selma.pretraining.inpainting import masked_error

LEAST_TURN = 0.25
"""Least angle by which the deepest stage must have turned, as a share of the finest stage's, to count as trained."""
LEAST_LOSS = 1.05
"""Least error without the coarsest map ÷ error with it, for a reconstruction that needs that map."""


@dataclass(frozen=True)
class Movement:
    """Distance of the weights of a stage from their random start, without biases and norms."""

    stage: str
    turned: float
    """Angle between the weights now and at the start, degrees: 0 is unmoved, 90 is unrelated to the start."""
    size: float
    """Root mean square now ÷ at the start. Weights before a norm that grow to twice the size turn at a quarter of the rate."""


def starting_weights(network: nn.Module) -> dict[str, Tensor]:
    """CPU copies of a network's weights that have more than one axis, without its heads."""
    return {
        key: tensor.detach().cpu().clone()
        for key, _, tensor in distinct(network.state_dict())
        if tensor.ndim > 1 and ".seg_layers." not in key
    }


def movements(start: Mapping[str, Tensor], network: nn.Module) -> list[Movement]:
    """Movement of each stage of a network from its starting weights, in the order of the network's parameters."""
    now = network.state_dict()
    sums: dict[str, list[float]] = {}
    for key, before in start.items():
        after = now[key].detach().cpu().double()
        products = (before.double() * after).sum(), before.double().square().sum(), after.square().sum()
        total = sums.setdefault(stage_of(key), [0.0, 0.0, 0.0])
        for place, product in enumerate(products):
            total[place] += float(product)
    return [
        Movement(stage, math.degrees(math.acos(max(-1.0, min(1.0, both / math.sqrt(old * new))))), math.sqrt(new / old))
        for stage, (both, old, new) in sums.items()
        if old > 0 and new > 0
    ]


@torch.no_grad()
def errors_without(pretext: Pretext, network: nn.Module, batches: Sequence[Tensor], seed: int = 0) -> dict[str, float]:
    """Squared error on masked voxels with the whole network, and with one of the encoder's maps replaced by zeros.

    Args:
        pretext: in evaluation mode; it is reseeded, so that every measurement has the same masks.
        network: in evaluation mode, without wrappers.
        batches: patches (batch, channel, *patch).
        seed: seed of the masks.

    Returns:
        Errors by the name of the map that was replaced: "nothing", "bottleneck" (the coarsest map) and, where the pretext uses skip
        connections, "skip 0" (the finest), "skip 1", …. Empty for a pretext that reconstructs nothing, and for a network without an encoder
        that returns several maps. A sparse pretext still puts its tokens into masked places.
    """
    if not has_encoder_and_decoder(network):
        return {}
    encoder = encoder_of(network)

    def error() -> float:
        pretext.reseed(seed)
        errors = []
        for patches in batches:
            result = pretext.reconstruct(network, patches)
            assert result is not None
            errors.append(float(masked_error(result.output, result.target, result.mask)))
        return sum(errors) / len(errors)

    maps = encoder(batches[0])
    if isinstance(maps, Tensor) or pretext.reconstruct(network, batches[0]) is None:
        return {}
    count = len(maps)
    skips = range(count - 1) if pretext.uses_skips else range(0)
    errors = {"nothing": error()}
    for name, number in [*((f"skip {number}", number) for number in skips), ("bottleneck", count - 1)]:
        with without_map(encoder, number):
            errors[name] = error()
    return errors


@contextmanager
def without_map(encoder: nn.Module, number: int) -> Iterator[None]:
    """Replace one map of an encoder, counted from the finest, by zeros."""

    def zero(layer: nn.Module, inputs: Any, maps: Sequence[Tensor]) -> list[Tensor]:
        return [torch.zeros_like(features) if place == number else features for place, features in enumerate(maps)]

    hook = encoder.register_forward_hook(zero)
    try:
        with torch.compiler.set_stance("force_eager"):  # a compiled encoder would not call the hook
            yield
    finally:
        hook.remove()


def unlearnt(moved: Sequence[Movement], errors: Mapping[str, float]) -> list[str]:
    """Sentences about a deepest stage that hardly learnt; empty if it learnt."""
    sentences = []
    encoder = [movement for movement in moved if movement.stage.startswith("encoder.stages.")]
    if encoder and encoder[-1].turned < LEAST_TURN * encoder[0].turned:
        sentences.append(
            f"the deepest stage has hardly moved from its random start ({encoder[-1].stage} by {encoder[-1].turned:.1f} degrees, "
            f"{encoder[0].stage} by {encoder[0].turned:.1f}). Train longer, or let the pretext need it (inpainting.skips=false)"
        )
    if errors and errors["bottleneck"] < LEAST_LOSS * errors["nothing"]:
        sentences.append(
            f"the reconstruction does not need the deepest stage (error {errors['nothing']:.3g}, {errors['bottleneck']:.3g} without it): "
            "skip connections solve the task. Use inpainting.skips=false or larger blocks"
        )
    return sentences


def as_json(moved: Sequence[Movement], errors: Mapping[str, float]) -> dict[str, Any]:
    """Both measurements as `ssl_summary.json` stores them."""
    return {
        "stages": {entry.stage: {"turned_degrees": entry.turned, "size": entry.size} for entry in moved},
        "errors_without": dict(errors),
    }
