"""BYOL: from one view of a patch, predict the features that a slowly moving copy of the network has of another view."""

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from nnunet_selma.networks.parts import pretrained_module
from nnunet_selma.pretraining.base import Pretext, Task, coarsest, deepest_features, feature_shape, pooled
from nnunet_selma.pretraining.heads import cosine_to_one, follow, projector, teacher_of
from nnunet_selma.pretraining.views import view


class Byol(Pretext):
    """Bootstrap your own latent (Grill et al. 2020, arXiv 2006.07733), as team Zoomlin of SELMA3D 2024 used it (paper, 4.2.1).

    The online encoder, projector and predictor are trained. The target encoder and projector are their moving average, of momentum 0.996
    to 1.
    """

    trains_decoder = False

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        self.settings, self.views, self.spacing = task.settings.byol, task.settings.views, task.spacing
        width = 2 * feature_shape(task)[0]
        self.projector = projector(width, self.settings.hidden, self.settings.outputs)
        self.predictor = projector(self.settings.outputs, self.settings.hidden, self.settings.outputs)
        self.target = nn.ModuleDict(
            {
                "encoder": teacher_of(pretrained_module(task.network)),
                "projector": teacher_of(self.projector),
            }
        )

    def compiled_parts(self, network: nn.Module) -> list[nn.Module]:
        """The online and the target encoder."""
        return [pretrained_module(network), self.target["encoder"]]

    def online(self, network: nn.Module, patches: Tensor) -> Tensor:
        """Projections of a view by the online network, (batch, outputs)."""
        return cast(Tensor, self.projector(pooled(deepest_features(network, patches))))

    @torch.no_grad()
    def target_projections(self, patches: Tensor) -> Tensor:
        """Projections of a view by the target network, (batch, outputs)."""
        return cast(Tensor, self.target["projector"](pooled(coarsest(self.target["encoder"](patches)))))

    def forward(self, network: nn.Module, patches: Tensor, structures: Tensor) -> dict[str, Tensor]:
        """Mean squared error of normalised features, predicted from each view for the other."""
        views = torch.cat([view(patches, self.views, self.spacing, self.generator) for _ in range(2)])
        predicted = self.predictor(self.online(network, views)).chunk(2)
        targets = self.target_projections(views).chunk(2)
        return {"byol": (byol_loss(predicted[0], targets[1]) + byol_loss(predicted[1], targets[0])) / 2}

    def after_step(self, network: nn.Module) -> None:
        """Move the target network towards the online network."""
        momentum = cosine_to_one(self.settings.momentum, self.steps_done, self.steps)
        follow(self.target["encoder"], pretrained_module(network), momentum)
        follow(self.target["projector"], self.projector, momentum)
        super().after_step(network)

    @torch.no_grad()
    def diagnostics(self, network: nn.Module, patches: Tensor) -> dict[str, float]:
        """Cosine between the predicted and the target projections of another view."""
        first, second = (view(patches, self.views, self.spacing, self.generator) for _ in range(2))
        predicted = self.predictor(self.online(network, first))
        return {
            "teacher_agreement": float(functional.cosine_similarity(predicted, self.target_projections(second)).mean())
        }

    def embed(self, network: nn.Module, patches: Tensor) -> Tensor:
        """Online projections, in which a collapse shows."""
        return self.online(network, patches)


def byol_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean over a batch (batch, feature) of ‖p/‖p‖ - z/‖z‖‖² = 2 - 2 cos(p, z) (Grill et al. 2020, equation 2)."""
    return 2 - 2 * functional.cosine_similarity(prediction.float(), target.float(), dim=1).mean()
