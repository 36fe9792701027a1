"""Fit of the decision threshold: offsets of the logits with the best Dice on cases with labels.

A network that was trained shortly marks too much or too little at a probability of 0.5. A constant that is added to the logit of a class
moves its threshold, and can be stored in the bias of the last layer, so that prediction needs no change. nnU-Net's sliding window, mirroring
and ensembles average logits, which keeps the constant.

A network of labels marks the class of the largest logit; channel 0 is background and is never shifted. A network of regions marks, in each
channel, the voxels with a logit above 0.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.inference.sliding_window_prediction import compute_gaussian
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import Tensor, nn

from nnunet_selma.errors import SelmaError
from nnunet_selma.networks.parts import bare, without_ddp

MOST_VOXELS = 2_000_000
"""Largest number of voxels of a case: enough for three digits of the Dice, and half a gigabyte for sixteen cases of two classes."""
TOLERANCE = 0.002
"""Difference to the best Dice that counts as equal, so that the threshold does not move without a reason."""

_FINE = torch.arange(-160, 161, dtype=torch.float64) / 20
_COARSE = torch.arange(-32, 33, dtype=torch.float64) / 4
_ROUNDS = 3
"""Rounds over all classes; few classes move after the second."""

Region = int | tuple[int, ...]
"""A label, or the labels of a region, as in nnU-Net's dataset.json."""


@dataclass(frozen=True)
class Sample:
    """Logits and labels of voxels of a case."""

    name: str
    logits: Tensor
    """(class, voxel), any floating-point type."""
    labels: Tensor
    """(voxel,), integers; no voxel has the ignore label."""


@dataclass(frozen=True)
class Calibration:
    """Fitted offsets and what they change."""

    offsets: tuple[float, ...]
    """Numbers that are added to the logits, one for each output channel."""
    dice_before: float
    """Dice without the offsets: the mean over the cases that show a class, then over the classes; NaN if no case shows foreground."""
    dice_after: float
    """Dice with the offsets; never below the Dice without them."""
    cases: tuple[str, ...]
    """Names of the cases the offsets were fitted on."""
    regions: bool = False
    """True if every channel is a region with a sigmoid, false if the channels share a softmax."""

    @property
    def thresholds(self) -> tuple[float, ...]:
        """Probabilities above which the network without the offsets would mark the same: of each region, or of the only foreground class.

        Several classes in a softmax have no such thresholds.
        """
        if not self.regions and len(self.offsets) != 2:
            return ()
        return tuple(1 / (1 + math.exp(offset)) for offset in self.offsets[0 if self.regions else 1 :])

    def sentence(self) -> str:
        """The offsets, the Dice before and after, and the number of cases, for the log."""
        cases = f"{len(self.cases)} case{'' if len(self.cases) == 1 else 's'}"
        if math.isnan(self.dice_before):
            return f"The decision threshold stays as it is, because no foreground is shown in {cases}."
        if not any(self.offsets):
            return f"The decision threshold stays as it is: Dice {self.dice_before:.3f} in {cases}, and no other is clearly better."
        offsets = ", ".join(f"{offset:+.2f}" if offset else "0" for offset in self.offsets)
        thresholds = ", ".join(f"{threshold:.3f}" for threshold in self.thresholds)
        meaning = f" (a probability above {thresholds} in place of 0.5)" if thresholds else ""
        return (
            f"The decision threshold is moved by adding {offsets} to the logits{meaning}: "
            f"Dice {self.dice_before:.3f} before, {self.dice_after:.3f} after, in {cases}."
        )

    def as_json(self) -> dict[str, Any]:
        """All fields and the thresholds, for JSON; a Dice that is NaN is None."""
        return {
            "offsets": list(self.offsets),
            "thresholds": list(self.thresholds),
            "dice_before": None if math.isnan(self.dice_before) else self.dice_before,
            "dice_after": None if math.isnan(self.dice_after) else self.dice_after,
            "cases": list(self.cases),
        }


def sample_of(
    name: str, logits: Tensor, labels: Tensor, ignore_label: int | None, generator: torch.Generator
) -> Sample:
    """All voxels of a case without the ignore label, or `MOST_VOXELS` random ones of them.

    One voxel is drawn from each of `MOST_VOXELS` equally long runs, which takes less memory than a permutation of a large case.

    Args:
        name: name of the case.
        logits: (class, z, y, x).
        labels: (z, y, x); negative labels, which nnU-Net writes outside its mask, become background as in its training.
        ignore_label: None: every voxel has a label.
        generator: draws the voxels, on its device.

    Raises:
        SelmaError: logits and labels differ in shape.
    """
    if logits.shape[1:] != labels.shape:
        raise SelmaError(
            f"{name}: the prediction has {list(logits.shape[1:])} voxels and the labels {list(labels.shape)}; preprocess the dataset again"
        )
    flat, truth = logits.flatten(1), labels.flatten().short()
    known = None if ignore_label is None else torch.nonzero(truth != ignore_label).flatten()
    number = truth.numel() if known is None else known.numel()
    if number > MOST_VOXELS:
        place = torch.rand(MOST_VOXELS, generator=generator, dtype=torch.float64, device=generator.device)
        place += torch.arange(MOST_VOXELS, device=place.device)
        places = (place * (number / MOST_VOXELS)).long().clamp(max=number - 1)
        # rounding may draw a voxel twice
        drawn = torch.unique_consecutive(places).to(truth.device)
        known = drawn if known is None else known[drawn]
    if known is not None:
        flat, truth = flat[:, known.to(flat.device)], truth[known]
    return Sample(name, flat, truth.clamp(min=0))


def fit(
    samples: Sequence[Sample], regions: Sequence[Region] | None = None, order: Sequence[int] | None = None
) -> Calibration:
    """The offsets with the best mean Dice; of all within `TOLERANCE` of it, those nearest to 0.

    A single foreground class, and each region, is fitted on a fine grid; several classes by coordinate ascent on a coarser grid. The Dice of
    a class is its mean over the cases that show it, and a class that no case shows is not shifted. In nnU-Net's summary, a case in which a
    class is marked but not present has a Dice of 0; here such cases are left out.

    Args:
        samples: one for each case.
        regions: labels of each channel, `LabelManager.foreground_regions`; None: channels are labels.
        order: label that each channel writes over the channels before it, `LabelManager.regions_class_order`. With it, the Dice before and
            after are those of the label map, and the offsets are 0 if it gets no better.

    Raises:
        SelmaError: no samples, or logits that are not finite.
    """
    if not samples:
        raise SelmaError(
            "there is no case to fit the decision threshold on; give the fold validation cases, or turn the fit off"
        )
    for sample in samples:
        if not bool(torch.isfinite(sample.logits).all()):
            raise SelmaError(
                f"{sample.name}: the network predicts numbers that are not finite, so no decision threshold can be fitted; "
                "train again with a lower learning rate"
            )
    offsets = _fit_labels(samples) if regions is None else _fit_regions(samples, regions)
    names = tuple(sample.name for sample in samples)
    zeros = (0.0,) * len(offsets)
    before, after = (_dice(samples, shift, regions, order) for shift in (zeros, offsets))
    unmoved = Calibration(zeros, before, before, names, regions is not None)
    return replace(unmoved, offsets=offsets, dice_after=after) if after > before else unmoved


def _fit_labels(samples: Sequence[Sample]) -> tuple[float, ...]:
    channels = len(samples[0].logits)
    present = [label for label in range(1, channels) if any(bool((s.labels == label).any()) for s in samples)]
    grid, rounds = (_FINE, 1) if channels == 2 else (_COARSE, _ROUNDS)
    offsets = [0.0] * channels
    for _ in range(rounds):
        before = list(offsets)
        for channel in present:
            offsets[channel] = 0.0
            curve = _curve(((_shifted(s, offsets), s.labels) for s in samples), channel, grid)
            offsets[channel] = _nearest(curve, grid)
        if offsets == before:
            break
    return tuple(offsets)


def _fit_regions(samples: Sequence[Sample], regions: Sequence[Region]) -> tuple[float, ...]:
    """The offset of each region, fitted as the only foreground class beside a background with logit 0."""
    offsets = []
    for channel, region in enumerate(regions):
        logits = (s.logits[channel].double() for s in samples)
        truth = (_inside(s.labels, region).long() for s in samples)
        cases = ((torch.stack((torch.zeros_like(x), x)), y) for x, y in zip(logits, truth, strict=True))
        curve = _curve(cases, 1, _FINE)
        offsets.append(0.0 if bool(curve.isnan().any()) else _nearest(curve, _FINE))
    return tuple(offsets)


def _nearest(curve: Tensor, grid: Tensor) -> float:
    """The offset nearest to 0 among those whose Dice is close to the best; of two equally near, the better."""
    distance = torch.where(curve >= curve.max() - TOLERANCE, grid.abs(), torch.inf)
    return float(grid[torch.where(distance == distance.min(), curve, -1.0).argmax()])


def _curve(cases: Iterable[tuple[Tensor, Tensor]], channel: int, grid: Tensor) -> Tensor:
    """Mean Dice (offset,) for each offset of a channel; NaN if no case shows foreground.

    Args:
        cases: logits (class, voxel), float64, and labels (voxel,).
        channel: channel that is shifted.
        grid: offsets (offset,), rising.
    """
    hits, marked, present = [], [], []
    for logits, labels in cases:
        at_hits, at_marked = _counts(logits, labels.long(), channel, grid.to(logits.device))
        hits.append(at_hits.cpu())
        marked.append(at_marked.cpu())
        present.append(torch.stack([(labels == label).sum() for label in range(len(logits))]).cpu())
    return _mean_dice(torch.stack(hits)[:, 1:], torch.stack(marked)[:, 1:], torch.stack(present)[:, 1:, None])


def _counts(logits: Tensor, labels: Tensor, channel: int, grid: Tensor) -> tuple[Tensor, Tensor]:
    """Numbers of correctly marked voxels, and of all marked voxels, for each class and offset of a channel, both (class, offset).

    For each voxel there is an offset from which on the channel has the largest logit; below it, another class has. The cumulative histogram
    of these offsets has the counts for all offsets.
    """
    classes, bins = len(logits), len(grid) + 1
    others = logits.clone()
    others[channel] = -torch.inf
    rival, other = others.max(0)
    first = torch.searchsorted(grid, rival - logits[channel], right=True)

    def histogram(winner: Tensor, kept: Tensor) -> Tensor:
        return torch.bincount((winner * bins + first)[kept], minlength=classes * bins).view(classes, bins)

    def totals(of_channel: Tensor, of_others: Tensor) -> Tensor:
        lost = histogram(other, of_others)
        won = histogram(torch.full_like(other, channel), of_channel)
        return (won.cumsum(1) + lost.sum(1, keepdim=True) - lost.cumsum(1))[:, :-1]

    every = torch.ones_like(labels, dtype=torch.bool)
    return totals(labels == channel, labels == other), totals(every, every)


def _mean_dice(hits: Tensor, marked: Tensor, present: Tensor) -> Tensor:
    """Mean Dice over the cases that show a class, then over the classes that any case shows; (*,) from counts (case, class, *)."""
    shows = present > 0
    dice = torch.where(shows, 2 * hits.double() / (marked + present).clamp(min=1), 0.0)
    of_classes = dice.sum(0) / shows.sum(0).clamp(min=1)
    return of_classes.sum(0) / shows.any(0).sum(0)


def _dice(
    samples: Sequence[Sample], offsets: Sequence[float], regions: Sequence[Region] | None, order: Sequence[int] | None
) -> float:
    """Mean Dice of the labels that nnU-Net makes of the shifted logits."""
    classes: Sequence[Region] = range(1, len(offsets)) if regions is None else regions
    counts = []
    for sample in samples:
        logits = _shifted(sample, offsets)
        if regions is None:
            predicted = logits.argmax(0)
        elif order is not None:
            predicted = torch.zeros_like(sample.labels, dtype=torch.long)
            for channel, label in zip(logits, order, strict=True):
                predicted[channel > 0] = label
        for number, region in enumerate(classes):
            mask = logits[number] > 0 if regions is not None and order is None else _inside(predicted, region)
            truth = _inside(sample.labels, region)
            counts.append(torch.stack([(mask & truth).sum(), mask.sum(), truth.sum()]).cpu())
    if not counts:
        return math.nan
    hits, marked, present = torch.stack(counts).view(len(samples), len(classes), 3).unbind(2)
    return float(_mean_dice(hits, marked, present))


def _shifted(sample: Sample, offsets: Sequence[float]) -> Tensor:
    logits = sample.logits.double()
    return logits + logits.new_tensor(offsets)[:, None]


def _inside(labels: Tensor, region: Region) -> Tensor:
    """Voxels with one of the region's labels."""
    values = region if isinstance(region, tuple) else (region,)
    return torch.isin(labels.long(), torch.tensor(values, device=labels.device))


@torch.no_grad()
def shift_heads(network: nn.Module, offsets: Sequence[float]) -> None:
    """Add offsets to the bias of the head that predicts at full resolution, in place.

    This head is the last of `decoder.seg_layers`, in nnU-Net's decoders and in those of `nnunet_selma.networks`. The coarser heads are for
    deep supervision only and are not changed.

    Args:
        network: with or without the wrappers of DistributedDataParallel and torch.compile.
        offsets: one number for each output channel.

    Raises:
        SelmaError: there is no such head, it has no bias, or another number of channels.
    """
    network = bare(network)
    heads = getattr(getattr(network, "decoder", None), "seg_layers", None)
    if not heads:
        raise SelmaError(
            f"{type(network).__name__} has no heads in decoder.seg_layers, so its decision threshold cannot be moved; "
            "give the decoder its heads under this name, coarse to fine, or turn the fit of the threshold off"
        )
    bias = getattr(heads[-1], "bias", None)
    if bias is None:
        raise SelmaError(
            f"the finest head of {type(network).__name__} has no bias, so its decision threshold cannot be moved; "
            "build the last of decoder.seg_layers with a bias, or turn the fit of the threshold off"
        )
    if len(bias) != len(offsets):
        raise SelmaError(
            f"the finest head of {type(network).__name__} has {len(bias)} channels, and there are {len(offsets)} offsets; "
            "fit them on predictions of the same network"
        )
    bias += bias.new_tensor(offsets)


def samples_of(trainer: nnUNetTrainer, most_cases: int = 16) -> list[Sample]:
    """Predicted logits and labels of the fold's validation cases, without mirroring; with fold `all`, of training cases.

    The network predicts as in `nnUNetTrainer.perform_actual_validation`; its training mode and deep supervision are restored. One case at a
    time is in memory. Of more than `most_cases`, an even spread over the sorted names is predicted. Several processes share the cases.

    A cascaded stage is refused: its input is the prediction of the stage before, which is better in training than on new images, so that the
    threshold would not fit these.

    Args:
        trainer: initialised, on any device.
        most_cases: at least 1.

    Raises:
        SelmaError: a cascaded stage, or a network without a decoder like nnU-Net's.
    """
    if trainer.is_cascaded:
        raise SelmaError(
            "this is the second stage of a cascade, whose input is better in training than it will be on new images"
        )
    network = without_ddp(trainer.network)
    decoder: Any = getattr(bare(network), "decoder", None)
    if not hasattr(decoder, "deep_supervision"):
        raise SelmaError(f"{type(bare(network)).__name__} has no decoder whose threshold could be fitted")
    training, supervised = network.training, decoder.deep_supervision
    predictor = nnUNetPredictor(
        tile_step_size=0.5,
        use_gaussian=True,
        use_mirroring=False,
        perform_everything_on_device=trainer.device.type != "cpu",
        device=trainer.device,
        verbose=False,
        verbose_preprocessing=False,
        allow_tqdm=False,
    )
    predictor.manual_initialization(
        network,
        trainer.plans_manager,
        trainer.configuration_manager,
        None,
        trainer.dataset_json,
        type(trainer).__name__,
        None,
    )
    _, validated = trainer.do_split()
    names = _spread(sorted(validated), most_cases)
    if trainer.is_ddp:  # one process alone would keep the others waiting until they give up
        names = names[torch.distributed.get_rank() :: torch.distributed.get_world_size()]
    dataset = trainer.dataset_class(trainer.preprocessed_dataset_folder, list(names))
    generator = torch.Generator().manual_seed(0)
    samples = []
    try:
        trainer.set_deep_supervision_enabled(False)
        network.eval()
        for name in names:
            data, labels, _, _ = dataset.load_case(name)
            logits = predictor.predict_sliding_window_return_logits(_tensor(data)).cpu()
            samples.append(sample_of(name, logits, _tensor(labels)[0], trainer.label_manager.ignore_label, generator))
    finally:
        trainer.set_deep_supervision_enabled(supervised)
        network.train(training)
        compute_gaussian.cache_clear()
    return samples


def _spread(names: Sequence[str], most: int) -> list[str]:
    """At most this many names, evenly spread from the first to the last."""
    if len(names) <= most:
        return list(names)
    return [names[int(place)] for place in np.linspace(0, len(names) - 1, most).round()]


def _tensor(stored: Any) -> Tensor:
    """A whole array of nnU-Net's datasets, which may be compressed, or mapped from a read-only file."""
    return torch.from_numpy(np.require(stored[:], requirements="W"))
