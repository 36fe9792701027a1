"""Pretexts on all kinds of networks."""

import pytest
import torch
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_selma import trainers
from nnunet_selma.networks.designs import network_plans
from nnunet_selma.networks.parts import pretrained_part
from nnunet_selma.pretraining.base import deepest_features, pretext_named
from nnunet_selma.pretraining.byol import Byol
from nnunet_selma.pretraining.distillation import SelfDistillation
from nnunet_selma.pretraining.inpainting import MaskedInpainting
from nnunet_selma.pretraining.multitask import MultiTask
from nnunet_selma.pretraining.simclr import Simclr
from nnunet_selma.pretraining.structure import StructureInpainting
from nnunet_selma.trainers import TRAINERS
from nnunet_selma.trainers.ssl import SelmaSSLTrainer
from tests.plans import ARCHITECTURES, network, plans
from tests.pretraining.tasks import task

PRETEXTS = [MaskedInpainting, StructureInpainting, Byol, Simclr, MultiTask, SelfDistillation]
SMALL = {
    "structure": {"cut_share": 0.5},
    "byol": {"hidden": 16, "outputs": 8},
    "simclr": {"hidden": 16, "outputs": 8},
    "distillation": {"hidden": 16, "bottleneck": 8, "prototypes": 16, "local_crops": 1},
}


def planned(name):
    """A network, its patch and its spacing."""
    if name in ("swin_unetr", "vit_adapter"):
        content = network_plans(
            plans("128×128×112"),
            name,
            network=name,
            patch_edge=32,
            features={"swin_unetr": 12, "vit_adapter": 48}[name],
        )
    elif name == "attention_unet":
        content = network_plans(plans("2d, 256×256"), name, network=name, patch_edge=64, features=4)
    else:
        content = plans(name.removesuffix(", residual"), residual=name.endswith("residual"))
        patch = {"64×160×160, strides 8,32,32": (16, 64, 64), "2d, 256×256": (128, 128)}.get(name, (16, 16, 16))
        return network(content), patch, ARCHITECTURES.get(name, (0, (1.0,) * len(patch)))[1]
    (own,) = content["configurations"].values()
    manager = PlansManager(content)
    net = SelmaSSLTrainer.build_pretext_network(
        manager, manager.get_configuration(next(iter(content["configurations"]))), 1, 2, True
    )
    return net, tuple(own["patch_size"]), (1.0,) * len(own["patch_size"])


# every pretext on one network, every network with a pretext of each kind, and the recipes'
PAIRS = [
    *((kind, "small") for kind in PRETEXTS),
    (MultiTask, "small, residual"),
    (SelfDistillation, "small, residual"),
    (StructureInpainting, "64×160×160, strides 8,32,32"),
    (Simclr, "64×160×160, strides 8,32,32"),
    (StructureInpainting, "2d, 256×256"),
    (MultiTask, "2d, 256×256"),
    (Byol, "2d, 256×256"),
    (MaskedInpainting, "swin_unetr"),
    (MultiTask, "swin_unetr"),
    (SelfDistillation, "swin_unetr"),
    (Byol, "swin_unetr"),
    (StructureInpainting, "vit_adapter"),
    (SelfDistillation, "vit_adapter"),
    (MultiTask, "vit_adapter"),
    (MaskedInpainting, "attention_unet"),
    (Simclr, "attention_unet"),
]


@pytest.mark.parametrize(("kind", "name"), PAIRS)
def test_a_step_trains_what_the_pretext_says_it_trains(kind, name):
    net, patch, spacing = planned(name)
    one = kind(task(net, patch=patch, spacing=spacing, **SMALL))
    patches = torch.randn(2, 1, *patch)
    terms = one(net, patches, torch.tensor([1, -1]))
    loss = torch.stack(list(terms.values())).sum()
    assert torch.isfinite(loss)
    loss.backward()
    one.after_step(net)
    trained = [n for n, p in net.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0]
    part = pretrained_part(net)
    idle = {n for n, p in net.named_parameters() if p.grad is None and n.startswith(part)}
    heads = {n for n, p in one.named_parameters() if p.requires_grad and not n.startswith("network.")}
    assert {n for n, p in one.named_parameters() if n in heads and p.grad is None} == set()
    assert idle == set()  # processes would wait for it, and it would be carried over as if it were trained
    assert any(n.startswith(part) for n in trained)
    if not one.trains_decoder:
        assert all(n.startswith(part) for n in trained)
    else:
        assert any(n.startswith("decoder.") for n in trained)
    one.eval()
    with torch.no_grad():
        assert all(isinstance(value, float) for value in one.diagnostics(net, patches).values())
        features = one.embed(net, patches)
    assert features.ndim == 2
    assert len(features) >= 2
    again = kind(task(net, patch=patch, spacing=spacing, **SMALL))
    again.load_state_dict(one.state_dict())
    assert again.steps_done == 1


def test_each_trainer_names_a_pretext():
    named = {getattr(trainers, name).pretext_class for name in TRAINERS if name.startswith("SelmaSSLTrainer")}
    assert {pretext_named(name) for name in named} == set(PRETEXTS)


def test_a_transformer_is_looked_at_without_its_adapter():
    net, patch, _ = planned("vit_adapter")
    features = deepest_features(net, torch.randn(1, 1, *patch))
    assert features.shape == (1, 48, *(length // 8 for length in patch))
