"""Losses for fine-tuning, by name: each is a sum of terms over the same softmax, computed in float32.

- dice: nnU-Net's, of every foreground class.
- cross_entropy: nnU-Net's, the mean over voxels.
- focal: Lin et al. 2017 (arXiv 1708.02002, equation 4), cross entropy with less weight where the network is certain.
- boundary: Kervadec et al. 2021 (arXiv 1812.07032), distance of wrong foreground from the boundary of the truth.
- cldice: Shit et al. 2021 (arXiv 2003.07311, algorithms 1 and 2), overlap of soft skeletons with the other mask.

Voxels with the ignore label are left out of every sum, and are no boundary. No loss waits for the device.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial, reduce

import torch
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
from nnunetv2.training.loss.robust_ce_loss import RobustCrossEntropyLoss
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

TERMS: dict[str, dict[str, float]] = {
    "dice": {"dice": 1.0},
    "dice_ce": {"dice": 1.0, "cross_entropy": 1.0},
    "dice_focal": {"dice": 1.0, "focal": 1.0},
    # the first weight of Kervadec et al., small because distances are large numbers
    "dice_focal_boundary": {"dice": 1.0, "focal": 1.0, "boundary": 0.01},
    # Dice and clDice have the same weight, as with alpha = 0.5, the largest that Shit et al. allow
    "dice_ce_cldice": {"dice": 1.0, "cross_entropy": 1.0, "cldice": 1.0},
}
"""The terms of each loss and their weights."""

_SMOOTH = 1e-5
"""Smoothing of the Dice, as in nnU-Net."""
_GAMMA = 2.0
"""Focusing parameter of the focal loss, the best value of Lin et al."""
_FARTHEST = 16.0
"""Largest distance to a boundary, in units of a voxel's shortest edge; larger ones are cut to it, which keeps the search short."""
_SHIFTS = 4
"""Number of shifts along an axis that are compared at once; each takes the memory of a map."""
_SKELETON_STEPS = 5
"""Erosions of a soft skeleton, at least the radius of the thickest vessel in voxels."""


@dataclass(frozen=True)
class Output:
    """One output of the network and its truth."""

    logits: Tensor
    """(batch, class, *space), float32; class 0 is background."""
    probabilities: Tensor
    """Their softmax."""
    labels: Tensor
    """(batch, 1, *space), int64; 0 where the truth is unknown."""
    known: Tensor | None
    """True where the truth is known, (batch, 1, *space), bool; None: everywhere."""

    @property
    def foreground(self) -> Tensor:
        """Truth of every class but the background, (batch, class - 1, *space), bool."""
        classes = torch.arange(1, self.logits.shape[1], device=self.labels.device)
        return self.labels == classes.view(-1, *[1] * (self.labels.ndim - 2))

    def mean(self, values: Tensor) -> Tensor:
        """Mean of (batch, *space) over all known voxels; 0 if none is known."""
        if self.known is None:
            return values.mean()
        known = self.known[:, 0]
        return torch.where(known, values, 0.0).sum() / known.sum().clamp_min(1)


Term = Callable[[Output], Tensor]


class SumOfTerms(nn.Module):
    """A loss of logits (batch, class, *space) and labels (batch, 1, *space).

    Args:
        terms: pairs of a weight and a term.
        ignore_label: label of voxels whose truth is unknown.
    """

    def __init__(self, terms: Sequence[tuple[float, Term]], ignore_label: int | None) -> None:
        super().__init__()
        self.terms, self.ignore_label = terms, ignore_label

    def forward(self, net_output: Tensor, target: Tensor) -> Tensor:
        """The weighted sum, a scalar."""
        logits = net_output.float()
        known = None if self.ignore_label is None else target != self.ignore_label
        labels = (target if known is None else torch.where(known, target, 0)).long()
        output = Output(logits, logits.softmax(1), labels, known)
        return torch.stack([weight * term(output) for weight, term in self.terms]).sum()


def build_loss(
    name: str,
    *,
    batch_dice: bool,
    ignore_label: int | None,
    ddp: bool,
    spacing: Sequence[float],
    patch_size: Sequence[int],
) -> nn.Module:
    """The loss with this name, for one output of the network; nnU-Net's `DeepSupervisionWrapper` applies it to all.

    Args:
        name: a key of `TERMS`.
        batch_dice: True: one Dice of the batch, not the mean over its samples.
        ignore_label: label of voxels whose truth is unknown, if there is one.
        ddp: True: the batch of `batch_dice` is the batch of all processes.
        spacing: voxel size of the finest output, (z, y, x) or (y, x), in any unit.
        patch_size: voxels of the finest output; coarser outputs cover the same patch.
    """
    extent = [edge * size for edge, size in zip(spacing, patch_size, strict=True)]
    terms: dict[str, Term] = {
        "dice": partial(dice, MemoryEfficientSoftDiceLoss(batch_dice=batch_dice, do_bg=False, smooth=_SMOOTH, ddp=ddp)),
        "cross_entropy": lambda output: output.mean(cross_entropy(output)),
        "focal": focal,
        "boundary": partial(boundary, extent=extent),
        "cldice": partial(cldice, finest=patch_size),
    }
    return SumOfTerms([(weight, terms[term]) for term, weight in TERMS[name].items()], ignore_label)


def dice(nnunets: MemoryEfficientSoftDiceLoss, output: Output) -> Tensor:
    """Minus nnU-Net's soft Dice, the mean over foreground classes."""
    value: Tensor = nnunets(output.probabilities, output.labels, loss_mask=output.known)
    return value


def cross_entropy(output: Output) -> Tensor:
    """Cross entropy of every voxel, (batch, *space)."""
    # not with nnU-Net's ignore_index: its mean over no voxel is not a number, and asking whether there is one waits for the device
    values: Tensor = RobustCrossEntropyLoss(reduction="none")(output.logits, output.labels)
    return values


def focal(output: Output) -> Tensor:
    """Focal loss (Lin et al. 2017, equation 4): the mean over voxels of (1 - p)^gamma × cross entropy, p the true class's probability."""
    entropy = cross_entropy(output)
    return output.mean((1 - (-entropy).exp()) ** _GAMMA * entropy)


def boundary(output: Output, extent: Sequence[float]) -> Tensor:
    """Boundary loss (Kervadec et al. 2021): the mean over voxels, and foreground classes, of softmax times signed distance.

    Args:
        output: output of the network.
        extent: length of the patch along each axis of space; with the output's shape it gives the edges of a voxel.
    """
    edges = [length / size for length, size in zip(extent, output.labels.shape[2:], strict=True)]
    with torch.no_grad():
        inside = output.foreground
        outside = ~inside if output.known is None else ~inside & output.known
        distance = signed_distance(inside, outside, [edge / min(edges) for edge in edges], _FARTHEST)
    return output.mean((output.probabilities[:, 1:] * distance).mean(1))


def signed_distance(inside: Tensor, outside: Tensor, edges: Sequence[float], farthest: float) -> Tensor:
    """Signed distance of every voxel to the boundary of each mask, same shape, float32; negative inside, 0 where unknown.

    The boundary is the outermost voxels of the mask, as in the code of Kervadec et al.: inside, the distance to the boundary is one less than
    the distance to the nearest voxel outside. A mask that is empty or fills its sample has no boundary: its distances are 0, as in their code,
    and it contributes nothing.

    Args:
        inside: the masks, (batch, class, *space), bool.
        outside: voxels that are known not to be in the masks, same shape.
        edges: edges of a voxel along each axis of space; the shortest is 1.
        farthest: largest distance.
    """
    to_inside, to_outside = distance_to(torch.cat([inside, outside], dim=1), edges, farthest).chunk(2, dim=1)
    signed = torch.where(inside, 1 - to_outside, torch.where(outside, to_inside, 0.0))
    space = tuple(range(2, inside.ndim))
    return signed * (inside.any(space, keepdim=True) & outside.any(space, keepdim=True))


def distance_to(voxels: Tensor, edges: Sequence[float], farthest: float) -> Tensor:
    """Euclidean distance of every voxel to the nearest voxel that is True, same shape, float32; at most `farthest`.

    Squared distances add up over the axes, so that the axes can be searched one after another (Felzenszwalb and Huttenlocher 2012). Along one
    axis, the nearest voxel is a minimum over shifts of at most `farthest`.

    Args:
        voxels: (batch, class, *space), bool.
        edges: edges of a voxel along each axis of space.
        farthest: largest distance, also where no voxel is True.
    """
    squared = torch.where(voxels, 0.0, farthest**2)
    for axis, edge in enumerate(edges, start=2):
        squared = _nearest_along(squared, axis, edge, farthest)
    return squared.sqrt()


def _nearest_along(squared: Tensor, axis: int, edge: float, farthest: float) -> Tensor:
    """Squared distances after a search along one axis; several shifts are compared at once, so that few operations start on the device."""
    lines = squared.movedim(axis, -1)
    reach = min(int(farthest / edge), lines.shape[-1] - 1)
    padded = functional.pad(lines, (reach, reach), value=farthest**2)
    added = (torch.arange(-reach, reach + 1, device=squared.device) * edge) ** 2
    windows = padded.unfold(-1, 2 * reach + 1, 1)  # (…, voxel, shift), a view
    nearest = lines
    for first in range(0, 2 * reach + 1, _SHIFTS):
        shifts = slice(first, first + _SHIFTS)
        nearest = torch.minimum(nearest, (windows[..., shifts] + added[shifts]).amin(-1))
    return nearest.movedim(-1, axis)


def cldice(output: Output, finest: Sequence[int]) -> Tensor:
    """1 - soft clDice (Shit et al. 2021, algorithm 2), the mean over samples and foreground classes; 0 for an output coarser than the patch.

    1 is added to numerator and denominator, as in their code, so that a sample without foreground is no division by 0. Coarser outputs are
    left to the other terms, because thin vessels have no skeleton on a coarser grid.
    """
    if tuple(output.logits.shape[2:]) != tuple(finest):
        return output.logits.new_zeros(())
    predicted, truth = output.probabilities[:, 1:], output.foreground.float()
    if output.known is not None:
        predicted = predicted * output.known
    with torch.no_grad():
        skeleton = soft_skeleton(truth, _SKELETON_STEPS)
    precision = _share(soft_skeleton(predicted, _SKELETON_STEPS), truth)
    sensitivity = _share(skeleton, predicted)
    return (1 - 2 * precision * sensitivity / (precision + sensitivity)).mean()


def _share(skeleton: Tensor, mask: Tensor) -> Tensor:
    """Share of each skeleton that lies in its mask, (batch, class)."""
    space = tuple(range(2, mask.ndim))
    return ((skeleton * mask).sum(space) + 1) / (skeleton.sum(space) + 1)


def soft_skeleton(masks: Tensor, steps: int) -> Tensor:
    """Soft skeletons (Shit et al. 2021, algorithm 1) of masks (batch, class, *space) from 0 to 1, same shape.

    The skeleton is the union, over `steps` erosions, of the voxels that an opening removes. The backward pass computes each erosion again,
    because its maxima and their places would take many times the memory of the masks.
    """
    skeleton = torch.zeros_like(masks)
    for _ in range(steps + 1):
        if masks.requires_grad:
            masks, skeleton = checkpoint(_peeled, masks, skeleton, use_reentrant=False)
        else:
            masks, skeleton = _peeled(masks, skeleton)
    return skeleton


def _peeled(masks: Tensor, skeleton: Tensor) -> tuple[Tensor, Tensor]:
    """Masks without their outermost voxels, and the skeleton with the voxels that an opening removes from the masks."""
    eroded = _eroded(masks)
    ridge = functional.relu(masks - _greatest(eroded, [3] * (masks.ndim - 2)))
    return eroded, skeleton + ridge * (1 - skeleton)


def _eroded(masks: Tensor) -> Tensor:
    """Minimum of each voxel and its neighbours along the axes."""
    axes = range(masks.ndim - 2)
    return reduce(torch.minimum, [-_greatest(-masks, [3 if axis == along else 1 for axis in axes]) for along in axes])


def _greatest(masks: Tensor, window: list[int]) -> Tensor:
    """Maximum in a window around each voxel, with an odd edge along each axis of space."""
    pool = functional.max_pool3d if masks.ndim == 5 else functional.max_pool2d
    pooled: Tensor = pool(masks, window, stride=1, padding=[size // 2 for size in window])
    return pooled
