"""Several pretexts at once: inpainting, rotation, contrast, and the biological structure that a case shows."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from nnunet_selma.errors import SelmaError
from nnunet_selma.networks.parts import encoder_of
from nnunet_selma.pretraining.base import Task, coarsest, map_shapes, pooled
from nnunet_selma.pretraining.heads import gather_features, projector
from nnunet_selma.pretraining.inpainting import MaskedInpainting
from nnunet_selma.pretraining.simclr import nt_xent
from nnunet_selma.pretraining.views import change_contrast, draw
from nnunet_selma.structures import PREFIXES


class MultiTask(MaskedInpainting):
    """Tang et al. 2022 (arXiv 2111.14791) with the classification of structures that team bioAI of SELMA3D 2024 added (paper, 4.2.2).

    Two views of each patch, turned by multiples of 90°, changed in contrast and masked, go through the network once.
    """

    seen: Tensor
    """(structure,): True for the structures of the table that the head was trained on (with several processes, in the first)."""
    allows_deep_supervision = False
    mirrors = False  # a mirrored patch does not say how it was turned

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        self.weights, self.views = task.settings.multitask, task.settings.views
        self.plane = rotation_plane(task.patch, task.spacing)
        features = 2 * map_shapes(task, encoder_of(task.network))[-1][0]
        self.rotation = nn.Linear(features, 4)
        self.contrast = projector(features, 512, 128)
        self.structure = nn.Linear(features, len(PREFIXES))
        self.register_buffer("seen", torch.zeros(len(PREFIXES), dtype=torch.bool))
        # processes would wait for gradients of a head without a loss
        for name in ("rotation", "contrast", "structure"):
            getattr(self, name).requires_grad_(getattr(self.weights, name) > 0)
        self.trains_decoder = self.weights.inpainting > 0
        self.tokens.requires_grad_(self.trains_decoder)

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *others: Any) -> None:
        """Load as PyTorch does; states of earlier versions lack `seen` and leave it as it is."""
        state_dict.setdefault(f"{prefix}seen", self.seen)
        super()._load_from_state_dict(state_dict, prefix, *others)

    def draw_turns(self, count: int) -> list[int]:
        """Quarter turns of each patch; only half turns where no two axes are alike."""
        return [int(turn) for turn in self.rng.choice((0, 1, 2, 3) if self.plane[1] else (0, 2), size=count)]

    def forward(self, network: nn.Module, patches: Tensor, structures: Tensor) -> dict[str, Tensor]:
        """The terms with a weight above 0, weighted."""
        if self.training and self.weights.structure > 0:
            self.seen |= (structures[:, None] == torch.arange(len(self.seen), device=structures.device)).any(0)
        turns = self.draw_turns(2 * len(patches))
        turned = turn(torch.cat([patches, patches]), turns, self.plane[0])
        gamma, contrast = (draw(len(turned), r, self.generator) for r in (self.views.gamma, self.views.contrast))
        visible, target, mask = self.draw_task(change_contrast(turned, gamma, contrast))
        maps = self.encode(network, visible, mask)
        features = pooled(maps[-1])
        first, second = (gather_features(half) for half in self.contrast(features).chunk(2))
        turns_drawn = torch.tensor(turns).to(features.device, non_blocking=True)
        terms: dict[str, Callable[[], Tensor]] = {
            "inpainting": lambda: self.error(self.decode(network, maps), target, mask),
            "rotation": lambda: functional.cross_entropy(self.rotation(features).float(), turns_drawn),
            "contrast": lambda: nt_xent(first, second, self.weights.temperature),
            "structure": lambda: known_cross_entropy(self.structure(features), structures.repeat(2)),
        }
        return {name: weight * term() for name, term in terms.items() if (weight := getattr(self.weights, name)) > 0}

    def classify(self, network: nn.Module, patches: Tensor) -> Tensor:
        """Probabilities of the structures of the structure table, (batch, structure)."""
        return classify(network, self.structure, patches)


@torch.no_grad()
def classify(network: nn.Module, head: nn.Module, patches: Tensor) -> Tensor:
    """Class probabilities (batch, class) of patches (batch, channel, *patch), by a linear head on the encoder's deepest features."""
    scores: Tensor = head(pooled(coarsest(encoder_of(network)(patches))))
    return scores.softmax(1)


def structure_classifier(state: Mapping[str, Tensor]) -> tuple[nn.Linear, list[str]]:
    """The head for `classify` from the state of a `MultiTask`, and the prefixes of its classes: the structures it was trained on.

    Raises:
        SelmaError: no such head, one for another table of structures, or one that was trained on fewer than two.
    """
    if "structure.weight" not in state:
        raise SelmaError(
            "holds no classifier of structures; pretrain with -tr SelmaSSLTrainer_MultiTask, or train one with "
            "nnunet-selma train-router"
        )
    weight, bias = state["structure.weight"], state["structure.bias"]
    if len(weight) != len(PREFIXES):
        raise SelmaError(
            f"tells {len(weight)} structures apart, and this version knows {len(PREFIXES)}; pretrain again"
        )
    seen = state.get("seen", torch.ones(len(PREFIXES), dtype=torch.bool))  # earlier versions did not note it
    classes = [prefix for prefix, known in zip(PREFIXES, seen.tolist(), strict=True) if known]
    if len(classes) < 2:
        raise SelmaError(
            f"was trained on {' and '.join(classes) or 'no named structure'} alone, so it can tell nothing apart; pretrain on cases named "
            "after two structures or more, or train a router with nnunet-selma train-router"
        )
    head = nn.Linear(weight.shape[1], len(classes))
    head.load_state_dict({"weight": weight[seen], "bias": bias[seen]})
    return head.requires_grad_(False), classes


def rotation_plane(patch: Sequence[int], spacing: Sequence[float]) -> tuple[tuple[int, int], bool]:
    """The axes in which patches are turned, and True if by quarters.

    These are the last two axes of equal length and voxel size. Where no two are equal, patches are turned in the last two by halves.
    """
    axes = range(len(patch))
    alike = [
        (a, b) for a in axes for b in axes if a < b and patch[a] == patch[b] and abs(spacing[a] / spacing[b] - 1) < 0.01
    ]
    return (max(alike), True) if alike else ((len(patch) - 2, len(patch) - 1), False)


def turn(patches: Tensor, turns: Sequence[int], plane: tuple[int, int]) -> Tensor:
    """Patches (batch, channel, *patch), each turned by its number of quarters in the plane of two axes of the patch."""
    dims = (plane[0] + 1, plane[1] + 1)  # of one patch, whose first axis is the channel
    return torch.stack([torch.rot90(patch, k, dims) for patch, k in zip(patches, turns, strict=True)])


def known_cross_entropy(scores: Tensor, classes: Tensor) -> Tensor:
    """Mean cross entropy of scores (batch, class) over the patches whose class is known (0 or more); 0 if none is."""
    summed = functional.cross_entropy(scores.float(), classes, ignore_index=-1, reduction="sum")
    return summed / (classes >= 0).sum().clamp(min=1)
