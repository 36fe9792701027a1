from math import prod

import pytest
import torch
from dynamic_network_architectures.architectures.primus import Primus
from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet, ResidualUNet
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from nnunet_selma.errors import SelmaError
from nnunet_selma.finetuning.transfer import (
    carry_over,
    common_block,
    mean_filter,
    parts_of,
    regrid,
    with_kernel,
    with_taps,
)
from nnunet_selma.networks.parts import stage_of
from nnunet_selma.nnunet.checkpoints import AdaptationRecord, Checkpoint
from tests.plans import network, plans

FAMILIES = [PlainConvUNet, ResidualEncoderUNet]


def unet(family=PlainConvUNet, *, features=(4, 6, 8), kernels=3, strides=None, inputs=1, seed=0, norm=True):
    """A U-Net; dynamic_network_architectures as nnU-Net configures it, or without norm, so that nothing is scaled away."""
    stages = len(features)
    blocks = "n_conv_per_stage" if family is PlainConvUNet else "n_blocks_per_stage"
    torch.manual_seed(seed)
    net = family(
        input_channels=inputs,
        n_stages=stages,
        features_per_stage=list(features),
        conv_op=nn.Conv3d,
        kernel_sizes=kernels,
        strides=strides or [[1] * 3] + [[2] * 3] * (stages - 1),
        num_classes=2,
        n_conv_per_stage_decoder=[2] * (stages - 1),
        conv_bias=True,
        nonlin=nn.LeakyReLU,
        nonlin_kwargs={},
        **{blocks: [2] * stages},
        **({"norm_op": nn.InstanceNorm3d, "norm_op_kwargs": {"affine": True}} if norm else {}),
    )
    for parameter in net.parameters():  # biases and norms start as zeros and ones, which would hide what became of them
        nn.init.normal_(parameter, std=0.3)
    return net.eval()


def state(net):
    return {key: value.clone() for key, value in net.state_dict().items()}


def is_head(key):
    return ".seg_layers." in key


def features(net, image):
    """All maps of the encoder, and the decoder's last one, which its head reads."""
    seen = []
    net.decoder.seg_layers[-1].register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    with torch.no_grad():
        net(image)
        return [*net.encoder(image), seen[0]]


def fates(report, key):
    (found,) = [tensor for tensor in report.tensors if tensor.key == key]
    return found


# the same network


@pytest.mark.parametrize("residual", [False, True])
def test_everything_but_the_heads_is_carried_over(residual):
    source, target = network(plans(residual=residual)), network(plans(residual=residual), pretraining=False)
    before = state(target)
    report = carry_over(source.state_dict(), target)
    assert report.share == 1.0
    assert {tensor.fate for tensor in report.tensors} == {"copied", "head"}
    for key, value in target.state_dict().items():
        assert torch.equal(value, before[key] if is_head(key) else source.state_dict()[key]), key


@settings(max_examples=15, deadline=None)
@given(st.data())
def test_each_tensor_is_copied_or_untouched_as_the_report_says(data):
    source, target = unet(seed=1), unet(seed=2)
    weights = source.state_dict()
    encoder = [k for k in weights if k.startswith("encoder.") and "all_modules" not in k]
    for key in data.draw(st.sets(st.sampled_from(encoder), max_size=4)):
        for alias in [k for k in weights if weights[k].data_ptr() == weights[key].data_ptr()]:
            del weights[alias]
    before = state(target)
    report = carry_over(weights, target)
    after = target.state_dict()
    for tensor in report.tensors:
        assert torch.equal(after[tensor.key], weights[tensor.key] if tensor.fate == "copied" else before[tensor.key])
        assert tensor.copied == (tensor.parameters if tensor.fate == "copied" else 0)
    assert sum(t.parameters for t in report.tensors) == sum(p.numel() for p in target.parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_strides_change_no_weight(family):
    source = unet(family, seed=1)
    target = unet(family, seed=2, strides=[[1, 1, 1], [1, 2, 2], [1, 2, 2]])
    report = carry_over(source.state_dict(), target)
    adapted = {tensor.key for tensor in report.tensors if tensor.fate == "adapted"}
    assert adapted == {"decoder.transpconvs.0.weight", "decoder.transpconvs.1.weight"}
    assert report.share == 1.0


# kernels


@settings(max_examples=25, deadline=None)
@given(
    st.tuples(*[st.sampled_from([1, 3, 5])] * 3), st.tuples(*[st.sampled_from([0, 1, 2])] * 3), st.sampled_from([1, 2])
)
def test_a_larger_kernel_computes_the_same(kernel, more, stride):
    larger = tuple(size + 2 * extra for size, extra in zip(kernel, more, strict=True))
    old, new = (nn.Conv3d(2, 3, size, stride, padding=tuple(k // 2 for k in size)) for size in (kernel, larger))
    weight = with_kernel(old.weight.detach(), new)
    assert weight.shape == new.weight.shape
    image = torch.randn(1, 2, 9, 8, 10)
    expected = old(image)
    torch.testing.assert_close(functional.conv3d(image, weight, old.bias, stride, new.padding), expected)
    # and back again
    assert torch.equal(with_kernel(weight, old), old.weight)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2), st.sampled_from([(3, 1), (5, 1), (5, 3), (7, 3)]))
def test_a_smaller_kernel_answers_as_before_where_nothing_changes_along_its_axis(axis, sizes):
    have, want = sizes
    kernel, plane = [3, 3, 3], [8, 8, 8]
    kernel[axis], plane[axis] = have, 1
    weight = torch.randn(3, 2, *kernel)
    image = torch.randn(1, 2, *plane).repeat_interleave(9, dim=axis + 2)
    expected = functional.conv3d(image, weight)
    answer = functional.conv3d(image, with_taps(weight, axis + 2, want))
    inner = answer.narrow(axis + 2, (have - want) // 2, expected.shape[axis + 2])
    torch.testing.assert_close(inner, expected, atol=1e-4, rtol=1e-4)


@settings(max_examples=20, deadline=None)
@given(st.tuples(*[st.sampled_from([1, 2, 3])] * 3), st.tuples(*[st.sampled_from([1, 2, 3])] * 3))
def test_a_transposed_convolution_with_another_stride_writes_the_same_in_larger_blocks(stride, factor):
    larger = tuple(one * more for one, more in zip(stride, factor, strict=True))
    old, new = (nn.ConvTranspose3d(2, 3, size, size) for size in (stride, larger))
    weight = with_kernel(old.weight.detach(), new)
    image = torch.randn(1, 2, 3, 3, 3)
    with torch.no_grad():
        expected = functional.interpolate(old(image), scale_factor=factor, mode="nearest")
        torch.testing.assert_close(functional.conv_transpose3d(image, weight, old.bias, larger), expected)
    torch.testing.assert_close(with_kernel(weight, old), old.weight.detach())
    with torch.no_grad():  # and in smaller blocks the mean of what it wrote
        expected = functional.avg_pool3d(new(image), factor)
        smaller = with_kernel(new.weight, old)
        torch.testing.assert_close(functional.conv_transpose3d(image, smaller, new.bias, stride), expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_network_with_larger_kernels_computes_the_same(family):
    source = unet(family, kernels=[[1, 3, 3], [1, 3, 3], [3, 3, 3]], seed=1)
    target = unet(family, seed=2)
    report = carry_over(source.state_dict(), target)
    assert report.share == 1.0
    block = "encoder.stages.0." + ("0.convs.1.conv.weight" if family is PlainConvUNet else "blocks.0.conv1.conv.weight")
    assert fates(report, block).how == ("kernel 1×3×3 → 3×3×3",)
    image = torch.randn(1, 1, 16, 16, 16)
    for before, after in zip(features(source, image), features(target, image), strict=True):
        torch.testing.assert_close(after, before, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv3d(2, 2, 4, 4),  # a patch embedding
        nn.Conv3d(2, 2, 5, padding=0),  # reads beyond one side
        nn.Conv3d(2, 2, 2, padding=1),
        nn.ConvTranspose3d(2, 2, 3, 2, padding=1),  # its blocks overlap
    ],
)
def test_kernels_that_are_no_neighbourhood_are_left_alone(layer):
    assert with_kernel(torch.randn(2, 2, 3, 3, 3), layer) is None


# channels


@pytest.mark.parametrize("family", [*FAMILIES, ResidualUNet])
def test_a_wider_network_starts_as_the_narrow_one_did(family):
    """In its first channels, whatever the new ones are; both halves of what the decoder reads must find their place."""
    source = unet(family, features=(4, 6, 8), seed=1)
    target = unet(family, features=(7, 9, 12), seed=2)
    report = carry_over(source.state_dict(), target)
    image = torch.randn(1, 1, 16, 16, 16)
    for before, after in zip(features(source, image), features(target, image), strict=True):
        torch.testing.assert_close(after[:, : before.shape[1]], before, atol=1e-4, rtol=1e-4)
        assert after[:, before.shape[1] :].abs().amax() > 0
    # what is copied counts, not what is made room for
    body = [p for key, p in source.named_parameters() if not is_head(key)]
    wide = [p for key, p in target.named_parameters() if not is_head(key)]
    assert report.share == pytest.approx(sum(p.numel() for p in body) / sum(p.numel() for p in wide))


@pytest.mark.parametrize("family", FAMILIES)
def test_wide_and_back_gives_the_same_network(family):
    narrow, wide, back = (unet(family, features=f, seed=i) for i, f in enumerate([(4, 6, 8), (5, 9, 8), (4, 6, 8)]))
    carry_over(narrow.state_dict(), wide)
    report = carry_over(wide.state_dict(), back)
    assert report.share == 1.0
    for key, value in back.state_dict().items():
        if not is_head(key):
            assert torch.equal(value, narrow.state_dict()[key]), key


@settings(max_examples=30, deadline=None)
@given(*[st.integers(1, 6)] * 4, st.booleans())
def test_the_common_block(outputs, inputs, new_outputs, new_inputs, transposed):
    """New channels are random, and pretrained ones do not listen to them."""
    order = (1, 0) if transposed else (0, 1)
    found = torch.randn(outputs, inputs, 3).permute(*order, 2)
    old = torch.randn(new_outputs, new_inputs, 3).permute(*order, 2)
    value, copied = common_block(old, found, 0 if transposed else 1)
    value, old, found = (weight.permute(*order, 2) for weight in (value, old, found))
    rows, columns = min(outputs, new_outputs), min(inputs, new_inputs)
    assert copied == rows * columns * 3
    assert torch.equal(value[:rows, :columns], found[:rows, :columns])
    assert torch.equal(value[rows:], old[rows:])
    assert not value[:rows, columns:].any()


@settings(max_examples=20, deadline=None)
@given(*[st.integers(1, 5)] * 2)
def test_both_halves_of_a_concatenation(have, want):
    found, old = torch.randn(2, 2 * have, 1), torch.randn(2, 2 * want, 1)
    value, copied = common_block(old, found, 1, halves=True)
    common = min(have, want)
    assert copied == 2 * 2 * common
    for mine, theirs in ((0, 0), (want, have)):
        assert torch.equal(value[:, mine : mine + common], found[:, theirs : theirs + common])
        assert not value[:, mine + common : mine + want].any()


def test_grouped_layers_and_transformers_of_another_width_stay_random():
    class Other(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.same = nn.Conv3d(1, 9, 3, padding=1)
            self.grouped = nn.Conv3d(width, width, 3, padding=1, groups=2)
            self.tokens = nn.Linear(width, width)
            self.norm = nn.LayerNorm(width)

    target = Other(6)
    before = state(target)
    report = carry_over(Other(4).state_dict(), target)
    carried = {tensor.key for tensor in report.tensors if tensor.fate != "random"}
    assert carried == {"same.weight", "same.bias"}
    assert all(torch.equal(before[key], value) for key, value in target.state_dict().items() if key not in carried)


# input channels


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("source_channels", "target_channels"), [(1, 2), (2, 1), (2, 3)])
def test_another_number_of_input_channels_is_adapted_to_the_same_response(family, source_channels, target_channels):
    source, target = unet(family, inputs=source_channels, seed=1), unet(family, inputs=target_channels, seed=2)
    report = carry_over(source.state_dict(), target)
    (stem,) = [tensor for tensor in report.tensors if tensor.fate == "adapted"]
    assert stem.how == (f"{source_channels} → {target_channels} input channels",)
    assert stem.key.removesuffix(".weight") in target.keys_to_in_proj
    image = torch.randn(1, 1, 16, 16, 16)
    for before, after in zip(
        features(source, image.expand(1, source_channels, -1, -1, -1)),
        features(target, image.expand(1, target_channels, -1, -1, -1)),
        strict=True,
    ):
        torch.testing.assert_close(after, before, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("source_channels", "image_channels"), [(1, 1), (2, 2), (2, 1)])
def test_labels_of_a_first_stage_are_not_listened_to(family, source_channels, image_channels):
    source, target = unet(family, inputs=source_channels, seed=1), unet(family, inputs=image_channels + 3, seed=2)
    carry_over(source.state_dict(), target, label_channels=3)
    image, labels = torch.randn(1, 1, 16, 16, 16), torch.randn(1, 3, 16, 16, 16)
    given = torch.cat([image.expand(1, image_channels, -1, -1, -1), labels], dim=1)
    for before, after in zip(
        features(source, image.expand(1, source_channels, -1, -1, -1)), features(target, given), strict=True
    ):
        torch.testing.assert_close(after, before, atol=1e-4, rtol=1e-4)


def test_the_first_convolution_reads_the_image_where_a_network_does_not_say():
    def small(inputs):
        return nn.Sequential(nn.Conv3d(inputs, 4, 3, padding=1), nn.ReLU(), nn.Conv3d(4, 4, 3, padding=1))

    source, target = small(1), small(3)
    assert carry_over(source.state_dict(), target).share == 1.0
    assert torch.equal(target[0].weight, mean_filter(source[0].weight, 3))


def test_input_channels_kernel_and_width_at_once():
    source = unet(features=(4, 6, 8), kernels=[[1, 3, 3], *[[3] * 3] * 2], seed=1)
    target = unet(features=(5, 6, 8), inputs=2, seed=2)
    report = carry_over(source.state_dict(), target)
    first = fates(report, "encoder.stages.0.0.convs.0.conv.weight")
    assert first.how == ("1 → 2 input channels", "kernel 1×3×3 → 3×3×3", "4 → 5 channels")
    assert first.copied / first.parameters == pytest.approx(4 / 5)
    image = torch.randn(1, 1, 16, 16, 16)
    after = features(target, image.expand(1, 2, -1, -1, -1))
    for before, now in zip(features(source, image), after, strict=True):
        torch.testing.assert_close(now[:, : before.shape[1]], before, atol=1e-4, rtol=1e-4)


# stages


def marked(net):
    """Every part filled with a number that tells its resolution, 0 the finest, and encoder from decoder."""
    weights = state(net)
    steps = len(net.decoder.stages)
    for key, value in weights.items():
        words = key.removeprefix("decoder.encoder.").split(".")
        if key.startswith(("decoder.stages.", "decoder.transpconvs.")):
            value.fill_(-1.0 - (steps - 1 - int(words[2])))
        elif not is_head(key):
            value.fill_(1.0 + int(key.split("stages.")[1].split(".")[0]) if "stages." in key else 0.5)
    return weights


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("have", "want"), [(3, 4), (4, 3), (2, 4)])
def test_stages_are_matched_by_resolution(family, have, want):
    source, target = unet(family, features=[4] * have, seed=1), unet(family, features=[4] * want, seed=2)
    before = state(target)
    report = carry_over(marked(source), target)
    expected, after = marked(target), target.state_dict()
    common = min(have, want)
    for tensor in report.tensors:
        if tensor.fate == "head":
            continue
        mark = expected[tensor.key].flatten()[0].item()
        there = abs(mark) <= (common if mark > 0 else common - 1)
        assert tensor.fate == ("copied" if there else "random"), tensor
        assert torch.equal(after[tensor.key], expected[tensor.key] if there else before[tensor.key]), tensor
    assert any(tensor.key.startswith("decoder.stages.") and tensor.fate == "copied" for tensor in report.tensors)


def test_blocks_that_only_one_network_has_stay_random():
    source, target = network(plans()), network(plans(), pretraining=False)
    weights = {key: value for key, value in source.state_dict().items() if ".convs.1." not in key}
    report = carry_over(weights, target)
    assert {tensor.fate for tensor in report.tensors if ".convs.1." in tensor.key} == {"random"}
    assert {tensor.fate for tensor in report.tensors if ".convs.0." in tensor.key} == {"copied"}


def test_plans_of_nnunet_that_differ_in_everything():
    """Three stages and cubes into five stages with a flat stem."""
    source, target = network(plans()), network(plans("112³, strides 16, (1,3,3) stem"), pretraining=False)
    before = state(target)
    report = carry_over(source.state_dict(), target, "x.pth")
    assert 0.2 < report.share < 0.5
    stem = fates(report, "encoder.stages.0.0.convs.0.conv.weight")
    assert (stem.fate, stem.how) == ("adapted", ("kernel 3×3×3 → 1×3×3",))
    theirs = source.state_dict()[stem.key]
    torch.testing.assert_close(target.state_dict()[stem.key], theirs.sum(2, keepdim=True))
    for tensor in report.tensors:
        changed = not torch.equal(before[tensor.key], target.state_dict()[tensor.key])
        assert not changed or tensor.fate in ("copied", "adapted"), tensor


# checkpoints of others


@pytest.mark.parametrize("prefix", ["", "encoder.", "net."])
def test_an_nnssl_checkpoint_loads_into_our_plans(prefix):
    source, target = network(plans(residual=True)), network(plans(residual=True), pretraining=False)
    record = AdaptationRecord(
        {
            "architecture_plans": {
                "arch_class_name": "ResEncL",
                "arch_kwargs": None,
                "arch_kwargs_requiring_import": None,
            },
            "pretrain_plan": {"configurations": {"onemmiso": {"patch_size": [160, 160, 160], "spacing": [1, 1, 1]}}},
            "pretrain_num_input_channels": 1,
            "recommended_downstream_patchsize": [160, 160, 160],
            "key_to_encoder": f"{prefix}encoder.stages",
            "key_to_stem": f"{prefix}encoder.stem",
            "keys_to_in_proj": [f"{prefix}encoder.stem.convs.0.conv", f"{prefix}encoder.stem.convs.0.all_modules.0"],
            "key_to_lpe": None,
        }
    )
    weights = {f"{prefix}{key}": value for key, value in source.state_dict().items() if key.startswith("encoder.")}
    report = carry_over(Checkpoint(weights, record), target)
    for tensor in report.tensors:
        assert tensor.fate == (
            "copied" if tensor.key.startswith("encoder.") else "head" if is_head(tensor.key) else "random"
        )
    for key, value in target.encoder.state_dict().items():
        assert torch.equal(value, source.encoder.state_dict()[key])


def primus(shape):
    torch.manual_seed(prod(shape))
    net = Primus(1, 24, (8, 8, 8), 2, eva_depth=1, eva_numheads=2, input_shape=shape)
    nn.init.normal_(net.eva.pos_embed)
    return net


def of_primus(source, prefix, patch):
    record = {
        "key_to_encoder": f"{prefix}eva",
        "key_to_stem": f"{prefix}down_projection",
        "keys_to_in_proj": ["projection.proj"],
        "key_to_lpe": f"{prefix}eva.pos_embed",
        "pretrain_plan": {"configurations": {"x": {"patch_size": patch}}},
    }
    return Checkpoint({f"{prefix}{key}": value for key, value in source.state_dict().items()}, AdaptationRecord(record))


@pytest.mark.parametrize("prefix", ["", "encoder."])
def test_a_positional_embedding_is_interpolated_to_the_other_grid(prefix):
    source, target = primus((16, 32, 32)), primus((32, 16, 48))
    report = carry_over(of_primus(source, prefix, [16, 32, 32]), target, patch_size=(32, 16, 48))
    lpe = fates(report, "eva.pos_embed")
    assert (lpe.fate, lpe.how) == ("adapted", ("grid 2×4×4 → 4×2×6",))
    assert fates(report, "down_projection.proj.weight").fate == "copied"
    assert fates(report, "eva.blocks.0.attn.proj.weight").fate == "copied"
    maps = source.eva.pos_embed.detach().reshape(2, 4, 4, 24).permute(3, 0, 1, 2)[None]
    expected = functional.interpolate(maps, (4, 2, 6), mode="trilinear")[0].permute(1, 2, 3, 0).reshape(1, -1, 24)
    torch.testing.assert_close(target.eva.pos_embed.detach(), expected)


def test_grids_with_as_many_tokens_are_not_confused():
    source, target = primus((16, 32, 32)), primus((32, 32, 16))
    report = carry_over(of_primus(source, "", [16, 32, 32]), target, patch_size=(32, 32, 16))
    assert fates(report, "eva.pos_embed").how == ("grid 2×4×4 → 4×4×2",)


@pytest.mark.parametrize(("patch", "ours"), [([16, 32, 32], None), (None, (32, 16, 48)), ([17, 32, 32], (32, 16, 48))])
def test_a_positional_embedding_of_an_unknown_grid_stays_random(patch, ours):
    source, target = primus((16, 32, 32)), primus((32, 16, 48))
    before = target.eva.pos_embed.detach().clone()
    report = carry_over(of_primus(source, "", patch), target, patch_size=ours)
    assert fates(report, "eva.pos_embed").fate == "random"
    assert torch.equal(target.eva.pos_embed, before)


@settings(max_examples=15, deadline=None)
@given(st.tuples(*[st.integers(1, 4)] * 3), st.tuples(*[st.integers(1, 4)] * 3))
def test_a_constant_embedding_stays_constant_on_any_grid(grid, new_grid):
    embedding = torch.tensor([1.0, -2.0]).expand(1, prod(grid), 2)
    moved = regrid(embedding, grid, new_grid)
    torch.testing.assert_close(moved, torch.tensor([1.0, -2.0]).expand(1, prod(new_grid), 2))


# refusals and the report


@pytest.mark.parametrize("theirs", [{}, {"some.other.weight": torch.zeros(3)}])
def test_a_refusal_leaves_the_network_unchanged(theirs):
    target = network(plans(), pretraining=False)
    before = state(target)
    with pytest.raises(SelmaError, match=r"x\.pth: only 0\.0%.*another architecture"):
        carry_over(theirs, target, "x.pth")
    assert all(torch.equal(before[key], value) for key, value in target.state_dict().items())


def classes(net, count):
    """The same network with heads of another number of classes."""
    net.decoder.seg_layers = nn.ModuleList(nn.Conv3d(head.in_channels, count, 1) for head in net.decoder.seg_layers)
    return net


def test_heads_of_as_many_classes_are_kept_where_that_is_asked_for():
    source, target = unet(seed=1), unet(seed=2)
    report = carry_over(source.state_dict(), target, keep_head=True)
    assert report.share_of("heads") == 1.0
    image = torch.randn(1, 1, 16, 16, 16)
    assert torch.equal(source(image), target(image))


def test_heads_are_kept_by_resolution():
    source, target = unet(features=(4, 6, 8, 8), seed=1), unet(features=(4, 6, 8), seed=2)
    carry_over(source.state_dict(), target, keep_head=True)
    assert torch.equal(target.decoder.seg_layers[-1].weight, source.decoder.seg_layers[-1].weight)


def test_heads_are_not_kept_without_the_finest_one():
    source, target = unet(features=(3, 6, 8), seed=1), unet(features=(4, 6, 8), seed=2)
    with pytest.raises(SelmaError, match=r"another number of classes or channels; set finetuning\.head=new"):
        carry_over(source.state_dict(), target, keep_head=True)


def test_a_pretraining_of_as_many_channels_says_nothing_about_labels():
    source, target = unet(inputs=2, seed=1), unet(inputs=2, seed=2)
    carry_over(Checkpoint(source.state_dict(), of_pretext=True), target, label_channels=1)
    stem = target.encoder.stages[0][0].convs[0].conv.weight
    assert not stem[:, 1].any()
    torch.testing.assert_close(stem[:, :1], mean_filter(source.encoder.stages[0][0].convs[0].conv.weight, 1))
    target = unet(inputs=2, seed=2)
    carry_over(Checkpoint(source.state_dict()), target, label_channels=1)  # of the second stage of another cascade
    assert torch.equal(
        target.encoder.stages[0][0].convs[0].conv.weight, source.encoder.stages[0][0].convs[0].conv.weight
    )


@pytest.mark.parametrize("why", ["another number of classes", "those of a pretext"])
def test_heads_that_cannot_be_kept_are_refused_and_nothing_changes(why):
    source, target = unet(seed=1), unet(seed=2)
    if why == "another number of classes":
        source = classes(source, 5)
    before = state(target)
    with pytest.raises(SelmaError, match=rf"{why}.*; set finetuning\.head=new"):
        carry_over(Checkpoint(source.state_dict(), of_pretext="pretext" in why), target, keep_head=True)
    assert all(torch.equal(before[key], value) for key, value in target.state_dict().items())


def test_a_plain_encoder_is_no_residual_one():
    target = unet(ResidualEncoderUNet, seed=2)
    before = state(target)
    weights = {k: v for k, v in unet(PlainConvUNet, seed=1).state_dict().items() if k.startswith("encoder.")}
    with pytest.raises(SelmaError, match="another architecture"):
        carry_over(weights, target)
    assert all(torch.equal(before[key], value) for key, value in target.state_dict().items())


def test_two_dimensions_are_not_three():
    with pytest.raises(SelmaError, match="another architecture"):
        carry_over(network(plans("2d, 256×256")).state_dict(), network(plans(), pretraining=False))


def test_the_state_of_a_norm_comes_along():
    def normed(width):
        return nn.Sequential(nn.Conv3d(1, width, 1), nn.BatchNorm3d(width))

    source, target = normed(3), normed(5)
    source[1].running_mean.fill_(7)
    source[1].num_batches_tracked.fill_(9)
    carry_over(source.state_dict(), target)
    assert target[1].running_mean.tolist() == [7, 7, 7, 0, 0]
    assert target[1].num_batches_tracked == 9


def test_the_table_names_the_parts_and_what_was_adapted():
    source = unet(features=(4, 6, 8), kernels=[[1, 3, 3], *[[3] * 3] * 2])
    report = carry_over(source.state_dict(), unet(features=(5, 6, 8)))
    title, *rows, total, _, _ = report.table().splitlines()
    lines = {row.split()[0]: row for row in rows}
    assert lines["encoder.stages.0"].endswith("kernel 1×3×3 → 3×3×3; 4 → 5 channels")
    assert lines["encoder.stages.1"].endswith("  reads 4 → 5 channels")
    assert len(lines["encoder.stages.2"]) == len(title)
    assert total.startswith(f"{report.share:.1%}")
    numbers = [int(word.replace(",", "")) for row in rows for word in row.split()[1:5]]
    assert sum(numbers) == sum(tensor.parameters for tensor in report.tensors)


# what is carried over, and how fast it may change


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("carry", "parts"),
    [
        ("all", {"encoder", "decoder", "last step"}),
        ("all_but_last_step", {"encoder", "decoder"}),
        ("encoder", {"encoder"}),
    ],
)
def test_only_the_chosen_parts_are_carried_over(family, carry, parts):
    source, target = unet(family, seed=1), unet(family, seed=2)
    before, weights = state(target), source.state_dict()
    report = carry_over(weights, target, carry=carry)
    for tensor in report.tensors:
        expected = weights if tensor.part in parts else before
        assert torch.equal(target.state_dict()[tensor.key], expected[tensor.key]), tensor.key
    for part in ("encoder", "decoder", "last step"):
        assert report.share_of(part) == (part in parts)


def test_parts_are_found_by_name():
    net = unet()
    names = list(net.state_dict())
    parts = dict(zip(names, map(parts_of(net), names), strict=True))
    assert set(parts.values()) == {"encoder", "decoder", "last step", "heads"}
    last = {name for name, part in parts.items() if part == "last step"}
    assert {stage_of(name) for name in last} == {"decoder.stages.1", "decoder.transpconvs.1"}
    # the decoder of nnU-Net lists its encoder again
    assert parts["decoder.encoder.stages.0.0.convs.0.conv.weight"] == "encoder"
    net.pretrained_part = "encoder.stages.0"  # what is frozen may be less than what is carried over
    assert dict(zip(names, map(parts_of(net), names), strict=True)) == parts


def test_an_architecture_that_fits_is_taken_though_only_a_little_of_it_is_carried_over():
    source, target = unet(seed=1), unet(seed=2)
    target.pretrained_part = "backbone"  # so that nothing counts as encoder
    assert carry_over(source.state_dict(), target, carry="encoder").share == 0


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_and_nothing_changes(value):
    source, target = unet(seed=1), unet(seed=2)
    before = state(target)
    source.encoder.stages[1][0].convs[0].conv.weight.data[0, 0, 0, 0, 0] = value
    with pytest.raises(SelmaError, match=r"lost\.pth: holds numbers that are not finite"):
        carry_over(source.state_dict(), target, "lost.pth")
    assert all(torch.equal(tensor, before[key]) for key, tensor in target.state_dict().items())


def test_the_table_says_how_large_weights_are_and_how_fast_they_learn():
    source, target = unet(seed=1), unet(seed=1)
    for parameter in source.encoder.parameters():
        parameter.data *= 2
    table = carry_over(source.state_dict(), target, carry="encoder").table({"encoder": 0.5})
    lines = {line.split()[0]: line.split()[5:7] for line in table.splitlines()}
    assert (
        lines["encoder.stages.0"] == lines["encoder.stages.2"] == ["2.00", "0.12"]
    )  # half the rate, a quarter by size
    assert lines["decoder.stages.0"] == ["1.00", "1.00"]
    adaptive = carry_over(source.state_dict(), unet(seed=1), carry="encoder").table({"encoder": 0.5}, adaptive=True)
    (line,) = [line for line in adaptive.splitlines() if line.startswith("encoder.stages.0")]
    assert line.split()[5:7] == ["2.00", "0.25"]
