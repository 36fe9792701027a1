"""Layers with the parameters and results of PyTorch's that train a 3D network faster on a CPU.

PyTorch spends much time on copies, which is avoided as follows:

- oneDNN computes a 3D convolution in its own layout, and copies every input and output. Here activations stay in `channels_last_3d`, which
  oneDNN reads without a copy.
- On processors without AVX-512, oneDNN has no kernel for the weight gradient and writes every voxel 27 times into a matrix. The same
  gradient is a forward convolution over transposed tensors; the faster of the two is found by one trial for each shape.
- PyTorch's instance norm reads another layout and passes over memory many times; here it is a few vectorised passes.
- A 1×1×1 convolution is a matrix product.

Gradients equal PyTorch's to rounding (relative difference below 1e-4). Parameters and their names stay, so checkpoints do too.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from nnunet_selma.running.json_files import read_json, write_json

_LAYOUT = torch.channels_last_3d
_CLEARLY = 0.9
"""Largest share of the stock way's time for the transposed way to be taken, so that the choice does not change from run to run."""
_LARGEST = 128**3
"""Voxels of a gradient above which the transposed way, whose kernel the gradient is, is not tried."""
_SMALL = 16**3
"""Voxels of a gradient up to which the transposed way was the faster one in trials without AVX-512, at stride 1."""
_convolution_backward = torch.ops.aten.convolution_backward


@dataclass
class Trials:
    """Choice between two ways to compute the weight gradient, which differ by rounding, for each shape."""

    transposed: dict[str, bool] = field(default_factory=dict)
    """True for shapes whose weight gradient is computed the transposed way."""
    timed: bool = True
    """Take the faster way, by one trial; False decides by the shape and the processor alone, so that two runs are the same to the last bit."""

    def pick(
        self, shape: str, voxels: int, stock: Callable[[], Tensor], transposed: Callable[[], Tensor]
    ) -> Callable[[], Tensor]:
        """The faster of the two; very large patches are not tried.

        Args:
            shape: shapes of patches, kernel and stride, as a text.
            voxels: voxels of the gradient.
            stock: computes the gradient as PyTorch does.
            transposed: computes the gradient by a transposed convolution.
        """
        if voxels > _LARGEST:
            return stock
        if shape not in self.transposed:
            self.transposed[shape] = (
                _seconds(transposed) < _CLEARLY * _seconds(stock) if self.timed else _by_rule(shape, voxels)
            )
        return transposed if self.transposed[shape] else stock

    def write(self, path: Path) -> None:
        """Write the choices, so that a continued run computes the same to the last bit."""
        write_json(path, {"processor": _processor(), "timed": self.timed, "transposed": self.transposed})

    @classmethod
    def read(cls, path: Path, *, timed: bool = True) -> "Trials":
        """The choices of an earlier run with the same processor and the same `timed`; empty if there is none."""
        kept = read_json(path) if path.is_file() else {}
        same = kept.get("processor") == _processor() and kept.get("timed", True) == timed
        return cls(dict(kept["transposed"]) if same else {}, timed)


def _by_rule(shape: str, voxels: int) -> bool:
    # oneDNN has a kernel for the stock way with AVX-512
    without_kernel = "AVX512" not in torch.backends.cpu.get_cpu_capability()
    return without_kernel and voxels <= _SMALL and shape.endswith("/ [1, 1, 1]")


def _processor() -> str:
    return f"{torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def _seconds(compute: Callable[[], Tensor]) -> float:
    """The shorter time of two runs, after one that builds the kernel and touches the memory."""
    compute()
    took = []
    for _ in range(2):
        start = time.perf_counter()
        compute()
        took.append(time.perf_counter() - start)
    return min(took)


def transposed_weight_gradient(
    patches: Tensor, gradient: Tensor, kernel: tuple[int, ...], stride: tuple[int, ...], padding: tuple[int, ...]
) -> Tensor:
    """The weight gradient of a convolution as a forward convolution whose batch axis and channel axis are swapped.

    Args:
        patches: input of the convolution, (batch, input channel, z, y, x).
        gradient: gradient of its output, (batch, output channel, z, y, x).
        kernel: shape of the kernel, (z, y, x).
        stride: stride of the convolution, (z, y, x).
        padding: zeros on both sides of each axis, (z, y, x).

    Returns:
        (output channel, input channel, z, y, x).
    """
    taps = functional.conv3d(patches.transpose(0, 1), gradient.transpose(0, 1), padding=padding, dilation=stride)
    z, y, x = kernel
    return taps[:, :, :z, :y, :x].transpose(0, 1)


class _Convolution(torch.autograd.Function):
    """The function `conv3d` with the faster weight gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        patches: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: tuple[int, ...],
        padding: tuple[int, ...],
        trials: Trials,
    ) -> Tensor:
        ctx.save_for_backward(patches, weight)
        ctx.stride, ctx.padding, ctx.trials, ctx.has_bias = stride, padding, trials, bias is not None
        return functional.conv3d(patches, weight, bias, stride, padding)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        patches, weight = ctx.saved_tensors
        gradient = gradients[0].contiguous(memory_format=_LAYOUT)

        def stock(patches_too: bool, weight_too: bool) -> tuple[Tensor | None, Tensor | None]:
            both: tuple[Tensor | None, Tensor | None, Tensor | None] = _convolution_backward(
                gradient,
                patches,
                weight,
                None,
                ctx.stride,
                ctx.padding,
                (1, 1, 1),
                False,
                (0, 0, 0),
                1,
                (patches_too, weight_too, False),
            )
            return both[0], both[1]

        needs_patches, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        of_patches = stock(True, False)[0] if needs_patches else None
        of_weight = None
        if needs_weight:
            shape = f"{list(patches.shape)} {list(weight.shape)} / {list(ctx.stride)}"
            of_weight = ctx.trials.pick(
                shape,
                gradient[0, 0].numel(),
                lambda: stock(False, True)[1],
                lambda: transposed_weight_gradient(patches, gradient, tuple(weight.shape[2:]), ctx.stride, ctx.padding),
            )()
        of_bias = gradient.sum((0, 2, 3, 4)) if ctx.has_bias and needs_bias else None
        return of_patches, of_weight, of_bias, None, None, None


class _InstanceNorm(torch.autograd.Function):
    """Instance norm over (z, y, x) of a tensor in the layout `channels_last_3d`, in as few passes over memory as PyTorch allows."""

    @staticmethod
    def forward(ctx: Any, patches: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        voxels = _voxels(patches)
        centred = voxels - voxels.mean(1, keepdim=True)
        scale = (centred.square().mean(1, keepdim=True) + eps).rsqrt()
        # not a view, because the activation that follows works in place
        output = torch.empty_like(patches, memory_format=_LAYOUT)
        torch.addcmul(bias, centred, scale * weight, out=_voxels(output))
        ctx.save_for_backward(centred, scale, weight)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        centred, scale, weight = ctx.saved_tensors
        gradient = _voxels(gradients[0])
        mean = gradient.mean(1, keepdim=True)
        projection = (gradient * centred).mean(1, keepdim=True) * scale
        of_voxels = torch.addcmul(-weight * scale * mean, gradient, weight * scale)
        of_voxels.addcmul_(centred, -weight * scale.square() * projection)
        batch, channels, z, y, x = gradients[0].shape
        count = centred.shape[1]
        of_patches = of_voxels.view(batch, z, y, x, channels).permute(0, 4, 1, 2, 3)
        return of_patches, projection.sum((0, 1)) * count, mean.sum((0, 1)) * count, None


def _voxels(patches: Tensor) -> Tensor:
    """A tensor (batch, channel, z, y, x) as (batch, voxel, channel); a view if its layout is `channels_last_3d`."""
    return patches.permute(0, 2, 3, 4, 1).flatten(1, 3)


class FastConv3d(nn.Conv3d):
    """`Conv3d` in `channels_last_3d` with the faster weight gradient."""

    trials: Trials

    def forward(self, input: Tensor) -> Tensor:
        """The output of `Conv3d`."""
        patches = input.contiguous(memory_format=_LAYOUT)
        output: Tensor = _Convolution.apply(patches, self.weight, self.bias, self.stride, self.padding, self.trials)  # type: ignore[no-untyped-call]
        return output


class PointwiseConv3d(nn.Conv3d):
    """`Conv3d` with kernel 1 and stride 1, as a matrix product."""

    def forward(self, input: Tensor) -> Tensor:
        """The output of `Conv3d`."""
        return functional.linear(input.permute(0, 2, 3, 4, 1), self.weight.flatten(1), self.bias).permute(0, 4, 1, 2, 3)


class FastInstanceNorm3d(nn.InstanceNorm3d):
    """`InstanceNorm3d` with affine parameters and without running statistics."""

    def forward(self, input: Tensor) -> Tensor:
        """The output of `InstanceNorm3d`."""
        if input.ndim != 5 or input[0, 0].numel() == 1:
            return super().forward(input)  # refuses, and says why
        output: Tensor = _InstanceNorm.apply(input, self.weight, self.bias, self.eps)  # type: ignore[no-untyped-call]
        return output


def accelerate(network: nn.Module, trials: Trials) -> int:
    """Replace 3D layers by faster ones with the same results, in place; returns their number.

    Layers of a subclass, and those that are grouped, dilated or not padded with zeros, are not replaced.
    """
    exchanged = 0
    for layer in network.modules():
        faster = _faster_class(layer)
        if faster is not None:
            layer.__class__ = faster
            exchanged += 1
            if isinstance(layer, FastConv3d):
                layer.trials = trials
    return exchanged


def _faster_class(layer: nn.Module) -> type[nn.Module] | None:
    if type(layer) is nn.InstanceNorm3d and layer.affine and not layer.track_running_stats:
        return FastInstanceNorm3d
    if type(layer) is not nn.Conv3d or layer.groups != 1 or isinstance(layer.padding, str):
        return None
    if layer.padding_mode != "zeros" or layer.dilation != (1, 1, 1):
        return None
    pointwise = layer.kernel_size == layer.stride == (1, 1, 1) and layer.padding == (0, 0, 0)
    return PointwiseConv3d if pointwise else FastConv3d
