"""Runs that collapse, and what the trainer says of them."""

from pathlib import Path

import pytest
import torch

from nnunet_selma.pretraining.byol import Byol, byol_loss
from nnunet_selma.pretraining.collapse import alarms, effective_rank, feature_deviation
from nnunet_selma.pretraining.distillation import SelfDistillation
from nnunet_selma.pretraining.inpainting import MaskedInpainting
from nnunet_selma.pretraining.views import view
from nnunet_selma.trainers.ssl import SelmaSSLTrainer
from nnunet_selma.trainers.ssl_summary import summary_of
from tests.plans import network, plans
from tests.pretraining.tasks import task, unknown
from tests.trainers.test_trainers import trainer


class Collapsing(Byol):
    """BYOL without predictor and without stop-gradient: both views are pulled together, and nothing holds them apart."""

    def forward(self, network, patches, structures):
        first, second = (
            self.online(network, view(patches, self.views, self.spacing, self.generator)) for _ in range(2)
        )
        return {"byol": byol_loss(first, second)}


@pytest.mark.parametrize(("kind", "collapses"), [(Byol, False), (Collapsing, True)])
def test_a_provoked_collapse_is_seen(kind, collapses):
    torch.manual_seed(0)
    net = network(plans())
    one = kind(task(net, byol={"hidden": 32, "outputs": 16}))
    sizes = (2, 3, 5, 8, 12, 16)
    patches = torch.cat(
        [torch.nn.functional.interpolate(torch.randn(2, 1, n, n, n), 16, mode="trilinear") for n in sizes]
    )
    optimizer = torch.optim.Adam([*net.encoder.parameters(), *(p for p in one.parameters() if p.requires_grad)], 3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        one(net, patches, unknown(patches))["byol"].backward()
        optimizer.step()
        one.after_step(net)
    with torch.no_grad():
        features = one.embed(net, patches)
    history = {"feature_deviation": [feature_deviation(features)], "effective_rank": [effective_rank(features)]}
    assert bool(alarms(history)) == collapses, history


@pytest.mark.parametrize("collapses", [False, True])
def test_a_collapsed_self_distillation_is_seen(collapses):
    """Its collapse is in the head: one answer for all patches, though the encoder still tells them apart."""
    torch.manual_seed(0)
    net = network(plans())
    one = SelfDistillation(task(net, distillation={"prototypes": 16, "hidden": 16, "bottleneck": 8}))
    if collapses:
        with torch.no_grad():
            last = one.student["view"].layers[-1]
            last.weight.zero_()
            last.bias.fill_(1.0)
    patches = torch.randn(12, 1, 16, 16, 16).cumsum(2)
    with torch.no_grad():
        features = one.embed(net, patches)
    history = {"feature_deviation": [feature_deviation(features)], "effective_rank": [effective_rank(features)]}
    assert bool(alarms(history)) == collapses, history


def test_equal_patches_are_a_collapse_of_an_encoder():
    """Places of a map differ within a patch even then, because instance norm makes them; patches do not."""
    one = MaskedInpainting(task(network(plans())))
    with torch.no_grad():
        same = one.embed(network(plans()), torch.randn(1, 1, 16, 16, 16).expand(9, -1, -1, -1, -1))
        other = one.embed(network(plans()), torch.randn(9, 1, 16, 16, 16).cumsum(2))
    assert feature_deviation(same) < 1e-3 < 0.02 < feature_deviation(other)


def test_the_log_and_the_summary_warn(folders):
    one = trainer(SelmaSSLTrainer, folders)
    one.initialize()
    one.pretext.embed = lambda network, patches: torch.ones(len(patches), 4)
    one.on_epoch_start()
    one.on_train_epoch_start()
    batch = {"data": torch.randn(2, 1, 16, 16, 16)}
    one.on_train_epoch_end([one.train_step(batch)])
    with torch.no_grad():
        one.on_validation_epoch_start()
        one.on_validation_epoch_end([one.validation_step(batch)])
    one.on_epoch_end()
    assert "WARNING: the features have collapsed" in Path(one.log_file).read_text()
    assert "the features have collapsed" in summary_of(one, one.pretext)["warnings"][0]
