"""Settings of pretraining and fine-tuning; they are stored in a plans file under the key "selma", and with every checkpoint."""

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, get_type_hints

from nnunet_selma.errors import SelmaError
from nnunet_selma.nnunet.pretext_settings import (
    ByolSettings,
    DistillationSettings,
    InpaintingSettings,
    MultitaskSettings,
    SimclrSettings,
    StructureSettings,
    ViewsSettings,
)
from nnunet_selma.nnunet.setting_types import Count, CountOrZero, Positive, Section, ShareOrAll

Optimizer = Literal["sgd", "adamw"]


@dataclass(frozen=True, kw_only=True)
class RunSettings(Section):
    """Length and optimiser of a training; None is nnU-Net's own."""

    epochs: Count | None = None
    """Number of epochs; None is nnU-Net's own (1000)."""
    iterations_per_epoch: Count | None = None
    """Training steps in an epoch; None is nnU-Net's own (250)."""
    validation_iterations: Count | None = None
    """Validation steps in an epoch; None is nnU-Net's own (50)."""
    save_every: Count = 10
    """Epochs between two checkpoints to continue from."""
    learning_rate: Positive | None = None
    """Highest learning rate; None is 0.01 with "sgd", and with "adamw" 0.001 in pretraining and 0.0003 in fine-tuning."""
    weight_decay: float | None = None
    """Weight decay; None is nnU-Net's own for the optimiser (0.00003 with "sgd", 0.05 with "adamw")."""

    @property
    def steps(self) -> int:
        """Training steps of the whole run."""
        return (1000 if self.epochs is None else self.epochs) * (self.iterations_per_epoch or 250)


@dataclass(frozen=True, kw_only=True)
class PretrainingSettings(RunSettings):
    """Pretraining by `SelmaSSLTrainer`, whatever the pretext task."""

    pretext: str | None = None
    """A pretext of your own in place of the trainer's: module and class, as in my_pretexts.Denoising, which Python must be able to import."""
    optimizer: Optimizer = "adamw"
    """"adamw", or nnU-Net's "sgd" (Nesterov momentum 0.99), which takes several times as many steps to learn to inpaint."""
    seed: CountOrZero = 0
    """Seed of masks and, with nnUNet_n_proc_DA=0, of the patches drawn: a run that was interrupted then goes on exactly."""


@dataclass(frozen=True, kw_only=True)
class FinetuningSettings(RunSettings):
    """Fine-tuning by `SelmaFinetuneTrainer`."""

    pretrained: str = "newest"
    """Path of a checkpoint, "newest" for the newest pretraining that suits, the same network first (or that of other folds), or "none" for
    random weights."""
    optimizer: Optimizer = "sgd"
    """nnU-Net's "sgd" (Nesterov momentum 0.99), or "adamw", which transformers need."""
    warmup_steps: CountOrZero = 1250
    """Steps over which the learning rate rises to its full value (at most a tenth of all steps)."""
    carry: Literal["all", "all_but_last_step", "encoder"] = "all"
    """Parts that are carried over from pretraining: "all", "all_but_last_step" (the decoder's finest step starts random) or "encoder"."""
    encoder_rate: ShareOrAll = 0.03
    """Factor on the learning rate of a pretrained encoder; weights that start random have the factor 1."""
    decoder_rate: ShareOrAll = 0.03
    """Factor on the learning rate of the pretrained parts of the decoder; weights that start random have the factor 1."""
    head: Literal["new", "keep"] = "new"
    """Segmentation heads: "new" ones, or "keep": those of a fine-tuned model with the same number of classes are trained further."""
    fit_head: bool = True
    """Fit the new segmentation heads to the carried-over features (by logistic regression, on a few batches) before the first step."""
    calibrate: bool = True
    """Fit the decision threshold on validation cases (with fold "all" on training cases) and write it into the final checkpoint."""
    loss: Literal["dice_ce", "dice", "dice_focal", "dice_focal_boundary", "dice_ce_cldice"] = "dice_ce"
    """nnU-Net's "dice_ce", or "dice", "dice_focal", "dice_focal_boundary", "dice_ce_cldice" (for vessels)."""
    frozen_epochs: CountOrZero | None = None
    """Epochs in which `SelmaFinetuneTrainer_Unfreezing` freezes the pretrained part; None is a tenth of all epochs."""
    lora_rank: Count = 8
    """Rank of the matrices that `SelmaFinetuneTrainer_LoRA` adds to each weight; a higher rank is closer to training the whole weight."""
    lora_alpha: Positive = 16.0
    """The low-rank addend is scaled by lora_alpha / lora_rank."""
    final_validation: bool = True
    """Predict and score all validation cases after the last epoch, as nnU-Net does."""
    seed: CountOrZero | None = None
    """Seed of the training; None is a new one each time, as in nnU-Net."""

    def __post_init__(self) -> None:
        """Refuse heads that are kept without the decoder they read."""
        super().__post_init__()
        if self.head == "keep" and self.carry != "all":
            raise SelmaError(
                f"finetuning.head is keep and finetuning.carry {self.carry}: heads can be kept only with the decoder they read; set carry to all"
            )


@dataclass(frozen=True, kw_only=True)
class CpuSettings(Section):
    """Speed of training on a CPU; without effect on a GPU."""

    fast_layers: bool = True
    """Exchange 3D layers for faster ones with the same results, to rounding."""
    keep_memory: bool = True
    """Keep freed memory for the next step instead of giving it back to the system (Linux with glibc)."""


@dataclass(frozen=True, kw_only=True)
class GpuSettings(Section):
    """Training on a GPU; without effect on a CPU."""

    precision: Literal["half", "bfloat16"] = "half"
    """Type of mixed precision: nnU-Net's "half" (float16), or "bfloat16" on cards that have it, in which nothing overflows; `nnUNetv2_predict`
    computes in half precision."""
    channels_last: bool = False
    """Keep 3D networks in the layout channels_last_3d. Off, as in nnU-Net: try it on your GPU, it has not been measured."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """All sections of settings."""

    pretraining: PretrainingSettings = field(default_factory=PretrainingSettings)
    inpainting: InpaintingSettings = field(default_factory=InpaintingSettings)
    structure: StructureSettings = field(default_factory=StructureSettings)
    views: ViewsSettings = field(default_factory=ViewsSettings)
    byol: ByolSettings = field(default_factory=ByolSettings)
    simclr: SimclrSettings = field(default_factory=SimclrSettings)
    multitask: MultitaskSettings = field(default_factory=MultitaskSettings)
    distillation: DistillationSettings = field(default_factory=DistillationSettings)
    finetuning: FinetuningSettings = field(default_factory=FinetuningSettings)
    cpu: CpuSettings = field(default_factory=CpuSettings)
    gpu: GpuSettings = field(default_factory=GpuSettings)


KEY = "selma"
_SECTIONS: dict[str, type[Any]] = get_type_hints(Settings)
_REMOVED = {
    "inpainting.block_shape": "blocks are cubes of inpainting.block_edges",
    "finetuning.validation_mirroring": "the final validation mirrors on a GPU, and not on a CPU",
}
"""Removed settings, and the behaviour that replaces them."""


def read_settings(plans: Mapping[str, Any]) -> Settings:
    """The settings of a plans file, with defaults for all that it lacks.

    Settings that this version has no more are left out, with a line on stderr.

    Raises:
        SelmaError: a section or a setting that does not exist, or a value that its field does not allow.
    """
    return _checked(_without_removed(plans.get(KEY, {})))


def with_settings(plans: Mapping[str, Any], changes: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """A copy of the plans with some settings changed; raises `SelmaError` as `read_settings` does."""
    stored = _without_removed(plans.get(KEY, {}))
    for section, values in changes.items():
        stored.setdefault(section, {}).update(values)
    _checked(stored)
    return {**plans, KEY: stored}


def _without_removed(stored: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """A copy of stored settings without those of earlier versions."""
    kept: dict[str, dict[str, Any]] = {}
    for section, values in stored.items():
        kept[section] = {}
        for name, value in values.items():
            if (reason := _REMOVED.get(f"{section}.{name}")) is None:
                kept[section][name] = value
            elif value is not None:
                print(  # noqa: T201 - nnU-Net's commands have no other channel
                    f"nnunet-selma: {section}.{name} was removed and is ignored; {reason}", file=sys.stderr
                )
    return kept


def _checked(stored: Mapping[str, Mapping[str, Any]]) -> Settings:
    """Stored settings with defaults, every value checked."""
    _check_known(stored, _SECTIONS, "section")
    sections = {}
    for name, kind in _SECTIONS.items():
        values = stored.get(name, {})
        _check_known(values, {f.name: f for f in fields(kind)}, f"setting of {name}")
        sections[name] = kind(
            **{key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
        )
    return Settings(**sections)


def _check_known(given: Mapping[str, Any], known: Mapping[str, Any], what: str) -> None:
    for name in given:
        if name not in known:
            raise SelmaError(f"{name!r} is no {what}; known are {', '.join(known)}")


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
