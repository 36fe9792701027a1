"""The hyperparameters a user may turn; they live in a plans file under the key "selma" and are stored with every checkpoint."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from nnunet_selma.errors import SelmaError
from nnunet_selma.nnunet.pretext_settings import (
    ByolSettings,
    DistillationSettings,
    InpaintingSettings,
    MultitaskSettings,
    SimclrSettings,
    StructureSettings,
    ViewSettings,
    check_choice,
)

OPTIMIZERS = ("sgd", "adamw")
CARRIED = ("all", "all_but_last_step", "encoder")


def _steps(run: Any) -> int:
    """Training steps of a run; what is not set is nnU-Net's own, 1000 epochs of 250."""
    epochs: int = 1000 if run.epochs is None else run.epochs
    return epochs * int(run.iterations_per_epoch or 250)


def _check_run(section: str, run: Any) -> None:
    """Refuse a run without epochs or steps, checkpoints that are never written, and optimisers that do not exist."""
    check_choice(f"{section}.optimizer", run.optimizer, OPTIMIZERS)
    if run.seed is not None and run.seed < 0:
        raise SelmaError(f"{section}.seed is {run.seed}; give 0 or more")
    if run.learning_rate is not None and run.learning_rate <= 0:
        raise SelmaError(f"{section}.learning_rate is {run.learning_rate}; give a number above 0")
    for name, least in (("epochs", 1), ("iterations_per_epoch", 1), ("validation_iterations", 1), ("save_every", 1)):
        value = getattr(run, name)
        if value is not None and value < least:
            raise SelmaError(f"{section}.{name} is {value}; give at least {least}")


@dataclass(frozen=True, kw_only=True)
class PretrainingSettings:
    """How long `SelmaSSLTrainer` trains, whatever the pretext task."""

    epochs: int | None = None
    """Number of epochs; None is nnU-Net's own (1000)."""
    iterations_per_epoch: int | None = None
    """Training steps in an epoch; None is nnU-Net's own (250)."""
    validation_iterations: int | None = None
    """Validation steps in an epoch; None is nnU-Net's own (50)."""
    pretext: str | None = None
    """A pretext of your own in place of the trainer's: module and class, as in my_pretexts.Denoising; the module is found by Python."""
    save_every: int = 10
    """Epochs between two checkpoints to continue from."""
    optimizer: str = "adamw"
    """"adamw", or nnU-Net's "sgd" (Nesterov momentum 0.99), which takes several times as many steps to learn to inpaint."""
    learning_rate: float | None = None
    """Highest learning rate; None is 0.001 with "adamw" and 0.01 with "sgd"."""
    weight_decay: float | None = None
    """None is nnU-Net's own for that optimiser (0.05, or 0.00003)."""
    seed: int = 0
    """Seed of masks and, with nnUNet_n_proc_DA=0, of the patches drawn: a run that was interrupted then goes on exactly."""

    @property
    def steps(self) -> int:
        """Training steps of the whole run."""
        return _steps(self)

    def __post_init__(self) -> None:
        """Refuse what cannot be trained."""
        _check_run("pretraining", self)


@dataclass(frozen=True, kw_only=True)
class FinetuningSettings:
    """How `SelmaFinetuneTrainer` starts and how long it trains."""

    pretrained: str = "newest"
    """Path of a checkpoint, "newest" for the newest pretraining of the same network (or that of other folds), or "none" for random weights."""
    epochs: int | None = None
    """Number of epochs; None is nnU-Net's own (1000)."""
    iterations_per_epoch: int | None = None
    """Training steps in an epoch; None is nnU-Net's own (250)."""
    validation_iterations: int | None = None
    """Validation steps in an epoch; None is nnU-Net's own (50)."""
    optimizer: str = "sgd"
    """nnU-Net's "sgd" (Nesterov momentum 0.99), or "adamw", which transformers need."""
    learning_rate: float | None = None
    """Highest learning rate; None is nnU-Net's own for that optimiser (0.01, or 0.0003 as for its transformers)."""
    weight_decay: float | None = None
    """None is nnU-Net's own for that optimiser (0.00003, or 0.05)."""
    warmup_steps: int = 1250
    """Steps over which the learning rate rises to its full value (at most a tenth of all steps)."""
    carry: str = "all"
    """Parts that are carried over from pretraining: "all", "all_but_last_step" (the decoder's finest step starts random) or "encoder"."""
    encoder_rate: float = 0.03
    """Learning rate of an encoder that was carried over, as a factor on that of random weights."""
    decoder_rate: float = 0.03
    """Learning rate of what was carried over of the decoder, as a factor on that of random weights."""
    head: str = "new"
    """Segmentation heads: "new" ones, or "keep" those of a fine-tuned model of as many classes that is fine-tuned further."""
    fit_head: bool = True
    """Fit the new segmentation heads to what was carried over (by logistic regression, on a few batches) before the first step."""
    calibrate: bool = True
    """Fit the decision threshold on validation cases (with fold "all" on training cases) and write it into the final checkpoint."""
    loss: str = "dice_ce"
    """nnU-Net's "dice_ce", or "dice", "dice_focal", "dice_focal_boundary", "dice_ce_cldice" (for vessels)."""
    frozen_epochs: int | None = None
    """Epochs in which `SelmaFinetuneTrainer_Unfreezing` leaves alone what was pretrained; None is a tenth of all epochs."""
    lora_rank: int = 8
    """Rank of what `SelmaFinetuneTrainer_LoRA` adds to each weight: more is closer to training all of it."""
    lora_alpha: float = 16.0
    """The low-rank addend is scaled by lora_alpha / lora_rank."""
    final_validation: bool = True
    """Predict and score all validation cases after the last epoch, as nnU-Net does."""
    save_every: int = 10
    """Epochs between two checkpoints to continue from."""
    validation_mirroring: bool | None = None
    """Mirror in the final validation (8 predictions a tile); None does so on a GPU only."""
    seed: int | None = None
    """Seed of the training; None is nnU-Net's own way, a new one each time."""

    @property
    def steps(self) -> int:
        """Training steps of the whole run."""
        return _steps(self)

    def __post_init__(self) -> None:
        """Refuse what cannot be trained."""
        _check_run("finetuning", self)
        if self.warmup_steps < 0:
            raise SelmaError(f"finetuning.warmup_steps is {self.warmup_steps}; give 0 or more")
        check_choice("finetuning.carry", self.carry, CARRIED)
        check_choice("finetuning.head", self.head, ("new", "keep"))
        if self.head == "keep" and self.carry != "all":
            raise SelmaError(
                f"finetuning.head is keep and finetuning.carry {self.carry}: heads can be kept only with the decoder they read; set carry to all"
            )
        for name in ("encoder_rate", "decoder_rate"):
            if not 0 < getattr(self, name) <= 1:
                raise SelmaError(f"finetuning.{name} is {getattr(self, name)}; give a factor above 0 and at most 1")
        losses = ("dice_ce", "dice", "dice_focal", "dice_focal_boundary", "dice_ce_cldice")
        check_choice("finetuning.loss", self.loss, losses)
        if self.frozen_epochs is not None and self.frozen_epochs < 0:
            raise SelmaError(f"finetuning.frozen_epochs is {self.frozen_epochs}; give 0 or more")
        if self.lora_rank < 1:
            raise SelmaError(f"finetuning.lora_rank is {self.lora_rank}; give at least 1")
        if self.lora_alpha <= 0:
            raise SelmaError(f"finetuning.lora_alpha is {self.lora_alpha}; give a number above 0")


@dataclass(frozen=True, kw_only=True)
class CpuSettings:
    """Settings that make training on a CPU faster; none of them touches a training on a GPU."""

    fast_layers: bool = True
    """Exchange 3D layers for faster ones with the same results, to rounding."""
    keep_memory: bool = True
    """Keep freed memory for the next step instead of giving it back to the system (Linux with glibc)."""


@dataclass(frozen=True, kw_only=True)
class GpuSettings:
    """Settings of training on a GPU; none of them touches a training on a CPU."""

    precision: str = "half"
    """Numbers of mixed precision: nnU-Net's "half" (float16), or "bfloat16" on cards that have it, where nothing overflows; `nnUNetv2_predict` stays at half."""
    channels_last: bool = False
    """Keep 3D networks in the layout channels_last_3d. Off, as in nnU-Net: try it on your GPU, it has not been measured."""

    def __post_init__(self) -> None:
        """Refuse another precision."""
        check_choice("gpu.precision", self.precision, ("half", "bfloat16"))


@dataclass(frozen=True, kw_only=True)
class Settings:
    """All sections."""

    pretraining: PretrainingSettings = field(default_factory=PretrainingSettings)
    inpainting: InpaintingSettings = field(default_factory=InpaintingSettings)
    structure: StructureSettings = field(default_factory=StructureSettings)
    views: ViewSettings = field(default_factory=ViewSettings)
    byol: ByolSettings = field(default_factory=ByolSettings)
    simclr: SimclrSettings = field(default_factory=SimclrSettings)
    multitask: MultitaskSettings = field(default_factory=MultitaskSettings)
    distillation: DistillationSettings = field(default_factory=DistillationSettings)
    finetuning: FinetuningSettings = field(default_factory=FinetuningSettings)
    cpu: CpuSettings = field(default_factory=CpuSettings)
    gpu: GpuSettings = field(default_factory=GpuSettings)


KEY = "selma"
_SECTIONS: dict[str, type[Any]] = get_type_hints(Settings)


def read_settings(plans: Mapping[str, Any]) -> Settings:
    """The settings of a plans file; what it does not say has its default.

    Raises:
        SelmaError: a section or a setting that does not exist, or a value that makes no sense.
    """
    stored = plans.get(KEY, {})
    _check_known(stored, _SECTIONS, "section")
    sections = {}
    for name, kind in _SECTIONS.items():
        values = stored.get(name, {})
        _check_known(values, {f.name: f for f in fields(kind)}, f"setting of {name}")
        hints = get_type_hints(kind)
        given = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
        for key, value in given.items():
            if not _fits(value, hints[key]):
                raise SelmaError(f"{name}.{key} cannot be {json.dumps(values[key])}; it is {_described(hints[key])}")
        sections[name] = kind(**given)
    return Settings(**sections)


def _fits(value: Any, hint: Any) -> bool:
    """True if a value read from JSON may stand in a field of that type."""
    if get_origin(hint) in (Union, UnionType):
        return any(_fits(value, one) for one in get_args(hint))
    if get_origin(hint) is tuple:
        return isinstance(value, tuple) and all(_fits(one, get_args(hint)[0]) for one in value)
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    return isinstance(value, hint) and (hint is bool or not isinstance(value, bool))


def _described(hint: Any) -> str:
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "a word or a path", NoneType: "null"}
    if get_origin(hint) in (Union, UnionType):
        return " or ".join(_described(one) for one in get_args(hint))
    return "a list like [4, 8]" if get_origin(hint) is tuple else words[hint]


def _check_known(given: Mapping[str, Any], known: Mapping[str, Any], what: str) -> None:
    for name in given:
        if name not in known:
            raise SelmaError(f"{name!r} is no {what}; known are {', '.join(known)}")


def with_settings(plans: Mapping[str, Any], changes: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """A copy of the plans with some settings changed, checked."""
    stored = {section: dict(values) for section, values in plans.get(KEY, {}).items()}
    for section, values in changes.items():
        stored.setdefault(section, {}).update(values)
    changed = {**plans, KEY: stored}
    read_settings(changed)
    return changed


def parse_assignments(assignments: list[str]) -> dict[str, dict[str, Any]]:
    """`["finetuning.epochs=20"]` to `{"finetuning": {"epochs": 20}}`; values are JSON, words are taken as they are.

    Raises:
        SelmaError: an assignment that is not section.setting=value.
    """
    changes: dict[str, dict[str, Any]] = {}
    for assignment in assignments:
        name, _, text = assignment.partition("=")
        section, _, setting = name.partition(".")
        if not text or not setting:
            raise SelmaError(f"{assignment!r}: write section.setting=value, for example finetuning.epochs=200")
        try:
            value = json.loads(text)
        except json.JSONDecodeError:
            value = text
        changes.setdefault(section, {})[setting] = value
    return changes


def as_lines(settings: Settings) -> list[str]:
    """Every setting as section.setting=value, the form `parse_assignments` takes."""
    return [
        f"{section}.{name}={json.dumps(value)}"
        for section, values in asdict(settings).items()
        for name, value in values.items()
    ]
