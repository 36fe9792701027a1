import pytest
import torch

from nnunet_selma.pretraining.inpainting import MaskedInpainting
from nnunet_selma.pretraining.learning import Movement, errors_without, movements, starting_weights, unlearnt
from tests.plans import network, plans
from tests.pretraining.tasks import task


def test_movement_is_an_angle_and_a_size():
    net = network(plans())
    start = starting_weights(net)
    assert [round(entry.turned, 3) for entry in movements(start, net)] == [0.0] * len(movements(start, net))
    assert not any(".seg_layers." in key for key in start)
    with torch.no_grad():
        for parameter in net.encoder.stages[0].parameters():
            parameter *= 3  # longer, in the same direction
        for parameter in net.encoder.stages[1].parameters():
            # a right angle: a vector of the same length that has nothing in common with it
            other = torch.randn_like(parameter)
            other -= (other * parameter).sum() / parameter.square().sum().clamp(min=1e-9) * parameter
            parameter.copy_(other * parameter.norm() / other.norm())
    by_stage = {entry.stage: entry for entry in movements(start, net)}
    assert by_stage["encoder.stages.0"].turned == pytest.approx(0, abs=1e-3)
    assert by_stage["encoder.stages.0"].size == pytest.approx(3)
    assert by_stage["encoder.stages.1"].turned == pytest.approx(90, abs=1e-3)
    assert by_stage["encoder.stages.1"].size == pytest.approx(1)
    assert by_stage["decoder.stages.1"] == Movement("decoder.stages.1", pytest.approx(0, abs=1e-3), pytest.approx(1))


def test_a_network_that_reads_its_finest_skip_alone_needs_nothing_else():
    torch.manual_seed(0)
    net, patches = network(plans()), torch.randn(2, 1, 16, 16, 16)
    with torch.no_grad():  # the upsampled half of what the finest step of the decoder reads is ignored
        first = net.decoder.stages[-1].convs[0].conv.weight
        first[:, : first.shape[1] // 2] = 0
    one = MaskedInpainting(task(net)).eval()
    errors = errors_without(one, net.eval(), [patches, patches])
    assert list(errors) == ["nothing", "skip 0", "skip 1", "bottleneck"]
    assert errors["bottleneck"] == pytest.approx(errors["nothing"])
    assert errors["skip 1"] == pytest.approx(errors["nothing"])
    assert errors["skip 0"] != pytest.approx(errors["nothing"])
    (sentence,) = unlearnt([], errors)
    assert "does not need the deepest stage" in sentence
    assert torch.equal(net(patches), net(patches))


def test_without_skips_only_the_bottleneck_is_measured():
    net = network(plans()).eval()
    one = MaskedInpainting(task(net, inpainting={"skips": False})).eval()
    assert list(errors_without(one, net, [torch.randn(1, 1, 16, 16, 16)])) == ["nothing", "bottleneck"]


def test_a_network_without_an_encoder_is_not_measured():
    one = MaskedInpainting(task(torch.nn.Identity())).eval()
    assert errors_without(one, torch.nn.Identity(), [torch.randn(1, 1, 16, 16, 16)]) == {}


def test_a_deepest_stage_that_has_not_moved_is_told():
    stages = [Movement("encoder.stages.0", 30.0, 1.2), Movement("encoder.stages.1", 1.0, 1.0)]
    (sentence,) = unlearnt([*stages, Movement("decoder.stages.0", 0.0, 1.0)], {"nothing": 1.0, "bottleneck": 2.0})
    assert "the deepest stage has hardly moved" in sentence
    assert "encoder.stages.1 by 1.0 degrees" in sentence
    assert unlearnt([stages[0]], {"nothing": 1.0, "bottleneck": 2.0}) == []


def test_an_encoder_that_gives_one_map_is_not_measured():
    net = torch.nn.ModuleDict({"encoder": torch.nn.Identity(), "decoder": torch.nn.Identity()})
    assert errors_without(MaskedInpainting(task(net)).eval(), net, [torch.randn(2, 1, 16, 16, 16)]) == {}
