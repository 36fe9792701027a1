"""Masked volume inpainting: blocks are masked, the network fills them in."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from nnunet_selma.errors import SelmaError
from nnunet_selma.pretraining.base import Pretext, Reconstruction, Task, feature_shape
from nnunet_selma.pretraining.masking import block_shape, draw_block_masks, fill_mask, moments, repeated
from nnunet_selma.pretraining.sparse import check_sparse_encoder, downsampled, sparse
from nnunet_selma.pretraining.views import gaussian_blur

_LEAST_DEVIATION = 0.02
"""Standard deviations of the case: a patch with less is camera noise, which is not worth magnifying."""
_BACKGROUND = 4.0
"""Deviation of the Gaussian whose result is background for the target "residual", voxels along the finest axes."""


class MaskedInpainting(Pretext):
    """Masked volume inpainting as team XunDJ did it in SELMA3D 2024 (paper, section 4.2.3): regions are set to zero.

    Settings change what the network must do: skip connections can be closed, so that everything passes through the coarsest map; masked
    voxels can stay empty in every layer (`sparse`); every step of the decoder can be asked; the error of visible voxels counts or not.
    """

    can_ask_every_step = True
    """False for subclasses whose error is defined at full resolution alone."""

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        self.settings, self.spacing = task.settings.inpainting, task.spacing
        shape = self.settings.block_shape
        if shape is not None and len(shape) != len(task.patch):
            raise SelmaError(
                f"inpainting.block_shape has {len(shape)} numbers, the patch {len(task.patch)} axes; give one for each"
            )
        if self.settings.sparse or not self.settings.skips:
            check_encoder_and_decoder(task.network)
        if self.settings.deep_supervision and not hasattr(getattr(task.network, "decoder", None), "deep_supervision"):
            raise SelmaError(
                f"inpainting.deep_supervision needs a decoder that answers at every step, and {type(task.network).__name__} has none; "
                "set it to false"
            )
        if self.settings.deep_supervision and not self.can_ask_every_step:
            raise SelmaError(f"inpainting.deep_supervision is not for {type(self).__name__}; set it to false")
        self.asks_every_step, self.uses_skips = self.settings.deep_supervision, self.settings.skips
        self.stride = [1] * len(task.patch)
        if self.settings.sparse or self.settings.aligned:
            self.stride = [length // places for length, places in zip(task.patch, feature_shape(task)[1:], strict=True)]
        self.tokens = nn.ParameterList()
        if self.settings.sparse:
            encoder = task.network.get_submodule("encoder")
            check_sparse_encoder(encoder)
            ones = [1] * len(task.patch)
            self.tokens.extend(
                nn.Parameter(torch.zeros(1, channels, *ones)) for channels in map_channels(task, encoder)
            )

    def called(self, network: nn.Module) -> list[nn.Module]:
        """Encoder and decoder, which may be called apart; not a sparse encoder, whose hooks a compiled one would not call."""
        if not (hasattr(network, "encoder") and hasattr(network, "decoder")):
            return [network]
        return [
            network.get_submodule(name) for name in (["decoder"] if self.settings.sparse else ["encoder", "decoder"])
        ]

    @property
    def ratio(self) -> float:
        """Share of the patch that is masked now; validations mask the full share, so that epochs can be compared."""
        first, last = self.settings.first_ratio, self.settings.mask_ratio
        if first is None or not self.training:
            return last
        return first + (last - first) * min(1.0, 2 * self.steps_done / max(1, self.steps))

    def draw_blocks(self, patches: Tensor) -> list[list[int]]:
        """The shape of a block for each sample, in voxels of the grid on which masks are drawn (`draw_mask`)."""
        grid = [length // stride for length, stride in zip(patches.shape[2:], self.stride, strict=True)]
        if self.settings.block_shape is not None:
            shapes = [list(self.settings.block_shape)] * len(patches)
            blocks = [
                [min(edge, max(1, length // 2)) for edge, length in zip(shape, patches.shape[2:], strict=True)]
                for shape in shapes
            ]
        else:
            edges = self.rng.choice(self.settings.block_edges, size=len(patches))
            blocks = [block_shape(int(edge), patches.shape[2:], self.spacing) for edge in edges]
        return [
            [
                min(max(1, round(edge / stride)), max(1, length // 2))
                for edge, stride, length in zip(block, self.stride, grid, strict=True)
            ]
            for block in blocks
        ]

    def draw_mask(self, patches: Tensor) -> Tensor:
        """Masks for a batch, bool (batch, 1, *patch); aligned ones are drawn on the grid of the network's coarsest map."""
        grid = [length // stride for length, stride in zip(patches.shape[2:], self.stride, strict=True)]
        masks = draw_block_masks(
            grid,
            self.draw_blocks(patches),
            ratio=self.ratio,
            rng=self.rng,
            generator=self.generator,
            **self.where_to_mask(patches),
        )
        return repeated(masks, self.stride)

    def where_to_mask(self, patches: Tensor) -> dict[str, Any]:
        """Arguments of `draw_block_masks` that prefer some blocks to others; none here."""
        return {}

    def draw_task(self, patches: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Input of the network, its target, and the mask, for a batch (batch, channel, *patch)."""
        mask = self.draw_mask(patches)
        shown = self.brought_to_unit(patches, ~mask) if self.settings.standardise else patches
        return fill_mask(shown, mask, self.settings.fill, self.generator), self.as_answer(shown), mask

    def brought_to_unit(self, patches: Tensor, visible: Tensor) -> Tensor:
        """Patches by the mean and the deviation of their visible voxels."""
        return standardised(patches, visible)

    def as_answer(self, patches: Tensor) -> Tensor:
        """Intensities in the unit in which the network answers."""
        return patches

    def answer(self, network: nn.Module, visible: Tensor, mask: Tensor) -> Tensor:
        """The network's reconstruction (batch, channel, *patch) of what it sees, by the way that the settings say."""
        if not self.settings.sparse and self.settings.skips:
            return finest(network(visible))
        encoder, decoder = network.get_submodule("encoder"), network.get_submodule("decoder")
        return finest(decoder(self.maps(encoder, visible, mask)))

    def maps(self, encoder: nn.Module, visible: Tensor, mask: Tensor) -> list[Tensor]:
        """The feature maps that the decoder is given, fine to coarse: with tokens in masked places, without skip connections."""
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

    def error(self, prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
        """The error of the voxels that count, where the settings measure it; this is minimised."""
        return masked_error(prediction, target, self.counted(mask), kind=self.settings.target, spacing=self.spacing)

    def counted(self, mask: Tensor) -> Tensor:
        """Voxels whose error counts, bool (batch, 1, *patch)."""
        return torch.ones_like(mask) if self.settings.counted == "all" else mask

    def forward(self, network: nn.Module, patches: Tensor, structures: Tensor) -> dict[str, Tensor]:
        """Mean squared error of the voxels that count; with deep supervision the weighted mean over resolutions."""
        visible, target, mask = self.draw_task(patches)
        if not self.asks_every_step:
            return {"inpainting": self.error(self.answer(network, visible, mask), target, mask)}
        with every_step_answers(network):
            maps = self.maps(network.get_submodule("encoder"), visible, mask)
            answers = network.get_submodule("decoder")(maps)
        weights = [0.5**number for number in range(len(answers))]
        errors = [self.error(given, *at_resolution(target, mask, given.shape[2:])) for given in answers]
        total = torch.stack([weight * error for weight, error in zip(weights, errors, strict=True)]).sum() / sum(
            weights
        )
        return {"inpainting": total}

    @torch.no_grad()
    def reconstruct(self, network: nn.Module, patches: Tensor) -> Reconstruction:
        """The network's reconstruction of masked patches."""
        visible, target, mask = self.draw_task(patches)
        return Reconstruction(self.as_answer(visible), target, self.answer(network, visible, mask).float(), mask)

    @torch.no_grad()
    def diagnostics(self, network: nn.Module, patches: Tensor) -> dict[str, float]:
        """Squared error on masked voxels beside that of the trivial answer, the mean of what is visible nearby."""
        visible, target, mask = self.draw_task(patches)
        return {
            "reconstruction_error": float(masked_error(self.answer(network, visible, mask), target, mask)),
            "trivial_error": float(masked_error(local_mean(target, ~mask), target, mask)),
        }


def finest(answer: Tensor | list[Tensor]) -> Tensor:
    """The answer at full resolution, of a network that may answer at several."""
    return answer if isinstance(answer, Tensor) else answer[0]


def check_encoder_and_decoder(network: nn.Module) -> None:
    """Raise `SelmaError` unless a network has an encoder whose maps its decoder reads."""
    if not (hasattr(network, "encoder") and hasattr(network, "decoder")):
        raise SelmaError(
            f"inpainting.sparse and inpainting.skips=false need a network of an encoder and a decoder, which {type(network).__name__} is "
            "not; set them to false and true"
        )


@torch.no_grad()
def map_channels(task: Task, encoder: nn.Module) -> list[int]:
    """Number of channels of each map of an encoder, fine to coarse."""
    training = encoder.training
    maps = encoder.eval()(torch.zeros(1, task.channels, *task.patch, device=task.device))
    encoder.train(training)
    return [features.shape[1] for features in maps]


@contextmanager
def every_step_answers(network: nn.Module) -> Iterator[None]:
    """Let every step of a decoder answer, as in nnU-Net's deep supervision."""
    decoder = network.get_submodule("decoder")
    before, decoder.deep_supervision = decoder.deep_supervision, True  # type: ignore[assignment]
    try:
        yield
    finally:
        decoder.deep_supervision = before


def at_resolution(target: Tensor, mask: Tensor, grid: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Target and mask on a coarser grid: means of blocks, and blocks of which at least half is masked."""
    if tuple(target.shape[2:]) == tuple(grid):
        return target, mask
    return (
        functional.interpolate(target, tuple(grid), mode="area"),
        functional.interpolate(mask.to(target.dtype), tuple(grid), mode="area") >= 0.5,
    )


def standardised(patches: Tensor, visible: Tensor) -> Tensor:
    """Each patch and channel with the visible voxels' mean 0 and standard deviation 1 (He et al. 2022, normalised pixels).

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
        kind: what of the masked difference is squared: "intensity" itself, its "residual" to a smoothed copy, or its "gradient". Both are
            linear, so this is the error of the residual or gradient of the image that the prediction completes.
        spacing: voxel size along the axes, for "residual".
        weight: of each voxel, (batch, 1, *patch).
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
    shown = visible.to(patches.dtype)
    around, count = (gaussian_blur(one, sigma, axes, reach) for one in (patches * shown, shown))
    mean, _ = moments(patches, visible)
    return torch.where(count > 1e-3, around / count.clamp(min=1e-3), mean)
