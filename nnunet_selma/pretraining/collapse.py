"""Detection of pretrainings that do not learn: the spread of features, and warnings for the log."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional

LEAST_DEVIATION = 0.02
"""Value of `feature_deviation` below which features count as collapsed."""
LEAST_RANK = 1.5
"""Value of `effective_rank` below which features count as collapsed."""


def effective_rank(features: Tensor) -> float:
    """Number of directions that features (sample, feature) spread over: exp(entropy of their singular values) (Roy and Vetterli 2007).

    Features are centred. 1.0 if they do not differ at all, NaN if they are not finite.
    """
    if not torch.isfinite(features).all():
        return math.nan
    values = torch.linalg.svdvals(features.double() - features.double().mean(0))
    total = float(values.sum())
    if total < 1e-12:
        return 1.0
    shares = values / total
    return float(torch.exp(-(shares * shares.clamp(min=1e-12).log()).sum()))


def feature_deviation(features: Tensor) -> float:
    """Standard deviation of features (sample, feature) scaled to length 1, times √features (Chen and He 2021, section 4.1).

    1 for random directions, 0 if all are the same.
    """
    directions = functional.normalize(features.double(), dim=1)
    deviation = float(directions.std(0, correction=0).mean())
    return deviation * math.sqrt(features.shape[1])


def alarms(history: Mapping[str, Sequence[float]]) -> list[str]:
    """Sentences about signs, in the latest values of a run, that it does not learn; empty if there are none."""
    lost = [key for key, values in history.items() if values and not math.isfinite(values[-1])]
    if lost:
        return [f"the training is lost: {', '.join(lost)} not finite. Train again with a lower learning rate"]
    sentences = []
    deviation, rank = (
        history[key][-1] if history.get(key) else None for key in ("feature_deviation", "effective_rank")
    )
    if deviation is not None and (deviation < LEAST_DEVIATION or (rank is not None and rank < LEAST_RANK)):
        directions = "" if rank is None else f", effective rank {rank:.3g}"
        sentences.append(
            f"the features have collapsed: they are nearly the same for all patches (deviation {deviation:.3g}, 1 for random directions"
            f"{directions}). Use a larger batch, stronger views or a lower learning rate"
        )
    error, trivial = (
        history[key][-1] if history.get(key) else None for key in ("reconstruction_error", "trivial_error")
    )
    if error is not None and trivial is not None and error >= trivial:
        sentences.append(
            f"the reconstruction is no better than the mean of visible voxels nearby (error {error:.3g}, of that mean {trivial:.3g}). "
            "Train longer, or mask less"
        )
    return sentences
