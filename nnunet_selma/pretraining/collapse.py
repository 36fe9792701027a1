"""Signs of whether a pretraining learns: the spread of its features, and alarms for a user."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional

LEAST_DEVIATION = 0.02
LEAST_RANK = 1.5


def effective_rank(features: Tensor) -> float:
    """How many directions features (sample, feature) spread over: e to the entropy of their singular values (Roy and Vetterli 2007).

    Features are centred; 1.0 where they do not differ at all, NaN where they are not finite.
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
    """Standard deviation of features (sample, feature) brought to length 1, times √features (Chen and He 2021, section 4.1).

    1 where directions are random, 0 where all are the same.
    """
    directions = functional.normalize(features.double(), dim=1)
    deviation = float(directions.std(0, correction=0).mean())
    return deviation * math.sqrt(features.shape[1])


def alarms(history: Mapping[str, Sequence[float]]) -> list[str]:
    """Sentences about a run whose latest values say that it does not learn; none if it does."""
    lost = [key for key, values in history.items() if values and not math.isfinite(values[-1])]
    if lost:
        return [f"the training is lost: {', '.join(lost)} not finite. Train again with a lower learning rate"]
    said = []
    deviation, rank = (
        history[key][-1] if history.get(key) else None for key in ("feature_deviation", "effective_rank")
    )
    if deviation is not None and (deviation < LEAST_DEVIATION or (rank is not None and rank < LEAST_RANK)):
        directions = "" if rank is None else f", effective rank {rank:.3g}"
        said.append(
            f"the features have collapsed: all patches give nearly the same (deviation {deviation:.3g} where random directions give 1"
            f"{directions}). Use a larger batch, stronger views or a lower learning rate"
        )
    error, trivial = (
        history[key][-1] if history.get(key) else None for key in ("reconstruction_error", "trivial_error")
    )
    if error is not None and trivial is not None and error >= trivial:
        said.append(
            f"the reconstruction is no better than the mean of what is visible nearby (error {error:.3g}, that of the local mean {trivial:.3g}). "
            "Train longer, or mask less"
        )
    return said
