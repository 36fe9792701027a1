"""Translation of the names of weights in checkpoints of other projects to the names in our networks.

Other projects wrap a network in a module (`module.`, `model.`, `backbone.`, `student.`), save its encoder alone, or build the same network
with other names. The right translation is found by counting: of all pairs of a prefix in the checkpoint and a known naming scheme, the pair
is chosen under which most weights of the network are found.
"""

import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from nnunet_selma.networks.parts import pretrained_part

_TEACHER = "teacher"
"""Prefix of a moving average, which is preferred to its student, as in DINO's evaluation (arXiv 2104.14294)."""


Translate = Callable[[str], str]
"""A function from a name in a checkpoint to the name in the network."""


@dataclass(frozen=True)
class Named:
    """Weights under the names of a network."""

    weights: dict[str, Tensor]
    how: str = ""
    """Description of the names in the checkpoint, for a report; empty if they are the network's."""


def named_as_in(weights: Mapping[str, Tensor], network: nn.Module) -> Named:
    """The weights of a checkpoint under the names of a network; unchanged if none of the network's weights is found.

    Args:
        weights: weights under the names of the checkpoint.
        network: its attribute `monai_names`, if any, translates MONAI's names: regular expressions and their replacements, in order.
    """
    names = set(network.state_dict())
    candidates: list[tuple[int, bool, str, str, Translate]] = []
    for title, translate in _schemes(network).items():
        counts: Counter[str] = Counter()
        for key in weights:
            words = key.split(".")
            counts.update(
                ".".join([*words[:first], ""])
                for first in range(len(words))
                if translate(".".join(words[first:])) in names
            )
        candidates += [(count, _TEACHER in start, title, start, translate) for start, count in sorted(counts.items())]
    if not candidates:
        return Named(dict(weights))
    best = max(candidates, key=lambda candidate: candidate[:2])  # the first of equals
    _, _, title, start, translate = best
    as_many = [f"{other[3]!r}" for other in candidates if other[:3] == best[:3] and other is not best]
    renamed = {translate(key.removeprefix(start)): weight for key, weight in weights.items() if key.startswith(start)}
    behind = f"behind {start!r}" if start else ""
    others = f"(as many lie behind {', '.join(as_many)})" if as_many else ""
    return Named(renamed, " ".join(word for word in (title, behind, others) if word))


def _schemes(network: nn.Module) -> dict[str, Translate]:
    """Known naming schemes of the network's weights, by title."""
    part = pretrained_part(network)
    monais: Mapping[str, str] = getattr(network, "monai_names", {})
    schemes = {"": _same, f"as those of its {part} alone": lambda key: _replaced(f"{part}.{key}", monais)}
    return {**schemes, "as MONAI names them": lambda key: _replaced(key, monais)} if monais else schemes


def _same(key: str) -> str:
    return key


def _replaced(key: str, rules: Mapping[str, str]) -> str:
    for pattern, replacement in rules.items():
        key = re.sub(pattern, replacement, key)
    return key
