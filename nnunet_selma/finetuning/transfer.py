"""Transfer of weights from one network into another, and its report.

Networks of the same family differ between plans. Differences are handled as follows:

- **Strides** do not change the shape of a convolution: its filters are copied, and apply to another scale. A transposed convolution whose
  kernel is its stride writes a block for each voxel: a longer block repeats the pretrained one, a shorter block is its mean.
- **Kernels** that grow are padded with zeros around the centre, so that the layer computes the same. Kernels that shrink add their outer taps
  to the new edge, a kernel of 1 gets the sum of 3: the output stays the same for images that do not change along that axis. The centre alone
  would lose two thirds of the filter, and the mean would give a third of the output.
- **Channels** in common are copied. Weights from new input channels to pretrained outputs are zero, so that the wider network computes the
  same at first; weights to new outputs are random. The two halves of a decoder's input, upsampled map and skip connection, are handled
  separately. This applies to convolutions and norms; transformers of another width stay random.
- **Input channels**: each gets the mean filter, scaled so that the layer's output keeps its size. Weights from the labels that the second
  stage of a cascade reads are zero, because a pretraining has none.
- **Stages** are matched by resolution from the fine end, although dynamic_network_architectures counts its decoders from the coarse end.
  Stages that only one network has stay random. Blocks within a stage are matched by their number.
- **Positional embeddings** for another grid of tokens are interpolated if both grids are known from the patches of both trainings.
- **Heads** of a pretext do not segment and stay random, as in nnU-Net. Heads of a segmentation with the same number of classes can be kept
  (`finetuning.head`).

`finetuning.carry` leaves out the finest step of the decoder, which is most specific to a pretext, or the whole decoder. Before a norm, only the
direction of weights matters, and weights of twice the size turn four times more slowly at the same learning rate. The report therefore has the
size of the carried-over weights, and the rate at which each part will learn.

If the checkpoint has a record (`checkpoints.AdaptationRecord`), it names encoder and stem; otherwise `naming` translates the names of other
projects.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from nnunet_selma.errors import SelmaError
from nnunet_selma.finetuning.naming import named_as_in
from nnunet_selma.networks.parts import pretrained_part, stage_of
from nnunet_selma.nnunet.checkpoints import Checkpoint, check_finite, distinct

_HEADS = (".seg_layers.",)
_LEAST_SHARE, _LEAST_SHARE_OF_PART = 0.2, 0.5
"""Least shares of the parameters that must fit, of the whole network, or of its pretrained part, which is often published alone."""
_STEP = re.compile(r"decoder\.(stages|transpconvs|steps|seg_layers)\.(\d+)\.")
"""Modules of a decoder that are counted from the coarse end, in dynamic_network_architectures and in `networks`."""


@dataclass(frozen=True)
class Carried:
    """Fate of a tensor of the target network: "copied", "adapted", "random" or "head" (left random on purpose)."""

    key: str
    fate: str
    parameters: int
    copied: int = 0
    """Number of pretrained entries; the others are random, or zeros from new to pretrained channels."""
    how: tuple[str, ...] = ()
    """Adaptations of the tensor, in words."""
    part: str = ""
    """Part of the network, see `parts_of`."""
    before: float = 0.0
    """Sum of the squared random weights that were replaced; 0 for biases and norms."""
    after: float = 0.0
    """Sum of the squared weights that replaced them."""


@dataclass(frozen=True)
class TransferReport:
    """Report of the transfer, tensor by tensor."""

    tensors: tuple[Carried, ...]
    named: str = ""
    """Description of the names in the checkpoint, if they are not the network's."""

    @property
    def share(self) -> float:
        """Share of the network's parameters, heads left out, that were copied or adapted."""
        return self._share([tensor for tensor in self.tensors if tensor.part != "heads"])

    def share_of(self, part: str) -> float:
        """Share of the parameters of a part (see `parts_of`) that were copied or adapted."""
        return self._share([tensor for tensor in self.tensors if tensor.part == part])

    @staticmethod
    def _share(tensors: Sequence[Carried]) -> float:
        total = sum(tensor.parameters for tensor in tensors)
        return sum(tensor.copied for tensor in tensors) / total if total else 0.0

    def table(self, rates: Mapping[str, float] | None = None, *, adaptive: bool = False) -> str:
        """A table to print: for each stage, parameters by fate, size of the weights and rate of learning, and what was adapted.

        Args:
            rates: factor on the learning rate of each part (see `parts_of`); 1 for parts that are not in it.
            adaptive: True for an optimiser whose steps do not depend on the size of gradients (AdamW).
        """
        stages: dict[str, list[Carried]] = {}
        for tensor in self.tensors:
            stages.setdefault(stage_of(tensor.key), []).append(tensor)
        titles = {"copied": "copied", "adapted": "adapted", "random": "left random", "head": "new head"}
        lines = [
            f"{'part of the network':<28}"
            + "".join(f"{title:>13}" for title in titles.values())
            + f"{'size':>8}{'learns':>8}"
        ]
        for stage, tensors in stages.items():
            counts: Counter[str] = Counter()
            for tensor in tensors:
                counts[tensor.fate] += tensor.copied
                counts["head" if tensor.fate == "head" else "random"] += tensor.parameters - tensor.copied
            how = "; ".join(dict.fromkeys(how for tensor in tensors for how in tensor.how))
            before, after = sum(tensor.before for tensor in tensors), sum(tensor.after for tensor in tensors)
            size = math.sqrt(after / before) if before and after else 1.0
            rate = (rates or {}).get(tensors[0].part, 1.0) / (size if adaptive else size**2)
            lines.append(
                f"{stage:<28}"
                + "".join(f"{counts[fate]:>13,}" for fate in titles)
                + f"{size:>8.2f}{rate:>8.2f}  {how}".rstrip()
            )
        return "\n".join(
            [
                *lines,
                *([f"The checkpoint holds the weights {self.named}."] if self.named else []),
                f"{self.share:.1%} of the parameters below the heads come from pretraining.",
                "size: the weights' root mean square ÷ that of the random ones they replaced; learns: the factor on the learning rate ÷ size"
                f"{'' if adaptive else '²'},",
                "the rate at which directions change, where 1 is that of random weights.",
            ]
        )


def parts_of(network: nn.Module) -> Callable[[str], str]:
    """A function from the name of a parameter to its part: "encoder", "decoder", "last step" (the decoder's finest), or "heads"."""
    encoder = pretrained_part(network).partition(".")[0]
    last = _steps(dict(network.named_parameters())) - 1

    def part(key: str) -> str:
        if any(head in key for head in _HEADS):
            return "heads"
        if key.startswith((f"{encoder}.", f"decoder.{encoder}.")):
            return "encoder"
        step = _STEP.match(key)
        return "last step" if step is not None and int(step[2]) == last else "decoder"

    return part


CARRIED_PARTS = {
    "all": ("encoder", "decoder", "last step"),
    "all_but_last_step": ("encoder", "decoder"),
    "encoder": ("encoder",),
}
"""Parts that are carried over, by the choices of `finetuning.carry`."""


def carry_over(
    checkpoint: Checkpoint | Mapping[str, Tensor],
    network: nn.Module,
    name: str = "the checkpoint",
    *,
    patch_size: Sequence[int] | None = None,
    carry: str = "all",
    keep_head: bool = False,
    label_channels: int = 0,
) -> TransferReport:
    """Copy every weight that fits into a network, adapt weights of other shapes, and report the fate of each tensor.

    Args:
        checkpoint: a checkpoint, or its weights.
        network: the network to fill, changed in place.
        name: name of the checkpoint in errors.
        patch_size: patch of the coming training, (z, y, x), for positional embeddings of another grid.
        carry: "all", "all_but_last_step" of the decoder, or "encoder"; the rest stays random.
        keep_head: carry over the segmentation heads too, from a checkpoint that segments the same number of classes.
        label_channels: number of the network's last input channels that are labels, not images.

    Raises:
        SelmaError: less than a fifth of the parameters, and less than half of the encoder's, fit (another architecture); weights are not
            finite; or heads cannot be kept. The network is then unchanged.
    """
    checkpoint = checkpoint if isinstance(checkpoint, Checkpoint) else Checkpoint(dict(checkpoint))
    source = _Source(checkpoint, network, label_channels)
    carried_parts = (*CARRIED_PARTS[carry], *(["heads"] if keep_head else []))
    fates: list[Carried] = []
    fitting: list[tuple[Tensor, Tensor]] = []
    fitting_parameters: dict[str, int] = {}
    part_of = parts_of(network)
    for key, aliases, old in distinct(network.state_dict()):
        pretrained = next((tensor for alias in aliases if (tensor := source.get(alias)) is not None), None)
        part = part_of(key)
        fate = Carried(key, "head" if part == "heads" else "random", old.numel(), part=part)
        if pretrained is not None and (part != "heads" or pretrained.shape == old.shape):
            fitted = source.fit(aliases, old, pretrained.to(old), patch_size)
            if fitted is not None:
                value, copied, how = fitted
                fitting_parameters[key] = copied
                if part in carried_parts:
                    check_finite({key: value}, name)
                    before, after = (
                        float(weight.float().square().sum()) if old.ndim > 1 else 0.0 for weight in (old, value)
                    )
                    fate = Carried(key, "adapted" if how else "copied", old.numel(), copied, how, part, before, after)
                    fitting.append((old, value))
        fates.append(fate)
    report = TransferReport(tuple(fates), source.how)
    body = {tensor.key: tensor.parameters for tensor in fates if tensor.part != "heads"}
    share, share_of_part = (
        sum(fitting_parameters.get(key, 0) for key in keys) / max(1, sum(body[key] for key in keys))
        for keys in (body, [key for key in body if key.startswith(f"{pretrained_part(network)}.")])
    )
    if share < _LEAST_SHARE and share_of_part < _LEAST_SHARE_OF_PART:
        raise SelmaError(
            f"{name}: only {share:.1%} of the network's parameters fit, it comes from another architecture or a much smaller "
            f"network: expected are weights such as {_some(tensor.key for tensor in fates)}, there are {_some(checkpoint.weights)}; pretrain "
            "with the plans of this dataset (nnunet-selma plan-pretraining)"
        )
    if keep_head and (checkpoint.of_pretext or not _keeps_finest_head(fates)):
        why = (
            "are those of a pretext"
            if checkpoint.of_pretext
            else "are lacking, or of another number of classes or channels"
        )
        raise SelmaError(f"{name}: finetuning.head is keep, and the heads there {why}; set finetuning.head=new")
    with torch.no_grad():
        for old, value in fitting:
            old.copy_(value)
    return report


def _keeps_finest_head(fates: Sequence[Carried]) -> bool:
    """True if the head at full resolution, with which a network predicts, was carried over."""
    heads = [tensor for tensor in fates if tensor.part == "heads"]
    finest = heads[-1].key.rpartition(".")[0] if heads else ""
    return bool(heads) and all(tensor.fate != "head" for tensor in heads if tensor.key.rpartition(".")[0] == finest)


def _some(keys: Iterable[str]) -> str:
    """The first, the middle and the last of these names."""
    names = list(keys)
    return ", ".join(dict.fromkeys(names[place] for place in (0, len(names) // 2, -1))) if names else "none"


Fitted = tuple[Tensor, int, tuple[str, ...]]
"""A tensor of the target's shape, the number of its pretrained entries, and its adaptations in words."""


class _Source:
    """Pretrained weights under the names of the network that they fill."""

    def __init__(self, checkpoint: Checkpoint, network: nn.Module, label_channels: int) -> None:
        self.network, self.record = network, checkpoint.record
        self.label_channels, self.of_pretext = label_channels, checkpoint.of_pretext
        self.weights, self.how = checkpoint.named_as_in(network), ""
        if self.record is None:
            named = named_as_in(self.weights, network)
            self.weights, self.how = named.weights, named.how
        self.offset = _steps(self.weights) - _steps(network.state_dict())
        layers = dict(network.named_modules())
        self.raising = {
            step[2]: (f"{name}.weight", layer.out_channels)
            for name, layer in layers.items()
            if isinstance(layer, _ConvTransposeNd) and (step := _STEP.match(f"{name}."))
        }
        first = next((name for name, layer in layers.items() if isinstance(layer, _ConvNd)), "")
        self.reading_the_image = tuple(getattr(network, "keys_to_in_proj", ())) or (first,)

    def get(self, key: str) -> Tensor | None:
        """The pretrained weight for a tensor of the network, matched by resolution; None if there is none."""
        if step := _STEP.match(key):
            key = f"decoder.{step[1]}.{int(step[2]) + self.offset}.{key[step.end() :]}"
        return self.weights.get(key)

    def fit(
        self, aliases: Sequence[str], old: Tensor, pretrained: Tensor, patch_size: Sequence[int] | None
    ) -> Fitted | None:
        """Return the value that fills a tensor of the target, or None if the pretrained one does not fit."""
        if getattr(self.network, "key_to_lpe", None) in aliases:
            return self._positions(old, pretrained, patch_size)
        reads_image = any(alias.rpartition(".")[0] in self.reading_the_image for alias in aliases) and old.ndim > 2
        # a pretraining has no labels, even if its number of channels is the same
        new_labels = reads_image and self.label_channels > 0 and self.of_pretext
        if pretrained.shape == old.shape and not new_labels:
            return pretrained, old.numel(), ()
        layer = self.network.get_submodule(aliases[0].rpartition(".")[0])
        if pretrained.ndim != old.ndim or not isinstance(layer, _ConvNd | _NormBase):
            return None
        how: list[str] = []
        if reads_image and (new_labels or pretrained.shape[1] != old.shape[1]):
            how.append(f"{pretrained.shape[1]} → {old.shape[1]} input channels")
            pretrained = with_inputs(pretrained, old.shape[1] - self.label_channels, self.label_channels)
        if isinstance(layer, _ConvNd) and pretrained.shape[2:] != old.shape[2:]:
            how.append(f"kernel {_times(pretrained.shape[2:])} → {_times(old.shape[2:])}")
            resized = with_kernel(pretrained, layer)
            if resized is None:
                return None
            pretrained = resized
        if pretrained.shape == old.shape:
            return pretrained, old.numel(), tuple(how)
        if isinstance(layer, _ConvNd) and layer.groups != 1:
            return None  # the channels of a group depend on the number of groups
        inputs = 0 if isinstance(layer, _ConvTransposeNd) else 1
        outputs = 0 if old.ndim == 1 else 1 - inputs
        changed = "reads " if pretrained.shape[outputs] == old.shape[outputs] else ""
        axis = inputs if changed else outputs
        how.append(f"{changed}{pretrained.shape[axis]} → {old.shape[axis]} channels")
        value, copied = common_block(old, pretrained, inputs, halves=self._reads_two_maps(aliases[0], old, pretrained))
        return value, copied, tuple(how)

    def _reads_two_maps(self, key: str, old: Tensor, pretrained: Tensor) -> bool:
        """True if a layer's input is an upsampled map and a skip connection: twice the channels of its step's upsampling."""
        step = _STEP.match(key)
        if step is None or step[2] not in self.raising or old.ndim == 1:
            return False
        name, written = self.raising[step[2]]
        theirs = self.get(name)
        return theirs is not None and old.shape[1] == 2 * written and pretrained.shape[1] == 2 * theirs.shape[1]

    def _positions(self, old: Tensor, pretrained: Tensor, patch_size: Sequence[int] | None) -> Fitted | None:
        """A positional embedding, (1, token, channel), on the target's grid; None if it cannot be interpolated."""
        theirs = _grid(self.record.patch_size if self.record else None, pretrained.shape[1])
        ours = _grid(patch_size, old.shape[1])
        if theirs and ours and theirs != ours and pretrained.shape[2] == old.shape[2]:
            how = f"grid {_times(theirs)} → {_times(ours)}"
            return regrid(pretrained, theirs, ours), old.numel(), (how,)
        return (pretrained, old.numel(), ()) if pretrained.shape == old.shape else None


def _steps(keys: Mapping[str, Tensor]) -> int:
    """Number of steps of a decoder."""
    return max((int(step[2]) + 1 for key in keys if (step := _STEP.match(key))), default=0)


def _times(shape: Sequence[int]) -> str:
    return "×".join(map(str, shape))


def with_inputs(weight: Tensor, images: int, labels: int) -> Tensor:
    """A filter (output, channel, *kernel) for this number of image channels, see `mean_filter`, and label channels with zeros."""
    if weight.shape[1] != images:
        weight = mean_filter(weight, images)
    return torch.cat([weight, weight.new_zeros(len(weight), labels, *weight.shape[2:])], dim=1)


def mean_filter(weight: Tensor, channels: int) -> Tensor:
    """A filter (output, channel, *kernel) for another number of input channels: the mean over channels, scaled to the same sum."""
    mean = weight.mean(dim=1, keepdim=True) * (weight.shape[1] / channels)
    return mean.expand(-1, channels, *weight.shape[2:]).clone()


def with_kernel(weight: Tensor, layer: _ConvNd) -> Tensor | None:
    """A filter (…, …, *kernel) with the kernel size of a layer; None if the kernel is neither a block nor a centred neighbourhood."""
    if isinstance(layer, _ConvTransposeNd):
        return (
            functional.interpolate(weight, layer.kernel_size, mode="area")
            if layer.kernel_size == layer.stride
            else None
        )
    centred = layer.padding == tuple(size // 2 for size in layer.kernel_size)
    if not centred or any(size % 2 == 0 for size in (*weight.shape[2:], *layer.kernel_size)):
        return None
    for axis, size in enumerate(layer.kernel_size, start=2):
        weight = with_taps(weight, axis, size)
    return weight


def with_taps(weight: Tensor, axis: int, size: int) -> Tensor:
    """A filter with an odd number of taps along one axis: padded with zeros, or its outer taps added to the new edge."""
    surplus = weight.shape[axis] - size
    outer = abs(surplus) // 2
    if surplus <= 0:
        padded = weight.new_zeros(*weight.shape[:axis], size, *weight.shape[axis + 1 :])
        padded.narrow(axis, outer, weight.shape[axis]).copy_(weight)
        return padded
    folded = weight.narrow(axis, outer, size).clone()
    folded.select(axis, 0).add_(weight.narrow(axis, 0, outer).sum(axis))
    folded.select(axis, -1).add_(weight.narrow(axis, outer + size, outer).sum(axis))
    return folded


def common_block(old: Tensor, pretrained: Tensor, inputs: int, *, halves: bool = False) -> tuple[Tensor, int]:
    """A tensor of the target's shape with the pretrained channels first, and the number of pretrained entries.

    Args:
        old: the target's random weight, (output, input, *kernel), transposed (input, output, *kernel), or (channel,).
        pretrained: the pretrained weight, with the same kernel.
        inputs: axis of the input channels.
        halves: True if the input channels are two maps of equal width.
    """
    shape = old.shape
    if halves:  # (output, input, …) → (output, map, channel, …)
        old, pretrained = (weight.reshape(weight.shape[0], 2, -1, *weight.shape[2:]) for weight in (old, pretrained))
        inputs = 2
    value = old.clone()
    block = tuple(slice(min(sizes)) for sizes in zip(old.shape, pretrained.shape, strict=True))
    if old.ndim > 1:
        new_inputs = slice(pretrained.shape[inputs], None)
        value[(*block[:inputs], new_inputs, *block[inputs + 1 :])] = 0
    value[block] = pretrained[block]
    return value.reshape(shape), pretrained[block].numel()


def _grid(patch_size: Sequence[int] | None, tokens: int) -> tuple[int, ...] | None:
    """Number of tokens along each axis of a patch, if each token is a cube; None if that is not possible."""
    if not patch_size:
        return None
    edge = max(1, round((math.prod(patch_size) / tokens) ** (1 / len(patch_size))))
    divided = all(size % edge == 0 for size in patch_size) and math.prod(patch_size) == tokens * edge ** len(patch_size)
    return tuple(size // edge for size in patch_size) if divided else None


def regrid(embedding: Tensor, grid: Sequence[int], new_grid: Sequence[int]) -> Tensor:
    """An embedding (1, token, channel) of a grid of tokens, interpolated linearly to another grid."""
    maps = embedding.transpose(1, 2).reshape(1, -1, *grid)  # (1, channel, *grid)
    mode = "trilinear" if len(grid) == 3 else "bilinear"
    return functional.interpolate(maps, tuple(new_grid), mode=mode).flatten(2).transpose(1, 2)
