"""Names of weights in the checkpoints of others, found again in the networks here.

Others wrap a network in a module (`module.`, `model.`, `backbone.`, `student.`), keep its encoder alone, or build the same network under
other names. All of that is found by counting: of every beginning of the checkpoint's names, and of every known way to name the network's
weights, the pair is taken under which most weights of the network are found.
"""

import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from nnunet_selma.pretexts.base import pretrained_part

_TEACHER = "teacher"
"""Of a student and its moving average, which have the same names, the average is taken, as DINO evaluates it (arXiv 2104.14294)."""


Translate = Callable[[str], str]
"""From a name in a checkpoint to the name in the network."""


@dataclass(frozen=True)
class Named:
    """Weights under the names of a network."""

    weights: dict[str, Tensor]
    how: str = ""
    """How the checkpoint named them, as a report says it; empty where it did as the network does."""


def named_as_in(weights: Mapping[str, Tensor], network: nn.Module) -> Named:
    """The weights of a checkpoint under the names of a network; unchanged where none of the network's weights is found.

    Args:
        weights: as the checkpoint names them.
        network: may say in `monai_names` how MONAI names its weights: regular expressions and their replacements, in order.
    """
    names = set(network.state_dict())
    best = (0, False)
    place: tuple[str, str, Translate] = ("", "", _same)
    for title, translate in _ways(network).items():
        counts: Counter[str] = Counter()
        for key in weights:
            words = key.split(".")
            counts.update(
                ".".join([*words[:first], ""])
                for first in range(len(words))
                if translate(".".join(words[first:])) in names
            )
        for beginning, count in sorted(counts.items()):
            if (count, _TEACHER in beginning) > best:
                best, place = (count, _TEACHER in beginning), (title, beginning, translate)
    title, beginning, translate = place
    found = {
        translate(key.removeprefix(beginning)): weight for key, weight in weights.items() if key.startswith(beginning)
    }
    behind = f"behind {beginning!r}" if beginning else ""
    return Named(found, " ".join(word for word in (title, behind) if word))


def _ways(network: nn.Module) -> dict[str, Translate]:
    """Known ways to name the network's weights, with their titles."""
    part = pretrained_part(network)
    monais: Mapping[str, str] = getattr(network, "monai_names", {})
    ways = {"": _same, f"as those of its {part} alone": lambda key: _replaced(f"{part}.{key}", monais)}
    return {**ways, "as MONAI names them": lambda key: _replaced(key, monais)} if monais else ways


def _same(key: str) -> str:
    return key


def _replaced(key: str, rules: Mapping[str, str]) -> str:
    for pattern, replacement in rules.items():
        key = re.sub(pattern, replacement, key)
    return key
