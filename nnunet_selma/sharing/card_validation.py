"""The section of a model card on its validation: scores by the rules of SELMA3D, or else those of nnU-Net."""

from math import isnan

from nnunet_selma.errors import counted
from nnunet_selma.sharing.markdown import table
from nnunet_selma.sharing.results import ResultFacts
from nnunet_selma.sharing.validation import Validation, held_out
from nnunet_selma.sharing.validation_dice import mean_dice


def validation_lines(facts: ResultFacts, validation: Validation | None) -> list[str]:
    """Lines on how the model was validated: by the rules of SELMA3D, or without such scores by nnU-Net."""
    return _scores(validation) if validation else _nnunets_scores(facts)


def _scores(validation: Validation) -> list[str]:
    rows = [row.cells() for row in validation.rows]
    return [
        f"By the rules of SELMA3D {validation.year} (`nnunet-selma evaluate`), over {counted(len(validation.cases), 'case')}. {held_out(validation)}",
        "",
        *table(["structure", "metric", "n", "mean", "95 % interval"], rows),
        "",
        "Intervals are percentiles of 9999 bootstrap resamples of the cases. Cases of one brain are more alike than cases of two, so that they are too narrow where cases share brains.",
    ]


def _nnunets_scores(facts: ResultFacts) -> list[str]:
    if facts.kind == "pretraining":
        return [
            "A pretraining segments nothing and has no validation of a segmentation. Not known: what fine-tuning from it gains."
        ]
    rows = [
        [
            name,
            "Dice ↑",
            f"{count}{f' ({lacking} without a value)' if lacking else ''}",
            "–" if isnan(mean) else f"{mean:.3f}",
        ]
        for name, (mean, count, lacking) in mean_dice(fold.dice or {} for fold in facts.folds).items()
    ]
    if not rows:
        written = any(fold.dice is not None for fold in facts.folds)
        left = "a validation/summary.json without scores" if written else "no validation/summary.json"
        return [f"Not known: no evaluation was given, and the training left {left}."]
    validated = ", ".join(fold.fold for fold in facts.folds if fold.dice)
    return [
        f"By nnU-Net's validation of fold {validated}, over the cases that each fold left out (with fold all: over training cases).",
        "",
        *table(["class", "metric", "n", "mean"], rows),
        "",
        "Not known: intervals, and the metrics of SELMA3D; no evaluation by `nnunet-selma evaluate` was given.",
    ]
