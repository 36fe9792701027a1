"""Masked volume inpainting: blocks are masked, the network fills them in."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from nnunet_selma.errors import SelmaError
from nnunet_selma.networks.parts import decoder_of, encoder_of, has_encoder_and_decoder
from nnunet_selma.pretraining.base import Pretext, Reconstruction, Task, feature_shape, map_shapes
from nnunet_selma.pretraining.masking import block_shape, draw_block_masks, fill_mask, moments, repeated
from nnunet_selma.pretraining.sparse import check_sparse_encoder, downsampled, sparse
from nnunet_selma.pretraining.views import gaussian_blur

_LEAST_DEVIATION = 0.02
"""Least standard deviation that a patch is divided by, in units of its case: a patch with less is camera noise."""
_BACKGROUND = 4.0
"""Standard deviation of the Gaussian that gives the background for the target "residual", voxels along the finest axes."""


class MaskedInpainting(Pretext):
    """Masked volume inpainting as team XunDJ did it in SELMA3D 2024 (paper, section 4.2.3): blocks are set to zero.

    Settings can close the skip connections, so that everything passes through the coarsest map; keep masked voxels empty in every layer
    (`sparse`); compute the loss at every decoder step; and leave visible voxels out of the error.
    """

    renamed: ClassVar[Mapping[str, str]] = {
        **Pretext.renamed,
        "answer": "predict",
        "as_answer": "to_target",
        "brought_to_unit": "normalise",
        "where_to_mask": "block_preference",
        "maps": "encode",
        "can_ask_every_step": "allows_deep_supervision",
    }
    allows_deep_supervision = True
    """False for subclasses whose error is defined at full resolution alone."""

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        self.settings, self.spacing = task.settings.inpainting, task.spacing
        self._check(task)
        self.deep_supervision, self.uses_skips = self.settings.deep_supervision, self.settings.skips
        self.stride = [1] * len(task.patch)
        if self.settings.sparse or self.settings.aligned:
            self.stride = [length // places for length, places in zip(task.patch, feature_shape(task)[1:], strict=True)]
        self.tokens = nn.ParameterList()
        if self.settings.sparse:
            encoder = encoder_of(task.network)
            check_sparse_encoder(encoder)
            ones = [1] * len(task.patch)
            self.tokens.extend(
                nn.Parameter(torch.zeros(1, channels, *ones)) for channels, *_ in map_shapes(task, encoder)
            )

    def _check(self, task: Task) -> None:
        """Raise `SelmaError` for settings that do not fit the network or the pretext."""
        settings, network = self.settings, type(task.network).__name__
        if (settings.sparse or not settings.skips) and not has_encoder_and_decoder(task.network):
            raise SelmaError(
                f"inpainting.sparse and inpainting.skips=false need a network of an encoder and a decoder, which {network} is not; set them "
                "to false and true"
            )
        if settings.deep_supervision and not hasattr(getattr(task.network, "decoder", None), "deep_supervision"):
            raise SelmaError(
                f"inpainting.deep_supervision needs a decoder that answers at every step, and {network} has none; set it to false"
            )
        if settings.deep_supervision and not self.allows_deep_supervision:
            raise SelmaError(f"inpainting.deep_supervision is not for {type(self).__name__}; set it to false")

    def compiled_parts(self, network: nn.Module) -> list[nn.Module]:
        """Encoder and decoder, which are called apart; not a sparse encoder, because a compiled one would not call its hooks."""
        if not has_encoder_and_decoder(network):
            return [network]
        return [decoder_of(network)] if self.settings.sparse else [encoder_of(network), decoder_of(network)]

    @property
    def ratio(self) -> float:
        """Share of the patch that is masked at this step; validations mask the full share, so that epochs can be compared."""
        first, last = self.settings.first_ratio, self.settings.mask_ratio
        if first is None or not self.training:
            return last
        return first + (last - first) * min(1.0, 2 * self.steps_done / max(1, self.steps))

    def mask_grid(self, shape: Sequence[int]) -> list[int]:
        """Shape of the grid on which masks of a patch are drawn: its voxels, or those of the coarsest map."""
        return [length // stride for length, stride in zip(shape, self.stride, strict=True)]

    def block(self, edge: int, shape: Sequence[int]) -> list[int]:
        """The shape of a block with this edge, in voxels of `mask_grid`."""
        return [
            min(max(1, round(length / stride)), max(1, places // 2))
            for length, stride, places in zip(
                block_shape(edge, shape, self.spacing), self.stride, self.mask_grid(shape), strict=True
            )
        ]

    def draw_mask(self, patches: Tensor) -> Tensor:
        """Masks for a batch, bool (batch, 1, *patch)."""
        shape = patches.shape[2:]
        edges = self.rng.choice(self.settings.block_edges, size=len(patches))
        masks = draw_block_masks(
            self.mask_grid(shape),
            [self.block(int(edge), shape) for edge in edges],
            ratio=self.ratio,
            rng=self.rng,
            generator=self.generator,
            **self.block_preference(patches),
        )
        return repeated(masks, self.stride)

    def block_preference(self, patches: Tensor) -> dict[str, Any]:
        """Arguments of `draw_block_masks` that prefer some blocks to others; none here."""
        return {}

    def draw_task(self, patches: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Input of the network, its target, and the mask, for a batch (batch, channel, *patch)."""
        mask = self.draw_mask(patches)
        normalised = self.normalise(patches, ~mask) if self.settings.standardise else patches
        return fill_mask(normalised, mask, self.settings.fill, self.generator), self.to_target(normalised), mask

    def normalise(self, patches: Tensor, visible: Tensor) -> Tensor:
        """Patches with mean 0 and standard deviation 1 of their visible voxels."""
        return standardised(patches, visible)

    def to_target(self, patches: Tensor) -> Tensor:
        """Intensities in the unit of the target; the same here."""
        return patches

    def predict(self, network: nn.Module, visible: Tensor, mask: Tensor) -> Tensor:
        """The network's reconstruction (batch, channel, *patch) of masked patches."""
        if not self.settings.sparse and self.settings.skips:
            return finest(network(visible))
        return self.decode(network, self.encode(network, visible, mask))

    def encode(self, network: nn.Module, visible: Tensor, mask: Tensor) -> list[Tensor]:
        """The encoder's maps for the decoder, fine to coarse: with tokens in masked places, or without skip connections, as set."""
        encoder = encoder_of(network)
        if self.settings.sparse:
            with sparse(encoder, ~mask):
                maps = list(encoder(visible))
            maps = [
                torch.where(downsampled(~mask, features.shape[2:]), features, token.to(features.dtype))
                for features, token in zip(maps, self.tokens, strict=True)
            ]
        else:
            maps = list(encoder(visible))
        if not self.settings.skips:
            # not new zeros: with several processes every parameter needs a gradient, if only of zeros
            maps = [features * 0 for features in maps[:-1]] + maps[-1:]
        return maps

    def decode(self, network: nn.Module, maps: Sequence[Tensor]) -> Tensor:
        """The decoder's output at full resolution, (batch, channel, *patch)."""
        return finest(decoder_of(network)(maps))

    def error(self, prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
        """The error that is minimised, over the voxels that `inpainting.counted` selects."""
        return masked_error(prediction, target, self.counted(mask), kind=self.settings.target, spacing=self.spacing)

    def counted(self, mask: Tensor) -> Tensor:
        """Voxels whose error counts, bool (batch, 1, *patch)."""
        return torch.ones_like(mask) if self.settings.counted == "all" else mask

    def forward(self, network: nn.Module, patches: Tensor, structures: Tensor) -> dict[str, Tensor]:
        """Mean squared error of the voxels that count; with deep supervision the weighted mean over resolutions."""
        visible, target, mask = self.draw_task(patches)
        if not self.deep_supervision:
            return {"inpainting": self.error(self.predict(network, visible, mask), target, mask)}
        maps = self.encode(network, visible, mask)
        with deeply_supervised(decoder_of(network)) as decoder:
            outputs = decoder(maps)
        weights = [0.5**number for number in range(len(outputs))]
        errors = [self.error(output, *at_resolution(target, mask, output.shape[2:])) for output in outputs]
        weighted = [weight * error for weight, error in zip(weights, errors, strict=True)]
        return {"inpainting": torch.stack(weighted).sum() / sum(weights)}

    @torch.no_grad()
    def reconstruct(self, network: nn.Module, patches: Tensor) -> Reconstruction:
        """The network's reconstruction of masked patches."""
        visible, target, mask = self.draw_task(patches)
        return Reconstruction(self.to_target(visible), target, self.predict(network, visible, mask).float(), mask)

    @torch.no_grad()
    def diagnostics(self, network: nn.Module, patches: Tensor) -> dict[str, float]:
        """Squared error on masked voxels, of the network and of the trivial answer: the mean of visible voxels nearby."""
        visible, target, mask = self.draw_task(patches)
        return {
            "reconstruction_error": float(masked_error(self.predict(network, visible, mask), target, mask)),
            "trivial_error": float(masked_error(local_mean(target, ~mask), target, mask)),
        }


def finest(output: Tensor | list[Tensor]) -> Tensor:
    """The output at full resolution of a network that may have outputs at several."""
    return output if isinstance(output, Tensor) else output[0]


@contextmanager
def deeply_supervised(decoder: nn.Module) -> Iterator[nn.Module]:
    """Let every step of a decoder return an output, as in nnU-Net's deep supervision."""
    before, decoder.deep_supervision = decoder.deep_supervision, True  # type: ignore[assignment]
    try:
        yield decoder
    finally:
        decoder.deep_supervision = before


def at_resolution(target: Tensor, mask: Tensor, grid: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Target and mask on a coarser grid: block means, and the blocks of which at least half is masked."""
    if tuple(target.shape[2:]) == tuple(grid):
        return target, mask
    return (
        functional.interpolate(target, tuple(grid), mode="area"),
        functional.interpolate(mask.to(target.dtype), tuple(grid), mode="area") >= 0.5,
    )


def standardised(patches: Tensor, visible: Tensor) -> Tensor:
    """Patches whose visible voxels have mean 0 and standard deviation 1 in each channel (He et al. 2022, normalised pixels).

    Without it, a patch counts by its contrast within its case.

    Args:
        patches: (batch, channel, *patch).
        visible: bool (batch, 1, *patch).
    """
    mean, deviation = moments(patches, visible)
    return (patches - mean) / deviation.clamp(min=_LEAST_DEVIATION)


def masked_error(
    prediction: Tensor,
    target: Tensor,
    mask: Tensor,
    *,
    kind: str = "intensity",
    spacing: tuple[float, ...] = (),
    weight: Tensor | None = None,
) -> Tensor:
    """Mean squared error over masked voxels.

    Args:
        prediction: (batch, channel, *patch).
        target: the same shape.
        mask: bool (batch, 1, *patch).
        kind: quantity whose error is squared: "intensity"; "residual", its difference to a smoothed copy; or "gradient". The latter two are
            linear, so they are computed of the masked difference.
        spacing: voxel size along the axes, for "residual".
        weight: weight of each voxel, (batch, 1, *patch).
    """
    difference = (prediction.float() - target.float()) * mask
    if kind == "residual":
        sigma = difference.new_full((len(difference),), _BACKGROUND)
        difference = difference - gaussian_blur(difference, sigma, spacing, _BACKGROUND)
    squared = difference.square()
    if kind == "gradient":
        squared = torch.zeros_like(difference)
        for axis in range(2, difference.ndim):
            step = difference.diff(dim=axis).square()
            squared = squared + functional.pad(step, [0, 0] * (difference.ndim - 1 - axis) + [0, 1])
    weights = mask if weight is None else mask * weight
    return (squared * weights).sum() / (weights.sum() * target.shape[1]).clamp(min=1e-6)


def local_mean(patches: Tensor, visible: Tensor, reach: float = 8.0) -> Tensor:
    """The mean of the visible voxels around each voxel, weighted by a Gaussian; the trivial way to fill a hole.

    Args:
        patches: (batch, channel, *patch).
        visible: bool (batch, 1, *patch).
        reach: the Gaussian's standard deviation, voxels.
    """
    sigma = patches.new_full((len(patches),), reach)
    axes = [1.0] * (patches.ndim - 2)
    weight = visible.to(patches.dtype)
    around, count = (gaussian_blur(values, sigma, axes, reach) for values in (patches * weight, weight))
    mean, _ = moments(patches, visible)
    return torch.where(count > 1e-3, around / count.clamp(min=1e-3), mean)
