"""Runs that collapse, and what the trainer says of them."""

import pytest
import torch

from nnunet_selma.pretexts.byol import Byol, byol_loss
from nnunet_selma.pretexts.collapse import alarms, effective_rank, feature_deviation
from nnunet_selma.pretexts.views import view
from tests.plans import network, plans
from tests.pretexts.tasks import task, unknown


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
