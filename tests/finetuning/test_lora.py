"""Low-rank adapters: the network they leave, the states they give, and what they train."""

import copy

import pytest
import torch
from torch import nn

from nnunet_selma.errors import SelmaError
from nnunet_selma.finetuning.lora import LowRank, adapter_state, add_lora, load_adapter_state, merged_state
from nnunet_selma.finetuning.transfer import carry_over
from nnunet_selma.trainers.fast_layers import FastConv3d, PointwiseConv3d, Trials, accelerate
from tests.plans import network, plans

LAYERS = {
    "linear": (lambda: nn.Linear(6, 4), (3, 6)),
    "conv2d": (lambda: nn.Conv2d(3, 5, (3, 1), bias=False), (2, 3, 6, 7)),
    "conv3d": (lambda: nn.Conv3d(3, 5, 3, padding=1), (2, 3, 6, 7, 8)),
    "grouped": (lambda: nn.Conv3d(4, 4, 3, groups=4), (2, 4, 6, 7, 8)),
    "transposed": (lambda: nn.ConvTranspose3d(4, 3, (1, 2, 2), (1, 2, 2)), (1, 4, 3, 4, 5)),
}


def small(**changes):
    torch.manual_seed(0)
    return network(plans(**changes), pretraining=False)


def image():
    return torch.randn(2, 1, 16, 16, 16, generator=torch.Generator().manual_seed(1))


def disturb(module, seed=2):
    """Give the adapters something to say."""
    generator = torch.Generator().manual_seed(seed)
    for adapter in module.modules():
        if isinstance(adapter, LowRank):
            with torch.no_grad():
                adapter.up.copy_(0.1 * torch.randn(adapter.up.shape, generator=generator))


@pytest.mark.parametrize("kind", LAYERS)
def test_a_layer_is_unchanged_at_first_and_then_adds_a_product_of_low_rank(kind):
    build, shape = LAYERS[kind]
    torch.manual_seed(0)
    layer, patches = build(), torch.randn(shape)
    plain = copy.deepcopy(layer)
    assert add_lora(layer, 2, 6.0) == 1
    assert torch.equal(layer(patches), plain(patches))
    disturb(layer)
    adapter = layer.parametrizations.weight[0]
    product = 3.0 * (adapter.up @ adapter.down)  # alpha / rank
    assert torch.linalg.matrix_rank(product) <= 2
    with torch.no_grad():
        plain.weight.add_(product.reshape(plain.weight.shape))
    torch.testing.assert_close(layer(patches), plain(patches))


def test_the_rank_never_exceeds_that_of_the_weight_and_the_scale_stays():
    layer = nn.Conv3d(1, 4, 3)
    add_lora(layer, 8, 16.0)
    adapter = layer.parametrizations.weight[0]
    assert (tuple(adapter.up.shape), tuple(adapter.down.shape), adapter.scale) == ((4, 4), (4, 27), 2.0)


def test_only_the_weights_of_the_module_are_frozen():
    net = small()
    assert add_lora(net.encoder, 2, 4.0) == 6
    frozen = {name for name, parameter in net.named_parameters() if not parameter.requires_grad}
    assert len(frozen) == 6
    assert all(
        name.startswith("encoder.") and name.endswith("conv.parametrizations.weight.original") for name in frozen
    )


@pytest.mark.parametrize("residual", [False, True])
def test_a_network_computes_the_same_before_and_after_merging(residual):
    net = small(residual=residual)
    patches, before = image(), net(image())
    add_lora(net.encoder, 4, 8.0)
    assert all(torch.equal(ours, own) for ours, own in zip(net(patches), before, strict=True))
    disturb(net)
    adapted = net(patches)
    assert not torch.allclose(adapted[0], before[0])
    plain = small(residual=residual)
    plain.load_state_dict(merged_state(net))
    assert all(torch.equal(ours, own) for ours, own in zip(plain(patches), adapted, strict=True))


@pytest.mark.parametrize("residual", [False, True])
def test_the_merged_state_has_the_keys_shapes_and_aliases_of_the_plain_one(residual):
    net = small(residual=residual)
    expected = {key: value.shape for key, value in net.state_dict().items()}
    shared = {key: value.data_ptr() for key, value in net.state_dict().items()}
    add_lora(net, 2, 4.0)
    disturb(net)
    frozen = {key: value.clone() for key, value in net.state_dict().items()}
    state = merged_state(net)
    assert {key: value.shape for key, value in state.items()} == expected
    same = {(a, b) for a in state for b in state if state[a].data_ptr() == state[b].data_ptr()}
    assert same == {(a, b) for a in shared for b in shared if shared[a] == shared[b]}
    own, alias = "encoder.stages.0.0.convs.0.conv.weight", "decoder.encoder.stages.0.0.convs.0.all_modules.0.weight"
    if not residual:
        assert torch.equal(state[own], state[alias])
    changed = {key for key in state if not torch.equal(state[key], frozen[key])}
    assert changed == {key for key in state if state[key].ndim > 1}
    assert all(torch.equal(value, frozen[key]) for key, value in net.state_dict().items())  # it was not touched


def test_the_state_is_that_of_a_plain_network_and_loads_as_one():
    net, other = small(), small()
    add_lora(net.encoder, 2, 4.0)
    disturb(net)
    factors = {name: parts["0.up"].clone() for name, parts in adapter_state(net).items()}
    for parameter in other.parameters():
        nn.init.normal_(parameter)
    net.load_state_dict(other.state_dict())
    assert all(torch.equal(value, other.state_dict()[key]) for key, value in net.state_dict().items())
    assert all(torch.equal(parts["0.up"], factors[name]) for name, parts in adapter_state(net).items())
    del (state := other.state_dict())["encoder.stages.0.0.convs.0.conv.weight"]
    with pytest.raises(RuntimeError, match="Missing key"):
        net.load_state_dict(state)


def test_pretrained_weights_are_carried_into_the_frozen_ones():
    source, net = small(), small()
    for parameter in source.parameters():
        nn.init.normal_(parameter)
    add_lora(net.encoder, 2, 4.0)
    assert carry_over(source.state_dict(), net).share == 1
    for key, value in net.state_dict().items():
        assert torch.equal(value, source.state_dict()[key]) == (".seg_layers." not in key)
    assert torch.equal(net.encoder(image())[-1], source.encoder(image())[-1])


def test_what_a_run_needs_to_go_on_is_exact():
    net, other = small(), small()
    for one in (net, other):
        add_lora(one.encoder, 2, 4.0)
    disturb(net)
    other.load_state_dict(merged_state(net))
    load_adapter_state(other, adapter_state(net))
    ours, theirs = dict(net.named_parameters()), dict(other.named_parameters())
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(parameter, theirs[name]) for name, parameter in ours.items())


@pytest.mark.parametrize("change", [{"rank": 3}, {"part": "decoder"}, {"empty": True}])
def test_adapters_of_another_run_are_refused(change):
    net, other = small(), small()
    add_lora(net.encoder, 2, 4.0)
    add_lora(other.get_submodule(change.get("part", "encoder")), change.get("rank", 2), 4.0)
    with pytest.raises(SelmaError, match=r"go on with the finetuning\.lora_rank that the run began with"):
        load_adapter_state(other, {} if "empty" in change else adapter_state(net))


def test_fast_layers_are_adapted_too_and_compute_the_same():
    net, plain = small(), small()
    accelerate(net, Trials())
    add_lora(net, 4, 8.0)
    add_lora(plain, 4, 8.0)
    for one in (net, plain):
        disturb(one)
    assert sum(isinstance(layer, FastConv3d | PointwiseConv3d) for layer in net.modules()) > 6
    with torch.no_grad():
        for name, parameter in plain.named_parameters():
            parameter.copy_(net.get_parameter(name))
    for one in (net, plain):
        one(image())[0].square().mean().backward()
    for name, parameter in plain.named_parameters():
        assert (parameter.grad is None) == (net.get_parameter(name).grad is None)
        if parameter.grad is not None:
            scale = float(parameter.grad.abs().max())
            torch.testing.assert_close(
                net.get_parameter(name).grad, parameter.grad, rtol=1e-3, atol=1e-4 * scale + 1e-7
            )
    assert sum(isinstance(layer, FastConv3d) for layer in net.modules()) > 4


def test_a_copy_of_an_adapted_network_has_adapters_of_its_own():
    net = small()
    add_lora(net.encoder, 2, 4.0)
    twin = copy.deepcopy(net)
    disturb(net)
    assert torch.equal(twin(image())[0], small()(image())[0])
    assert all(torch.equal(value, small().state_dict()[key]) for key, value in merged_state(twin).items())
