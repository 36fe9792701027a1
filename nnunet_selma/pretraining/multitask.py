"""Several pretexts at once: inpainting, rotation, contrast, and the biological structure that a case shows."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from nnunet_selma.pretraining.base import Task, feature_shape, pooled
from nnunet_selma.pretraining.heads import gather_features, projector
from nnunet_selma.pretraining.inpainting import MaskedInpainting, finest
from nnunet_selma.pretraining.simclr import nt_xent
from nnunet_selma.pretraining.views import change_contrast, draw
from nnunet_selma.structures import STRUCTURES


class MultiTask(MaskedInpainting):
    """Tang et al. 2022 (arXiv 2111.14791) with the classification of structures that team bioAI of SELMA3D 2024 added (paper, 4.2.2).

    Two views of each patch, turned by multiples of 90°, changed in contrast and masked, go through the network once.
    """

    seen: Tensor
    """(structure,): true for those of the structure table that the head was trained on; with several processes, by the first one."""
    can_ask_every_step = False
    mirrors = False  # a mirrored patch does not say how it was turned

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        self.weights, self.views = task.settings.multitask, task.settings.views
        self.plane = rotation_plane(task.patch, task.spacing)
        features = 2 * feature_shape(task, "encoder")[0]
        self.rotation = nn.Linear(features, 4)
        self.contrast = projector(features, 512, 128)
        self.structure = nn.Linear(features, len(STRUCTURES))
        # a router that is made of this head knows these structures alone
        self.register_buffer("seen", torch.zeros(len(STRUCTURES), dtype=torch.bool))
        for name in (
            "rotation",
            "contrast",
            "structure",
        ):  # a head without a loss would be waited for by the other processes
            getattr(self, name).requires_grad_(getattr(self.weights, name) > 0)
        self.trains_decoder = self.weights.inpainting > 0
        self.tokens.requires_grad_(self.trains_decoder)

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *others: Any) -> None:
        """Load as PyTorch does; states of earlier versions did not note the structures, and leave them as they are."""
        state_dict.setdefault(f"{prefix}seen", self.seen)
        super()._load_from_state_dict(state_dict, prefix, *others)

    def draw_turns(self, count: int) -> list[int]:
        """Quarter turns of each patch; half turns alone where no two axes are alike."""
        return [int(turn) for turn in self.rng.choice((0, 1, 2, 3) if self.plane[1] else (0, 2), size=count)]

    def forward(self, network: nn.Module, patches: Tensor, structures: Tensor) -> dict[str, Tensor]:
        """The terms with a weight above 0, weighted."""
        if self.training and self.weights.structure > 0:
            self.seen |= (structures[:, None] == torch.arange(len(self.seen), device=structures.device)).any(0)
        turns = self.draw_turns(2 * len(patches))
        turned = turn(torch.cat([patches, patches]), turns, self.plane[0])
        gamma, contrast = (draw(len(turned), r, self.generator) for r in (self.views.gamma, self.views.contrast))
        visible, target, mask = self.draw_task(change_contrast(turned, gamma, contrast))
        encoder, decoder = network.get_submodule("encoder"), network.get_submodule("decoder")
        maps = self.maps(encoder, visible, mask)
        features = pooled(maps[-1])
        first, second = (gather_features(half) for half in self.contrast(features).chunk(2))
        turns_drawn = torch.tensor(turns).to(features.device, non_blocking=True)
        terms: dict[str, Callable[[], Tensor]] = {
            "inpainting": lambda: self.error(finest(decoder(maps)), target, mask),
            "rotation": lambda: functional.cross_entropy(self.rotation(features).float(), turns_drawn),
            "contrast": lambda: nt_xent(first, second, self.weights.temperature),
            "structure": lambda: known_cross_entropy(self.structure(features), structures.repeat(2)),
        }
        return {name: weight * term() for name, term in terms.items() if (weight := getattr(self.weights, name)) > 0}

    @torch.no_grad()
    def classify(self, network: nn.Module, patches: Tensor) -> Tensor:
        """Probabilities of the structures of the structure table, (batch, structure)."""
        features = pooled(network.get_submodule("encoder")(patches)[-1])
        probabilities: Tensor = self.structure(features).softmax(1)
        return probabilities


def rotation_plane(patch: Sequence[int], spacing: Sequence[float]) -> tuple[tuple[int, int], bool]:
    """The axes in which to turn patches, and whether by quarters: they are alike in length and voxel size; the last two where none are."""
    axes = range(len(patch))
    alike = [
        (a, b) for a in axes for b in axes if a < b and patch[a] == patch[b] and abs(spacing[a] / spacing[b] - 1) < 0.01
    ]
    return (max(alike), True) if alike else ((len(patch) - 2, len(patch) - 1), False)


def turn(patches: Tensor, turns: Sequence[int], plane: tuple[int, int]) -> Tensor:
    """Patches (batch, channel, *patch), each turned by so many quarters in the plane of two axes of the patch."""
    dims = (plane[0] + 1, plane[1] + 1)  # of one patch, whose first axis is the channel
    return torch.stack([torch.rot90(patch, k, dims) for patch, k in zip(patches, turns, strict=True)])


def known_cross_entropy(scores: Tensor, classes: Tensor) -> Tensor:
    """Mean cross entropy of scores (batch, class) over the patches whose class is known (from 0); 0 where none is."""
    summed = functional.cross_entropy(scores.float(), classes, ignore_index=-1, reduction="sum")
    return summed / (classes >= 0).sum().clamp(min=1)
