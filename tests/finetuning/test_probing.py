"""Heads fitted by logistic regression: against scikit-learn, and in networks as nnU-Net makes them."""

import numpy as np
import pytest
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score
from torch import nn

from nnunet_selma.finetuning import probing
from nnunet_selma.finetuning.probing import Voxels, draw_voxels, fit_heads, fit_linear, join_voxels, read_voxels

CPU = torch.device("cpu")


def unet(classes=2, *, deep_supervision=True):
    torch.manual_seed(0)
    return PlainConvUNet(
        input_channels=1,
        n_stages=3,
        features_per_stage=[8, 16, 16],
        conv_op=nn.Conv3d,
        kernel_sizes=3,
        strides=[1, 2, 2],
        num_classes=classes,
        n_conv_per_stage=1,
        n_conv_per_stage_decoder=1,
        conv_bias=True,
        norm_op=nn.InstanceNorm3d,
        norm_op_kwargs={"affine": True},
        nonlin=nn.LeakyReLU,
        deep_supervision=deep_supervision,
    )


def probed(network, loaded, ignore_label=None, **more):
    return fit_heads(network, read_voxels(network, loaded, CPU, ignore_label, **more))


def batches(number=4, classes=2, *, scales=(1, 2)):
    """Noise with a bright cube of each foreground class, and its labels at each scale."""
    generator = torch.Generator().manual_seed(1)
    for _ in range(number):
        image = torch.randn(2, 1, 16, 16, 16, generator=generator)
        labels = torch.zeros(2, 1, 16, 16, 16)
        for label in range(1, classes):
            image[:, :, 4 * label : 4 * label + 4, 4:12, 4:12] += 6 * label
            labels[:, :, 4 * label : 4 * label + 4, 4:12, 4:12] = label
        yield {"data": image, "target": [labels[..., ::s, ::s, ::s] for s in scales]}


@pytest.mark.parametrize("classes", [2, 3])
def test_the_fit_is_that_of_scikit_learn(classes):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, classes, 600)
    features = rng.normal(size=(600, 5)) * [1, 10, 0.1, 3, 1] + 4 + labels[:, None] * [0.5, 5, 0, 0, 1]
    weights = rng.uniform(0.5, 3, 600)
    ours = fit_linear(Voxels(torch.tensor(features), torch.tensor(labels), torch.tensor(weights)), classes)
    logits = torch.tensor(features) @ ours[0].T + ours[1]
    scaled = (features - features.mean(0)) / features.std(0)
    theirs = LogisticRegression(C=1e4, max_iter=2000, tol=1e-8).fit(scaled, labels, weights).predict_proba(scaled)
    assert torch.allclose(logits.softmax(1), torch.tensor(theirs), atol=5e-3)


def test_every_head_the_network_uses_is_fitted_and_nothing_else_changes():
    network = unet()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    changes = probed(network, batches())
    assert len(changes) == 2
    assert all(after < 0.3 * before for before, after in changes)
    changed = {name for name, tensor in network.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {f"decoder.seg_layers.{head}.{kind}" for head in (0, 1) for kind in ("weight", "bias")}
    assert network.training
    assert not any(head._forward_pre_hooks for head in network.decoder.seg_layers)


def test_a_fitted_network_ranks_the_bright_cube_first():
    network = unet()
    batch = next(batches())

    def precision():
        with torch.no_grad():
            logits = network(batch["data"])[0]
        return average_precision_score(batch["target"][0].flatten(), (logits[:, 1] - logits[:, 0]).flatten())

    before = precision()
    probed(network, batches())
    assert precision() > max(0.5, 2 * before)


def test_three_classes_and_one_output_are_fitted():
    network = unet(3, deep_supervision=False)
    ((before, after),) = probed(network, ({**batch, "target": batch["target"][0]} for batch in batches(classes=3)))
    assert after < 0.3 * before


@pytest.mark.parametrize("regions", [1, 2])
def test_regions_are_fitted_each_by_itself(regions):
    def of_regions(batch):
        return {
            **batch,
            "target": [torch.cat([t >= n for n in range(1, regions + 1)], 1).float() for t in batch["target"]],
        }

    network = unet(regions)
    changes = probed(network, map(of_regions, batches(classes=3)), regions=True)
    assert len(changes) == 2
    assert all(after < 0.6 * before for before, after in changes)


def test_voxels_are_drawn_from_each_class_with_their_weight_and_none_is_ignored(monkeypatch):
    monkeypatch.setattr(probing, "MOST_VOXELS", 150)  # 50 of each of three classes
    target = torch.zeros(2, 1, 10, 10, 10)
    target[0, 0, :2], target[1, 0, 0, :, :3], target[:, :, 9] = 1, 2, 3
    place = torch.arange(2000.0).view(2, 1, 10, 10, 10)
    voxels = draw_voxels(torch.cat([place, -place], 1), target, 3, torch.Generator().manual_seed(0))
    assert torch.equal(target.flatten()[voxels.features[:, 0].long()].long(), voxels.targets)
    assert torch.equal(voxels.features[:, 1], -voxels.features[:, 0])
    counts = {label: float(voxels.weights[voxels.targets == label].sum()) for label in (0, 1, 2)}
    assert counts == pytest.approx({0: 1570, 1: 200, 2: 30})
    assert len(voxels.targets) == 130


def test_ignored_voxels_of_regions_are_left_out():
    target = torch.zeros(1, 3, 4, 4, 4)
    target[:, 0, 0], target[:, 1, 0, 0], target[:, 2, 1:] = 1, 1, 1
    voxels = draw_voxels(torch.zeros(1, 2, 4, 4, 4), target, 7, torch.Generator(), regions=True)
    assert voxels.targets.shape == (16, 2)
    assert voxels.targets.sum(0).tolist() == [16, 4]


def test_heads_stay_as_they_are_where_one_class_is_shown_or_there_are_none():
    network = unet()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    empty = ({**batch, "target": [0 * t for t in batch["target"]]} for batch in batches())
    assert probed(network, empty) == []
    everything_ignored = ({**batch, "target": [0 * t + 9 for t in batch["target"]]} for batch in batches())
    assert probed(network, everything_ignored, 9) == []
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert probed(nn.Conv3d(1, 2, 1), batches()) == []


def test_batches_are_joined():
    parts = [Voxels(torch.ones(n, 2), torch.arange(n), torch.ones(n)) for n in (2, 3)]
    assert join_voxels(parts).targets.tolist() == [0, 1, 0, 1, 2]


@pytest.mark.parametrize("regions", [False, True])
def test_a_class_that_no_batch_shows_reads_nothing_and_is_unlikely(regions):
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(400, 3, generator=generator).double()
    labels = (features[:, 0] > 0.5).long()
    targets = torch.stack([labels, 0 * labels], 1).double() if regions else 2 * labels
    absent = 1
    weight, bias = fit_linear(Voxels(features, targets, torch.ones(400).double()), 2 if regions else 3)
    assert not weight[absent].any()
    logits = features @ weight.T + bias
    likely = logits.sigmoid() if regions else logits.softmax(1)
    assert likely[:, absent].max() < 0.05
    assert weight[1 - absent].any()


def test_voxels_of_several_processes_are_fitted_together():
    first, second = ([next(batches())], list(batches(3))[1:])
    together, apart = unet(), unet()
    shares = [read_voxels(together, share, CPU, None) for share in (first, second)]
    both = fit_heads(together, [[*a, *b] for a, b in zip(*shares, strict=True)])
    alone = fit_heads(apart, shares[0])
    assert len(both) == len(alone) == 2
    assert not torch.equal(together.decoder.seg_layers[1].weight, apart.decoder.seg_layers[1].weight)
