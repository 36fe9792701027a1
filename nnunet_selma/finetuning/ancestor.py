"""Origin of the weights that a fine-tuning starts from, as each of its checkpoints records it."""

from collections.abc import Mapping
from typing import Any

from nnunet_selma.finetuning.pretrained import ChosenPretraining, summary_beside
from nnunet_selma.nnunet.checkpoints import Checkpoint

Ancestor = dict[str, Any]
"""Strings, numbers and None only, so that any reader of checkpoints takes it. `weights` is "pretrained", "random", "given" or "unknown"."""

RANDOM: Ancestor = {"weights": "random"}
GIVEN: Ancestor = {"weights": "given"}
"""Weights of nnU-Net's -pretrained_weights, which tells the trainer no path."""
UNKNOWN: Ancestor = {"weights": "unknown"}
"""A training that was begun before its checkpoints recorded an ancestor."""
_NAMED = ("trainer", "pretext", "dataset", "plans", "configuration", "epochs", "steps")


def ancestor_of(chosen: ChosenPretraining, checkpoint: Checkpoint) -> Ancestor:
    """The record of a pretrained checkpoint: path, hash, and what its summary, or else the checkpoint itself, says; None where it is not known.

    The ancestor of a checkpoint that was fine-tuned itself is its entry `ancestor`.
    """
    facts = {**checkpoint.origin, **summary_beside(chosen.path)}
    return {
        "weights": "pretrained",
        "path": str(chosen.path),
        "sha256": chosen.sha256,
        **{key: facts.get(key) for key in _NAMED},
        "ancestor": checkpoint.origin.get("ancestor"),
    }


def in_words(ancestor: Mapping[str, Any]) -> str:
    """The record in words, for the log."""
    match ancestor["weights"]:
        case "pretrained":
            length = "" if ancestor["epochs"] is None else f", {ancestor['epochs']} epoch(s)"
            by = ancestor["pretext"] or ancestor["trainer"] or "a training that it does not name"
            return (
                f"Ancestor: {ancestor['path']}, by {by} on {ancestor['dataset'] or 'data that it does not name'}{length}, "
                f"SHA-256 {ancestor['sha256']}"
            )
        case "random":
            return "Ancestor: none, the training started from random weights."
        case "given":
            return "Ancestor: the file given as -pretrained_weights, whose path nnU-Net does not pass on."
        case _:
            return "Ancestor: not known; the checkpoint that this training goes on from does not record it."
