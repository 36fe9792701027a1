"""Settings of the pretext tasks; `settings.py` reads them from the plans."""

from dataclasses import dataclass

from nnunet_selma.errors import SelmaError


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Refuse a word that is none of the choices."""
    if value not in choices:
        raise SelmaError(f"{name} is {value!r}; choose one of {', '.join(choices)}")


def _check_share(name: str, value: float) -> None:
    if not 0 < value < 1:
        raise SelmaError(f"{name} is {value}; give a share between 0 and 1")


def _check_range(name: str, values: tuple[float, ...], least: float) -> None:
    if len(values) != 2 or not least <= values[0] <= values[1]:
        raise SelmaError(f"{name} is {list(values)}; give the lowest and the highest value, from {least:g}")


def _check_above(section: str, settings: object, names: tuple[str, ...], least: float = 0.0) -> None:
    """Refuse numbers that are not above `least`."""
    for name in names:
        if getattr(settings, name) <= least:
            raise SelmaError(f"{section}.{name} is {getattr(settings, name)}; give a number above {least:g}")


FILLS = ("zeros", "noise", "mean")
COUNTED = ("masked", "all")
TARGETS = ("intensity", "residual", "gradient")
STRUCTURES = ("bright", "blobs", "tubes", "both")
CENTRINGS = ("centre", "sinkhorn")


@dataclass(frozen=True, kw_only=True)
class InpaintingSettings:
    """Masked volume inpainting (XunDJ of SELMA3D 2024)."""

    mask_ratio: float = 0.3
    """Share of the patch that is masked."""
    first_ratio: float | None = None
    """Share that is masked in the first step; it rises to mask_ratio over the first half of the run. None masks mask_ratio throughout."""
    block_edges: tuple[int, ...] = (4, 8, 16)
    """Edges of a masked block along the finest axes, voxels; one is drawn for each sample."""
    block_shape: tuple[int, ...] | None = None
    """Shape of every block along the axes of the patch, voxels; None draws from block_edges instead."""
    aligned: bool = False
    """Blocks consist of whole voxels of the network's coarsest map, so that the deepest features see all of a block or nothing of it."""
    skips: bool = True
    """The decoder reads the skip connections. False sets them to zero, so that everything must pass through the coarsest map."""
    sparse: bool = False
    """Masked voxels stay empty in every layer of the encoder, and the decoder reads learned tokens there (SparK); implies aligned."""
    deep_supervision: bool = False
    """Every step of the decoder answers, at its own resolution, weighted as nnU-Net weights its outputs."""
    counted: str = "all"
    """Voxels whose error counts: "masked" or "all"."""
    fill: str = "zeros"
    """Content of masked voxels: "zeros", "noise" (mean and standard deviation of the visible voxels) or "mean" (of the visible voxels)."""
    target: str = "intensity"
    """Where errors are measured: "intensity", "residual" (what smoothing takes away) or "gradient" (differences of neighbours)."""
    standardise: bool = False
    """Bring each patch to mean 0 and standard deviation 1 of its visible voxels, so that dim patches count as bright ones. Without it the
    network must tell how bright a patch is within its case, which instance norm takes out of what it sees."""

    def __post_init__(self) -> None:
        """Refuse values that mask nothing or everything."""
        _check_share("inpainting.mask_ratio", self.mask_ratio)
        if self.first_ratio is not None:
            _check_share("inpainting.first_ratio", self.first_ratio)
        check_choice("inpainting.counted", self.counted, COUNTED)
        if not self.block_edges or min(self.block_edges) < 1:
            raise SelmaError(
                f"inpainting.block_edges is {self.block_edges}; give one or more edges of at least 1 voxel"
            )
        if self.block_shape is not None and min(self.block_shape, default=0) < 1:
            raise SelmaError(f"inpainting.block_shape is {self.block_shape}; give a number of voxels for each axis")
        check_choice("inpainting.fill", self.fill, FILLS)
        check_choice("inpainting.target", self.target, TARGETS)


@dataclass(frozen=True, kw_only=True)
class StructureSettings:
    """Settings of structure-aware inpainting beyond those of inpainting: where it masks, and which errors count."""

    kind: str = "both"
    """Structures that count: "bright" voxels, "blobs", "tubes", or "both" of the latter two."""
    scales: tuple[float, ...] = (1.0, 2.0, 4.0)
    """Radii of structures, standard deviations of a Gaussian in voxels along the finest axes."""
    preference: float = 1.0
    """How much masks prefer blocks with structures: 0 is not at all; at 1 a block with twice the response is drawn twice as readily."""
    weight: float = 1.0
    """How much errors on structures count: a voxel weighs 1, and this times its response in units of the patch's mean."""
    cut_share: float = 0.0
    """Share of the patches whose masks are few small blocks on tubes, so that branches are cut and must be bridged."""
    cut_ratio: float = 0.3
    """Share of the blocks on tubes that are masked in those."""

    def __post_init__(self) -> None:
        """Refuse what finds nothing."""
        check_choice("structure.kind", self.kind, STRUCTURES)
        if not self.scales or min(self.scales) <= 0:
            raise SelmaError(f"structure.scales is {self.scales}; give one or more radii above 0")
        if min(self.preference, self.weight) < 0:
            raise SelmaError("structure.preference and structure.weight are numbers from 0")
        if not 0 <= self.cut_share <= 1:
            raise SelmaError(f"structure.cut_share is {self.cut_share}; give a share from 0 to 1")
        _check_share("structure.cut_ratio", self.cut_ratio)


@dataclass(frozen=True, kw_only=True)
class ViewSettings:
    """How two views of a patch are made, for every pretext that compares views."""

    crop: tuple[float, ...] = (0.6, 1.0)
    """Edge of a view as a share of the patch's, lowest and highest; the view is resized to the patch."""
    gamma: tuple[float, ...] = (0.6, 1.6)
    """Exponent of the intensities between the patch's least and greatest; a contrast that instance norm cannot take out."""
    contrast: tuple[float, ...] = (0.7, 1.4)
    """Factor on the deviation from the patch's mean."""
    blur: tuple[float, ...] = (0.0, 1.2)
    """Standard deviation of a Gaussian along the finest axes, voxels."""
    noise: float = 0.1
    """Highest standard deviation of the noise, in standard deviations of the patch."""
    mirror: bool = True
    """Mirror views along every axis, at random."""

    def __post_init__(self) -> None:
        """Refuse ranges that are none."""
        for name, least in (("crop", 0.1), ("gamma", 0.1), ("contrast", 0.0), ("blur", 0.0)):
            _check_range(f"views.{name}", getattr(self, name), least)
        if self.crop[1] > 1 or self.noise < 0:
            raise SelmaError("views.crop is a share of the patch, at most 1, and views.noise a number from 0")


@dataclass(frozen=True, kw_only=True)
class ByolSettings:
    """BYOL (Zoomlin of SELMA3D 2024)."""

    hidden: int = 512
    """Width of projector and predictor."""
    outputs: int = 128
    """Length of a projection."""
    momentum: float = 0.996
    """Momentum of the target network at the first step; it rises to 1 along a cosine."""

    def __post_init__(self) -> None:
        """Refuse heads without width and momenta that are none."""
        _check_above("byol", self, ("hidden", "outputs"))
        _check_share("byol.momentum", self.momentum)


@dataclass(frozen=True, kw_only=True)
class SimclrSettings:
    """SimCLR (Wu of SELMA3D 2024)."""

    hidden: int = 512
    """Width of the projector."""
    outputs: int = 128
    """Length of a projection."""
    temperature: float = 0.1
    """Temperature of the contrastive loss."""

    def __post_init__(self) -> None:
        """Refuse heads without width."""
        _check_above("simclr", self, ("hidden", "outputs", "temperature"))


@dataclass(frozen=True, kw_only=True)
class MultitaskSettings:
    """Several pretexts at once (bioAI of SELMA3D 2024); weights of the terms, 0 leaves one out."""

    inpainting: float = 1.0
    """Reconstruction of masked voxels."""
    rotation: float = 1.0
    """By how much a view was rotated."""
    contrast: float = 1.0
    """Which two views show the same patch."""
    structure: float = 1.0
    """Which biological structure the name of the case says."""
    temperature: float = 0.5
    """Temperature of the contrastive loss."""

    def __post_init__(self) -> None:
        """Refuse a task without any term."""
        weights = (self.inpainting, self.rotation, self.contrast, self.structure)
        if min(weights) < 0 or not any(weights):
            raise SelmaError(
                "multitask.inpainting, rotation, contrast and structure are weights from 0, not all of them 0"
            )
        _check_above("multitask", self, ("temperature",))


@dataclass(frozen=True, kw_only=True)
class DistillationSettings:
    """Self-distillation, DINO and iBOT (Tonyxu of SELMA3D 2024)."""

    prototypes: int = 1024
    """Outputs of the heads."""
    hidden: int = 512
    """Width of the heads."""
    bottleneck: int = 128
    """Length of what the prototypes are compared with."""
    momentum: float = 0.996
    """Momentum of the teacher at the first step; it rises to 1 along a cosine."""
    student_temperature: float = 0.1
    """Temperature of the student's softmax."""
    teacher_temperature: tuple[float, ...] = (0.04, 0.07)
    """Temperature of the teacher's softmax, at the first step and after the first third of the run."""
    centring: str = "centre"
    """Method that keeps the teacher from giving one answer for all: "centre" (a moving mean is taken away) or "sinkhorn"."""
    local_crops: int = 4
    """Small views that only the student sees."""
    local_crop: tuple[float, ...] = (0.3, 0.5)
    """Edge of a small view as a share of the patch's."""
    mask_ratio: tuple[float, ...] = (0.1, 0.5)
    """Share of a global view's tokens that are masked for the student."""
    patch_weight: float = 1.0
    """Weight of the loss on masked tokens, beside that on whole views."""

    def __post_init__(self) -> None:
        """Refuse what cannot be distilled."""
        check_choice("distillation.centring", self.centring, CENTRINGS)
        _check_range("distillation.local_crop", self.local_crop, 0.05)
        _check_range("distillation.mask_ratio", self.mask_ratio, 0.0)
        _check_range("distillation.teacher_temperature", self.teacher_temperature, 1e-3)
        if max(self.local_crop) > 1 or self.mask_ratio[1] >= 1:
            raise SelmaError(
                "distillation.local_crop and distillation.mask_ratio are shares of a patch, and not all of it can be masked"
            )
        _check_above("distillation", self, ("prototypes", "hidden", "bottleneck", "student_temperature"))
        _check_share("distillation.momentum", self.momentum)
        if self.local_crops < 0:
            raise SelmaError(f"distillation.local_crops is {self.local_crops}; give 0 or more")
