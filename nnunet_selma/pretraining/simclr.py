"""SimCLR: features of two views of a patch are pulled together, and pushed away from those of other patches."""

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from nnunet_selma.pretraining.base import Pretext, Task, deepest_features, feature_shape, pooled
from nnunet_selma.pretraining.heads import gather_features, projector
from nnunet_selma.pretraining.views import view


class Simclr(Pretext):
    """Contrastive learning (Chen et al. 2020, arXiv 2002.05709), as team Wu of SELMA3D 2024 used it on slices (paper, 4.2.5)."""

    trains_decoder = False

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        self.settings, self.views, self.spacing = task.settings.simclr, task.settings.views, task.spacing
        self.projector = projector(2 * feature_shape(task)[0], self.settings.hidden, self.settings.outputs)

    def project(self, network: nn.Module, patches: Tensor) -> Tensor:
        """Projections of patches, (batch, outputs)."""
        return cast(Tensor, self.projector(pooled(deepest_features(network, patches))))

    def forward(self, network: nn.Module, patches: Tensor, structures: Tensor) -> dict[str, Tensor]:
        """NT-Xent between two views of each patch, over the batches of all processes."""
        views = [view(patches, self.views, self.spacing, self.generator) for _ in range(2)]
        first, second = self.project(network, torch.cat(views)).chunk(2)
        return {"nt_xent": nt_xent(gather_features(first), gather_features(second), self.settings.temperature)}

    @torch.no_grad()
    def diagnostics(self, network: nn.Module, patches: Tensor) -> dict[str, float]:
        """Mean cosine between two views of one patch, and between views of two patches."""
        views = [view(patches, self.views, self.spacing, self.generator) for _ in range(2)]
        first, second = (functional.normalize(p, dim=1) for p in self.project(network, torch.cat(views)).chunk(2))
        cosines, count = first @ second.T, len(first)
        same = cosines.diagonal().mean()
        others = (cosines.sum() - cosines.diagonal().sum()) / max(1, count * (count - 1))
        return {"view_agreement": float(same), "agreement_of_others": float(others)}

    def embed(self, network: nn.Module, patches: Tensor) -> Tensor:
        """Projections, in which a collapse shows."""
        return self.project(network, patches)


def nt_xent(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    """Normalised temperature-scaled cross entropy of two views, (batch, feature) each (Chen et al. 2020, equation 1).

    Each of the 2 × batch views has to pick its partner among the 2 × batch - 1 others.
    """
    views = functional.normalize(torch.cat([first, second]).float(), dim=1)
    count = len(first)
    itself = torch.eye(2 * count, dtype=torch.bool, device=views.device)
    cosines = (views[:, None] * views[None]).sum(2)  # a matrix product would be rounded to half under autocast
    similarities = (cosines / temperature).masked_fill(itself, -torch.inf)
    partner = torch.arange(2 * count, device=views.device).roll(count)
    return functional.cross_entropy(similarities, partner)
