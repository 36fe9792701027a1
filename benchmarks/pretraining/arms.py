"""The arms of the study: a pretext, what is carried over from it, and how that is fine-tuned.

An arm is a name and the settings in which it differs from `BASE`, which is written out so that no result depends on a default that is
changed later. A new arm is one more entry of `ARMS`.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

from nnunet_selma.recipes import SettingsChange

BASE: dict[str, dict[str, Any]] = {
    "pretraining": {"learning_rate": 1e-2, "optimizer": "sgd"},
    "inpainting": {
        "mask_ratio": 0.6, "first_ratio": None, "block_edges": [4, 8, 16], "aligned": False, "skips": True, "sparse": False,
        "deep_supervision": False, "counted": "masked", "fill": "zeros", "target": "intensity", "standardise": True,
    },
    "finetuning": {
        "learning_rate": 1e-2, "optimizer": "sgd", "warmup_steps": 51, "carry": "all", "encoder_rate": 1.0, "decoder_rate": 1.0, "loss": "dice_ce",
    },
}  # fmt: skip
"""Settings of every arm: inpainting and fine-tuning as they were when the study began."""


def merged(*changes: SettingsChange) -> dict[str, dict[str, Any]]:
    """Settings of several changes, section by section; later ones win."""
    sections = {section for change in changes for section in change}
    return {
        section: {k: v for change in changes for k, v in change.get(section, {}).items()}
        for section in sorted(sections)
    }


@dataclass(frozen=True, kw_only=True)
class Arm:
    """A row of the tables."""

    name: str
    pretext: str | None = "SelmaSSLTrainer"
    """Trainer that pretrains; None starts from random weights."""
    finetuning: str = "SelmaFinetuneTrainer"
    """Trainer that fine-tunes."""
    changes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Settings that differ from `BASE`."""

    @property
    def settings(self) -> dict[str, dict[str, Any]]:
        """All settings of the arm."""
        return merged(BASE, self.changes)

    def pretraining_name(self, seed: int) -> str:
        """A name that arms share whose pretraining is the same."""
        decisive = {section: values for section, values in self.settings.items() if section != "finetuning"}
        digest = sha256(json.dumps([self.pretext, decisive], sort_keys=True).encode()).hexdigest()[:8]
        return f"{str(self.pretext).removeprefix('SelmaSSLTrainer').strip('_') or 'Inpainting'}-{digest}-{seed}"


def finetuned(**settings: Any) -> dict[str, dict[str, Any]]:
    """Changes of the fine-tuning."""
    return {"finetuning": settings}


def inpainting(**settings: Any) -> dict[str, dict[str, Any]]:
    """Changes of the pretext."""
    return {"inpainting": settings}


def slower(factor: float) -> dict[str, dict[str, Any]]:
    """Changes of the fine-tuning: what was pretrained learns at this share of the rate."""
    return finetuned(encoder_rate=factor, decoder_rate=factor)


ENCODER = finetuned(carry="encoder")
STRUCTURE = "SelmaSSLTrainer_StructureAware"
ADAMW = {"pretraining": {"optimizer": "adamw", "learning_rate": 1e-3}}
IN_VOLUME_UNIT = inpainting(standardise=False, counted="all", mask_ratio=0.3)
ASINH = merged(IN_VOLUME_UNIT, {"structure": {"preference": 0.0, "weight": 0.0}})
"""Changes of `STRUCTURE`, whose answer is an inverse hyperbolic sine: without its masks and weights."""
VOLUME = merged(IN_VOLUME_UNIT, ADAMW)

ARMS = {
    arm.name: arm
    for arm in (
        # no pretraining, tuned as hard
        Arm(name="random", pretext=None),
        Arm(name="random, rate 0.003", pretext=None, changes=finetuned(learning_rate=3e-3)),
        Arm(name="random, rate 0.03", pretext=None, changes=finetuned(learning_rate=3e-2)),
        # what is carried over
        Arm(name="old default"),
        Arm(name="old default, rate 0.03", changes=finetuned(learning_rate=3e-2)),
        Arm(name="encoder", changes=ENCODER),
        Arm(name="all but last step", changes=finetuned(carry="all_but_last_step")),
        # how fast it may change
        Arm(name="encoder, a third as fast", changes=finetuned(carry="encoder", encoder_rate=0.3)),
        Arm(name="encoder, a tenth as fast", changes=finetuned(carry="encoder", encoder_rate=0.1)),
        Arm(name="encoder, rate 0.003", changes=finetuned(carry="encoder", learning_rate=3e-3)),
        # the pretext
        Arm(name="no skips", changes=merged(ENCODER, inpainting(skips=False))),
        Arm(name="sparse", changes=merged(ENCODER, inpainting(sparse=True))),
        Arm(name="deep supervision", changes=merged(ENCODER, inpainting(deep_supervision=True))),
        Arm(name="aligned", changes=merged(ENCODER, inpainting(aligned=True))),
        Arm(name="ratio 0.15", changes=merged(ENCODER, inpainting(mask_ratio=0.15))),
        Arm(name="ratio 0.3", changes=merged(ENCODER, inpainting(mask_ratio=0.3))),
        Arm(name="ratio 0.75", changes=merged(ENCODER, inpainting(mask_ratio=0.75))),
        Arm(name="rising ratio", changes=merged(ENCODER, inpainting(first_ratio=0.15))),
        Arm(name="all voxels", changes=merged(ENCODER, inpainting(counted="all"))),
        Arm(name="structure-aware", pretext=STRUCTURE),
        Arm(name="structure-aware, encoder", pretext=STRUCTURE, changes=ENCODER),
        Arm(name="structure-aware, no skips", pretext=STRUCTURE, changes=merged(ENCODER, inpainting(skips=False))),
        # the answer in the unit of the volume: how bright a patch is, and not only what is brighter than its surroundings
        Arm(name="asinh, SGD", pretext=STRUCTURE, changes=ASINH),
        Arm(name="asinh, SGD, encoder", pretext=STRUCTURE, changes=merged(ASINH, ENCODER)),
        Arm(name="asinh, SGD, no skips", pretext=STRUCTURE, changes=merged(ASINH, ENCODER, inpainting(skips=False))),
        Arm(name="asinh", pretext=STRUCTURE, changes=merged(ASINH, ADAMW)),
        Arm(name="asinh, encoder", pretext=STRUCTURE, changes=merged(ASINH, ADAMW, ENCODER)),
        Arm(name="volume unit", changes=VOLUME),
        Arm(name="volume unit, encoder", changes=merged(VOLUME, ENCODER)),
        Arm(name="volume unit, no skips", changes=merged(VOLUME, ENCODER, inpainting(skips=False))),
        Arm(name="volume unit, rate 0.03", changes=merged(VOLUME, finetuned(learning_rate=3e-2))),
        # and kept
        Arm(name="volume unit, a third as fast", changes=merged(VOLUME, slower(0.3))),
        Arm(name="volume unit, a tenth as fast", changes=merged(VOLUME, slower(0.1))),
        Arm(name="volume unit, a thirtieth as fast", changes=merged(VOLUME, slower(0.03))),
        Arm(
            name="volume unit, rate 0.03, a tenth as fast",
            changes=merged(VOLUME, slower(0.1), finetuned(learning_rate=3e-2)),
        ),
        Arm(
            name="volume unit, rate 0.03, a thirtieth as fast",
            changes=merged(VOLUME, slower(0.03), finetuned(learning_rate=3e-2)),
        ),
        # confirmed
        Arm(name="new default", changes=merged(VOLUME, slower(0.1))),
        Arm(name="XunDJ, as slow", changes=slower(0.1)),
    )
}

BASELINE = "random, rate 0.03"
"""Random weights at the learning rate that did best in screening: what the others are compared with."""


def arm_named(name: str) -> Arm:
    """The arm of that name; raises `KeyError` that lists the known ones."""
    if name not in ARMS:
        raise KeyError(f"no arm is called {name!r}; there are {', '.join(ARMS)}")
    return ARMS[name]
