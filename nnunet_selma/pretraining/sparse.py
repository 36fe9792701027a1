"""Encoders that keep masked places empty in every layer.

A masked voxel that is set to zero is empty in the image only: the first convolutions fill it in from its neighbours, and instance norm
counts the zeros. SparK (Tian et al. 2023, arXiv 2301.03580) keeps masked places empty at every level; S3D (Wald et al. 2024, arXiv
2410.23132) brought it to nnU-Net. Here hooks do it for any convolutional encoder, without a change of its weights and their names.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.instancenorm import _InstanceNorm

from nnunet_selma.errors import SelmaError


def check_sparse_encoder(encoder: nn.Module) -> None:
    """Raise `SelmaError` unless an encoder has convolutions, and instance norms only."""
    layers = list(encoder.modules())
    others = [
        layer
        for layer in layers
        if isinstance(layer, _NormBase | nn.LayerNorm | nn.GroupNorm) and not isinstance(layer, _InstanceNorm)
    ]
    if others or not any(isinstance(layer, _ConvNd) for layer in layers):
        raise SelmaError(
            "inpainting.sparse needs a convolutional encoder with instance norm, as nnU-Net configures it; set it to false for this network"
        )


@contextmanager
def sparse(encoder: nn.Module, visible: Tensor) -> Iterator[None]:
    """Keep masked places of an encoder's feature maps at zero, and leave them out of the statistics of its norms.

    Args:
        encoder: has convolutions and instance norms.
        visible: bool (batch, 1, *patch), constant within each voxel of the coarsest map.
    """
    masks: dict[torch.Size, Tensor] = {}

    def at(features: Tensor) -> Tensor:
        grid = features.shape[2:]
        if grid not in masks:
            masks[grid] = downsampled(visible, grid).to(features.dtype)
        return masks[grid]

    def empty(layer: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        return output * at(output)

    def norm(layer: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        return visible_norm(inputs[0], at(output), cast(_InstanceNorm, layer))

    hooks = [
        layer.register_forward_hook(norm if isinstance(layer, _InstanceNorm) else empty)
        for layer in encoder.modules()
        if isinstance(layer, _InstanceNorm | _ConvNd)
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def downsampled(visible: Tensor, grid: Sequence[int]) -> Tensor:
    """A mask (batch, 1, *patch) on a coarser grid, by its nearest voxel; exact if it is constant within each voxel of the grid."""
    return functional.interpolate(visible.float(), tuple(grid), mode="nearest").bool()


def visible_norm(features: Tensor, visible: Tensor, layer: _InstanceNorm) -> Tensor:
    """Instance norm of (batch, channel, *grid) with the mean and variance of visible places; zero elsewhere.

    Args:
        features: input of the norm.
        visible: 1 where a place is visible and 0 elsewhere, (batch, 1, *grid).
        layer: the norm, whose epsilon, weight and bias are used.
    """
    axes = tuple(range(2, features.ndim))
    count = visible.sum(axes, keepdim=True).clamp(min=1)
    mean = (features * visible).sum(axes, keepdim=True) / count
    centred = (features - mean) * visible
    scale = (centred.square().sum(axes, keepdim=True) / count + layer.eps).rsqrt()
    normed = centred * scale
    if layer.weight is not None:
        shape = (1, -1, *[1] * len(axes))
        normed = normed * layer.weight.reshape(shape) + layer.bias.reshape(shape)
    return normed * visible
