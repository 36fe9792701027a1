"""The arms of the study: a pretext, what is carried over from it, and how that is fine-tuned.

An arm is a name and the settings in which it differs from `BASE`, which is written out so that no result depends on a default that is
changed later. A new arm is one more entry of `ARMS`.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

from nnunet_selma.recipes.recipes import SettingsChange

BASE: dict[str, dict[str, Any]] = {
    "pretraining": {"learning_rate": 1e-2, "optimizer": "sgd"},
    "inpainting": {
        "mask_ratio": 0.6,
        "first_ratio": None,
        "block_edges": [4, 8, 16],
        "aligned": False,
        "skips": True,
        "sparse": False,
        "deep_supervision": False,
        "counted": "masked",
        "fill": "zeros",
        "target": "intensity",
        "standardise": True,
    },
    "finetuning": {
        "learning_rate": 1e-2,
        "optimizer": "sgd",
        "warmup_steps": 51,
        "carry": "all",
        "encoder_rate": 1.0,
        "decoder_rate": 1.0,
        "fit_head": False,
        "loss": "dice_ce",
    },
}
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
    steps: int | None = None
    """Steps of pretraining; None takes the stage's."""

    @property
    def settings(self) -> dict[str, dict[str, Any]]:
        """All settings of the arm."""
        return merged(BASE, self.changes)

    def pretraining_name(self, seed: int) -> str:
        """A name that arms share whose pretraining is the same."""
        decisive = {section: values for section, values in self.settings.items() if section != "finetuning"}
        made_of = [self.pretext, decisive, *([] if self.steps is None else [self.steps])]
        digest = sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:8]
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
TEAM = {"pretraining": {"optimizer": "adamw", "learning_rate": 3e-4}}
LONG = 4096
"""Steps of a long pretraining."""


def long(name: str, changes: Mapping[str, Mapping[str, Any]], pretext: str = "SelmaSSLTrainer") -> list[Arm]:
    """A pretext that is trained for `LONG` steps, carried over in two ways: a tenth as fast as a high and as a low rate of the rest."""
    return [
        Arm(
            name=f"{name}, rate {rate:g}, a tenth as fast",
            pretext=pretext,
            steps=LONG,
            changes=merged(changes, slower(0.1), finetuned(learning_rate=rate)),
        )
        for rate in (3e-2, 1e-2)
    ]


def ways(name: str, changes: Mapping[str, Mapping[str, Any]], steps: int) -> list[Arm]:
    """One pretraining, carried over in many ways."""
    high = finetuned(learning_rate=3e-2)
    kinds: dict[str, tuple[Mapping[str, Mapping[str, Any]], str]] = {
        "as fast": ({}, ""),
        "rate 0.03, a third as fast": (merged(high, slower(0.3)), ""),
        "rate 0.03, a thirtieth as fast": (merged(high, slower(0.03)), ""),
        "rate 0.03, a tenth as fast, no warm-up": (merged(high, slower(0.1), finetuned(warmup_steps=0)), ""),
        "encoder, rate 0.03": (merged(high, ENCODER), ""),
        "encoder, rate 0.03, a tenth as fast": (merged(high, ENCODER, finetuned(encoder_rate=0.1)), ""),
        "all but last step, rate 0.03, a tenth as fast": (
            merged(high, slower(0.1), finetuned(carry="all_but_last_step")),
            "",
        ),
        "unfreezing, rate 0.03, a tenth as fast": (merged(high, slower(0.1)), "_Unfreezing"),
        "LoRA, rate 0.03": (high, "_LoRA"),
    }
    return [
        Arm(
            name=f"{name}, {kind}",
            steps=steps,
            changes=merged(changes, more),
            finetuning=f"SelmaFinetuneTrainer{trainer}",
        )
        for kind, (more, trainer) in kinds.items()
    ]


def probed(name: str, changes: Mapping[str, Mapping[str, Any]]) -> list[Arm]:
    """A long pretraining whose features the head is fitted to before the first step, carried over at several rates."""
    rates = {
        "as fast": (1e-2, 1.0),
        "a third as fast": (1e-2, 0.3),
        "a tenth as fast": (1e-2, 0.1),
        "a thirtieth as fast": (1e-2, 0.03),
    }
    rates["rate 0.03, a thirtieth as fast"] = (3e-2, 0.03)
    return [
        Arm(
            name=f"{name}, {kind}",
            steps=LONG,
            changes=merged(changes, slower(factor), finetuned(learning_rate=rate, fit_head=True)),
        )
        for kind, (rate, factor) in rates.items()
    ]


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
        # longer pretraining; every pretext carried over in the same two ways
        Arm(name="random, no warm-up", pretext=None, changes=finetuned(warmup_steps=0)),
        Arm(name="random, rate 0.03, no warm-up", pretext=None, changes=finetuned(learning_rate=3e-2, warmup_steps=0)),
        Arm(name="random, rate 0.1", pretext=None, changes=finetuned(learning_rate=1e-1)),
        *long("long", VOLUME),
        *ways("long", VOLUME, LONG),
        *long("long, 60 %", merged(VOLUME, inpainting(mask_ratio=0.6))),
        *long("long, old pretext", ADAMW),
        *long("long, no skips", merged(VOLUME, inpainting(skips=False))),
        *long("long, sparse", merged(VOLUME, inpainting(sparse=True, mask_ratio=0.6))),
        *long("long, deep supervision", merged(VOLUME, inpainting(deep_supervision=True))),
        *long("long, aligned 75 %", merged(VOLUME, inpainting(aligned=True, mask_ratio=0.75))),
        *long("long, rising", merged(VOLUME, inpainting(first_ratio=0.05, mask_ratio=0.6))),
        *long("long, structure-aware", VOLUME, STRUCTURE),
        *long("long, BYOL", TEAM, "SelmaSSLTrainer_BYOL"),
        *long("long, SimCLR", TEAM, "SelmaSSLTrainer_SimCLR"),
        *long("long, multi-task", merged(VOLUME, TEAM), "SelmaSSLTrainer_MultiTask"),
        # the head fitted to what was carried over, before the first step
        *probed("long, head fitted", VOLUME),
        # what marks too much: the loss
        *(
            Arm(
                name=f"long, head fitted, a thirtieth as fast, {loss}",
                steps=LONG,
                changes=merged(VOLUME, slower(0.03), finetuned(fit_head=True, loss=loss)),
            )
            for loss in ("dice", "dice_focal")
        ),
        # confirmed
        Arm(name="new default", steps=LONG, changes=merged(VOLUME, slower(0.03), finetuned(fit_head=True))),
        Arm(name="random head, a tenth as fast", steps=LONG, changes=merged(VOLUME, slower(0.1))),
        Arm(
            name="random head, a tenth as fast, no warm-up",
            steps=LONG,
            changes=merged(VOLUME, slower(0.1), finetuned(warmup_steps=0)),
        ),
        Arm(name="old default, longer", steps=LONG),
        Arm(
            name="multi-task, as slow",
            pretext="SelmaSSLTrainer_MultiTask",
            steps=LONG,
            changes=merged(VOLUME, TEAM, slower(0.1)),
        ),
    )
}

BASELINE = "random, rate 0.03, no warm-up"
"""Random weights as they did best on the confirmation cubes: what the others are compared with."""


def arm_named(name: str) -> Arm:
    """The arm of that name; raises `KeyError` that lists the known ones."""
    if name not in ARMS:
        raise KeyError(f"no arm is called {name!r}; there are {', '.join(ARMS)}")
    return ARMS[name]
