import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from nnunet_selma.trainers.fast_layers import (
    FastConv3d,
    FastInstanceNorm3d,
    PointwiseConv3d,
    Trials,
    accelerate,
    transposed_weight_gradient,
)
from tests.plans import ARCHITECTURES, network, plans


class Always(Trials):
    """Trials whose outcome is decided."""

    def __init__(self, transposed):
        super().__init__()
        self.outcome = transposed

    def pick(self, shape, voxels, stock, transposed):
        self.transposed[shape] = self.outcome
        return transposed if self.outcome else stock


def exchanged(layer, transposed=True):
    accelerate(layer, Always(transposed))
    return layer


def gradients(layer, patches, direction):
    """Output, gradient of the input, gradients of the parameters."""
    patches = patches.clone().requires_grad_()
    output = layer(patches)
    layer.zero_grad()
    (output * direction).sum().backward()
    return [output.detach(), patches.grad, *(p.grad for p in layer.parameters())]


def assert_equal(found, expected):
    for one, other in zip(found, expected, strict=True):
        assert one.shape == other.shape
        assert (one - other).norm() <= 1e-9 * other.norm() + 1e-12


@given(
    size=st.tuples(*[st.integers(3, 9)] * 3),
    kernel=st.tuples(*[st.sampled_from([1, 3])] * 3),
    stride=st.tuples(*[st.integers(1, 2)] * 3),
    channels=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    bias=st.booleans(),
    transposed=st.booleans(),
    data=st.data(),
)
@settings(deadline=None, max_examples=60)
def test_a_convolution_equals_pytorchs(size, kernel, stride, channels, bias, transposed, data):
    padding = tuple(data.draw(st.integers(0, edge // 2)) for edge in kernel)
    torch.manual_seed(0)
    stock = nn.Conv3d(*channels, kernel, stride, padding, bias=bias).double()
    fast = nn.Conv3d(*channels, kernel, stride, padding, bias=bias).double()
    fast.load_state_dict(stock.state_dict())
    exchanged(fast, transposed)
    assert type(fast) in (FastConv3d, PointwiseConv3d)
    patches = torch.randn(2, channels[0], *size, dtype=torch.float64)
    direction = torch.randn_like(stock(patches))
    assert_equal(gradients(fast, patches, direction), gradients(stock, patches, direction))


@given(
    size=st.tuples(*[st.integers(1, 6)] * 3),
    batch=st.integers(1, 3),
    channels=st.integers(1, 4),
    offset=st.sampled_from([0.0, 1e3]),
)
@settings(deadline=None, max_examples=40)
def test_an_instance_norm_equals_pytorchs(size, batch, channels, offset):
    if max(size) == 1:
        size = (2, 1, 1)
    torch.manual_seed(1)
    stock, fast = (nn.InstanceNorm3d(channels, affine=True).double() for _ in range(2))
    with torch.no_grad():
        for parameter in stock.parameters():
            parameter.copy_(torch.randn(channels))
    fast.load_state_dict(stock.state_dict())
    assert type(exchanged(fast)) is FastInstanceNorm3d
    patches = torch.randn(batch, channels, *size, dtype=torch.float64) + offset
    direction = torch.randn_like(patches)
    for one, other in zip(gradients(fast, patches, direction), gradients(stock, patches, direction), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-8)


def test_an_instance_norm_refuses_a_single_voxel_as_pytorch_does():
    with pytest.raises(ValueError, match="more than 1 spatial element"):
        exchanged(nn.InstanceNorm3d(2, affine=True))(torch.zeros(1, 2, 1, 1, 1))


def test_the_transposed_gradient_of_one_voxel_is_known():
    """A single voxel at the centre, a gradient of one at the centre: only the kernel's middle tap sees it."""
    patches, gradient = torch.zeros(1, 1, 5, 5, 5), torch.zeros(1, 1, 5, 5, 5)
    patches[..., 2, 2, 2], gradient[..., 2, 2, 2] = 3.0, 2.0
    expected = torch.zeros(1, 1, 3, 3, 3)
    expected[..., 1, 1, 1] = 6.0
    assert torch.equal(transposed_weight_gradient(patches, gradient, (3, 3, 3), (1, 1, 1), (1, 1, 1)), expected)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv3d(4, 4, 3, groups=2),
        nn.Conv3d(1, 1, 3, dilation=2),
        nn.Conv3d(1, 1, 3, padding="same"),
        nn.Conv2d(1, 1, 3),
        nn.Conv3d(1, 1, 3, padding=1, padding_mode="reflect"),
        nn.InstanceNorm3d(2),
        nn.InstanceNorm3d(2, affine=True, track_running_stats=True),
    ],
)
def test_other_layers_stay_as_they_are(layer):
    before = type(layer)
    assert accelerate(layer, Trials()) == 0
    assert type(layer) is before


@pytest.mark.parametrize(
    ("name", "residual"),
    [*((name, False) for name in ("small", *ARCHITECTURES)), ("small", True), ("112³, strides 16, (1,3,3) stem", True)],
)
def test_networks_of_real_plans_compute_the_same(name, residual):
    """In double precision, where rounding does not hide a fault; parameters keep their names."""
    content = plans(name, residual=residual)
    (configuration,) = content["configurations"].values()
    # smaller patches, the same strides and kernels
    strides = configuration["architecture"]["arch_kwargs"]["strides"]
    patch = [2 * math.prod(axis) for axis in zip(*strides, strict=True)]
    stock, fast = network(content).double(), network(content).double()
    fast.load_state_dict(stock.state_dict())
    count = accelerate(fast, Always(transposed=True))
    assert count == 0 if len(patch) == 2 else count > 10
    assert list(fast.state_dict()) == list(stock.state_dict())
    patches = torch.randn(1, 1, *patch, dtype=torch.float64)
    found = []
    for one in (fast, stock):
        one(patches).square().mean().backward()
        found.append(torch.cat([p.grad.flatten() for p in one.parameters() if p.grad is not None]))
    assert (found[0] - found[1]).norm() <= 1e-8 * found[1].norm()


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(
    ("channels", "edge", "stride"),
    [((1, 16), 32, 1), ((16, 16), 32, 1), ((32, 16), 24, 1), ((16, 32), 32, 2), ((64, 64), 8, 1)],
)
def test_single_precision_differs_by_rounding(channels, edge, stride, transposed):
    stock, fast = (
        nn.Sequential(nn.Conv3d(*channels, 3, stride, 1), nn.InstanceNorm3d(channels[1], affine=True)) for _ in range(2)
    )
    fast.load_state_dict(stock.state_dict())
    exchanged(fast, transposed)
    patches = torch.randn(2, channels[0], edge, edge, edge)
    direction = torch.randn_like(stock(patches))
    names = ["output", "patches", *(name for name, _ in stock.named_parameters())]
    for name, one, other in zip(
        names, gradients(fast, patches, direction), gradients(stock, patches, direction), strict=True
    ):
        if name != "0.bias":  # the norm behind it takes every bias out: what is left is rounding on both sides
            assert (one - other).norm() <= 1e-4 * other.norm(), name


class TestTrials:
    def test_the_faster_way_is_taken_and_remembered(self):
        import time

        def slow():
            time.sleep(0.02)
            return torch.zeros(1)

        def quick():
            return torch.ones(1)

        trials = Trials()
        assert trials.pick("a", 1, slow, quick) is quick
        assert trials.pick("b", 1, quick, slow) is quick
        assert trials.transposed == {"a": True, "b": False}
        assert trials.pick("a", 1, quick, slow) is slow  # not tried again
        assert trials.pick("c", 10**9, slow, quick) is slow  # not tried at all

    def test_the_outcome_survives_a_restart_on_the_same_processor_only(self, tmp_path, monkeypatch):
        path = tmp_path / "trials.json"
        assert Trials.read(path).transposed == {}
        Trials({"a": True}).write(path)
        assert Trials.read(path).transposed == {"a": True}
        monkeypatch.setattr("nnunet_selma.trainers.fast_layers._processor", lambda: "another one")
        assert Trials.read(path).transposed == {}


def test_without_gradients_it_is_a_plain_convolution():
    layer = exchanged(nn.Conv3d(2, 3, 3, padding=1))
    patches = torch.randn(1, 2, 4, 4, 4)
    with torch.no_grad():
        assert torch.equal(layer(patches), functional.conv3d(patches, layer.weight, layer.bias, padding=1))
