"""Settings of the pretext tasks; `settings.py` reads them from the plans."""

from dataclasses import dataclass
from typing import Annotated, Literal

from nnunet_selma.errors import SelmaError
from nnunet_selma.nnunet.setting_types import (
    AnyShare,
    Count,
    CountOrZero,
    Edges,
    Positive,
    PositiveOrZero,
    Radii,
    Section,
    Share,
    span,
)


@dataclass(frozen=True, kw_only=True)
class InpaintingSettings(Section):
    """Masked volume inpainting (XunDJ of SELMA3D 2024)."""

    mask_ratio: Share = 0.3
    """Share of the patch that is masked."""
    first_ratio: Share | None = None
    """Share that is masked in the first step; it rises to mask_ratio over the first half of the run. None masks mask_ratio throughout."""
    block_edges: Edges = (4, 8, 16)
    """Edges of a masked block along the finest axes, voxels; one is drawn for each sample."""
    aligned: bool = False
    """Build blocks from whole voxels of the network's coarsest map, so that its deepest features cover all of a block or none of it."""
    skips: bool = True
    """Give the decoder the skip connections. False sets them to zero, so that everything must pass through the coarsest map."""
    sparse: bool = False
    """Keep masked voxels empty in every layer of the encoder, and give the decoder learned tokens there (SparK); implies aligned."""
    deep_supervision: bool = False
    """Compute the loss at every step of the decoder, at its own resolution, weighted as in nnU-Net."""
    counted: Literal["masked", "all"] = "all"
    """Voxels whose error counts: "masked" or "all"."""
    fill: Literal["zeros", "noise", "mean"] = "zeros"
    """Content of masked voxels: "zeros", "noise" (mean and standard deviation of the visible voxels) or "mean" (of the visible voxels)."""
    target: Literal["intensity", "residual", "gradient"] = "intensity"
    """Quantity whose error is minimised: "intensity", "residual" (to a smoothed patch) or "gradient" (differences of neighbours)."""
    standardise: bool = False
    """Scale each patch to mean 0 and standard deviation 1 of its visible voxels, so that dim patches count as much as bright ones. Without it
    the network must predict how bright a patch is within its case, which instance norm removes from its features."""


@dataclass(frozen=True, kw_only=True)
class StructureSettings(Section):
    """Structure-aware inpainting, beside the settings of inpainting."""

    kind: Literal["bright", "blobs", "tubes", "both"] = "both"
    """Structures that count: "bright" voxels, "blobs", "tubes", or "both" of the latter two."""
    scales: Radii = (1.0, 2.0, 4.0)
    """Radii of structures: standard deviations of a Gaussian, voxels along the finest axes."""
    preference: PositiveOrZero = 1.0
    """Preference of masks for structures: the sampling weight of a block is its mean response to this power; 0 is no preference."""
    weight: PositiveOrZero = 1.0
    """Weight of errors on structures: a voxel weighs 1 plus this times its response in units of the patch's mean."""
    cut_share: AnyShare = 0.0
    """Share of the patches that are masked by small blocks on tubes only, so that the network must bridge gaps in branches."""
    cut_ratio: Share = 0.3
    """Share of the blocks on tubes that are masked in these patches."""


@dataclass(frozen=True, kw_only=True)
class ViewsSettings(Section):
    """Random views of a patch, for every pretext that compares views."""

    crop: Annotated[tuple[float, ...], span(0.1, 1)] = (0.6, 1.0)
    """Edge of a view as a share of the patch's, lowest and highest; the view is resized to the patch."""
    gamma: Annotated[tuple[float, ...], span(0.1)] = (0.6, 1.6)
    """Exponent of the intensities between the patch's least and greatest; instance norm cannot undo it."""
    contrast: Annotated[tuple[float, ...], span(0)] = (0.7, 1.4)
    """Factor on the difference to the patch's mean."""
    blur: Annotated[tuple[float, ...], span(0)] = (0.0, 1.2)
    """Standard deviation of a Gaussian along the finest axes, voxels."""
    noise: PositiveOrZero = 0.1
    """Highest standard deviation of the noise, in standard deviations of the patch."""
    mirror: bool = True
    """Mirror views along every axis, at random."""


@dataclass(frozen=True, kw_only=True)
class ByolSettings(Section):
    """BYOL (Zoomlin of SELMA3D 2024)."""

    hidden: Count = 512
    """Width of projector and predictor."""
    outputs: Count = 128
    """Length of a projection."""
    momentum: Share = 0.996
    """Momentum of the target network at the first step; it rises to 1 along a cosine."""


@dataclass(frozen=True, kw_only=True)
class SimclrSettings(Section):
    """SimCLR (Wu of SELMA3D 2024)."""

    hidden: Count = 512
    """Width of the projector."""
    outputs: Count = 128
    """Length of a projection."""
    temperature: Positive = 0.1
    """Temperature of the contrastive loss."""


@dataclass(frozen=True, kw_only=True)
class MultitaskSettings(Section):
    """Several pretexts at once (bioAI of SELMA3D 2024); a weight of 0 leaves a term out."""

    inpainting: PositiveOrZero = 1.0
    """Weight of the reconstruction of masked voxels."""
    rotation: PositiveOrZero = 1.0
    """Weight of the prediction of the angle by which a view was turned."""
    contrast: PositiveOrZero = 1.0
    """Weight of the contrastive loss, which pairs the two views of a patch."""
    structure: PositiveOrZero = 1.0
    """Weight of the prediction of the biological structure in the name of the case."""
    temperature: Positive = 0.5
    """Temperature of the contrastive loss."""

    def __post_init__(self) -> None:
        """Refuse a task without any term."""
        super().__post_init__()
        if not any((self.inpainting, self.rotation, self.contrast, self.structure)):
            raise SelmaError(
                "multitask.inpainting, rotation, contrast and structure are weights from 0, not all of them 0"
            )


@dataclass(frozen=True, kw_only=True)
class DistillationSettings(Section):
    """Self-distillation, DINO and iBOT (Tonyxu of SELMA3D 2024)."""

    prototypes: Count = 1024
    """Outputs of the heads."""
    hidden: Count = 512
    """Width of the heads."""
    bottleneck: Count = 128
    """Length of the vectors that are compared with the prototypes."""
    momentum: Share = 0.996
    """Momentum of the teacher at the first step; it rises to 1 along a cosine."""
    student_temperature: Positive = 0.1
    """Temperature of the student's softmax."""
    teacher_temperature: Annotated[tuple[float, ...], span(1e-3)] = (0.04, 0.07)
    """Temperature of the teacher's softmax, at the first step and after the first third of the run."""
    centring: Literal["centre", "sinkhorn"] = "centre"
    """Method that keeps the teacher's output from being the same for all patches: "centre" (subtract a moving mean) or "sinkhorn"."""
    local_crops: CountOrZero = 4
    """Number of small views, which only the student gets."""
    local_crop: Annotated[tuple[float, ...], span(0.05, 1)] = (0.3, 0.5)
    """Edge of a small view as a share of the patch's, lowest and highest."""
    mask_ratio: Annotated[tuple[float, ...], span(0, 0.999)] = (0.1, 0.5)
    """Share of a whole view's tokens that are masked for the student, lowest and highest."""
    patch_weight: float = 1.0
    """Weight of the loss on masked tokens, beside the loss on whole views."""
