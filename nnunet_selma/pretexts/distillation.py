"""Self-distillation: a student learns what its own moving average says of whole views and of the tokens it was not shown."""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from nnunet_selma.masking import fill_mask
from nnunet_selma.pretexts.base import Pretext, Task, feature_shape, pooled, pretrained_part
from nnunet_selma.pretexts.heads import cosine_to_one, follow, mean_over_processes, teacher_of
from nnunet_selma.pretexts.views import view

_CENTRE_MOMENTUM = 0.9
_SINKHORN_ROUNDS = 3


class SelfDistillation(Pretext):
    """DINO (Caron et al. 2021, arXiv 2104.14294) on whole views and iBOT (Zhou et al. 2022, arXiv 2111.07832) on masked tokens, in 3D.

    Team Tonyxu of SELMA3D 2024 (paper, 4.2.4) did so with a vision transformer. A token is a place of the encoder's coarsest map: of a
    transformer its tokens, of a convolutional encoder its deepest features; the voxels below masked tokens are set to zero.
    """

    trains_decoder = False

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        self.settings, self.views, self.spacing = task.settings.distillation, task.settings.views, task.spacing
        features, *grid = feature_shape(task)
        self.strides = [length // tokens for length, tokens in zip(task.patch, grid, strict=True)]
        self.local_size = local_size(task.patch, self.strides, max(self.settings.local_crop))
        outputs = self.settings.hidden, self.settings.bottleneck, self.settings.prototypes
        self.student = nn.ModuleDict(
            {"view": PrototypeHead(2 * features, *outputs), "token": PrototypeHead(features, *outputs)}
        )
        self.teacher = nn.ModuleDict(
            {
                "encoder": teacher_of(task.network.get_submodule(pretrained_part(task.network))),
                "heads": teacher_of(self.student),
            }
        )
        for name in self.student:
            self.register_buffer(f"{name}_centre", torch.zeros(self.settings.prototypes, device=task.device))

    def forward(self, network: nn.Module, patches: Tensor, structures: Tensor) -> dict[str, Tensor]:
        """Cross entropy of the student's answers with the teacher's: on other views, and on masked tokens."""
        globals_ = torch.cat([view(patches, self.views, self.spacing, self.generator) for _ in range(2)])
        encoder = network.get_submodule(pretrained_part(network))
        with torch.no_grad():
            wanted = _map(self.teacher["encoder"](globals_))
            heads = cast(nn.ModuleDict, self.teacher["heads"])
            of_views = self.sharpened(heads["view"](pooled(wanted)), "view")
            of_tokens = self.sharpened(heads["token"](_tokens(wanted)).flatten(0, 1), "token")
        masked = self.draw_tokens(len(globals_), wanted.shape[2:])
        voxels = masked
        for axis, stride in enumerate(self.strides):
            voxels = voxels.repeat_interleave(stride, dim=axis + 1)
        seen = _map(encoder(fill_mask(globals_, voxels.unsqueeze(1), "zeros", self.generator)))
        answers = [self.student["view"](pooled(seen)).chunk(2), self.local_answers(encoder, patches)]
        of_two = of_views.chunk(2)
        pairs = [(of_two[0], answers[0][1]), (of_two[1], answers[0][0])]
        pairs += [(one, local) for one in of_two for local in answers[1]]
        image = torch.stack([self.cross_entropy(one, other).mean() for one, other in pairs]).mean()
        token = self.cross_entropy(of_tokens, self.student["token"](_tokens(seen)).flatten(0, 1))
        weights = masked.flatten().float()
        return {
            "views": image,
            "tokens": self.settings.patch_weight * (token * weights).sum() / weights.sum().clamp(min=1),
        }

    def local_answers(self, encoder: nn.Module, patches: Tensor) -> Sequence[Tensor]:
        """The student's answers to small views, (batch, prototypes) each."""
        count = self.settings.local_crops
        if count == 0:
            return []
        crops = [
            view(patches, self.views, self.spacing, self.generator, crop=self.settings.local_crop, size=self.local_size)
            for _ in range(count)
        ]
        answers: Sequence[Tensor] = self.student["view"](pooled(_map(encoder(torch.cat(crops))))).chunk(count)
        return answers

    def draw_tokens(self, count: int, grid: Sequence[int]) -> Tensor:
        """Tokens that the student does not see, bool (count, *grid)."""
        tokens = torch.Size(grid).numel()
        low, high = self.settings.mask_ratio
        order = torch.rand(count, tokens, generator=self.generator, device=self.generator.device).argsort(1).argsort(1)
        masked = [round(float(share) * tokens) for share in self.rng.uniform(low, high, size=count)]
        return torch.stack([o < m for o, m in zip(order, masked, strict=True)]).reshape(count, *grid)

    def sharpened(self, scores: Tensor, name: str) -> Tensor:
        """The teacher's scores (sample, prototype) as probabilities that no prototype can take over."""
        temperature = self.teacher_temperature()
        if self.settings.centring == "sinkhorn":
            return sinkhorn(scores, temperature)
        centre = cast(Tensor, getattr(self, f"{name}_centre"))
        sharp = ((scores.float() - centre) / temperature).softmax(1)
        if self.training:
            mean = mean_over_processes(scores.float().mean(0))
            centre.mul_(_CENTRE_MOMENTUM).add_(mean, alpha=1 - _CENTRE_MOMENTUM)
        return sharp

    def teacher_temperature(self) -> float:
        """Rises over the first third of the run."""
        first, last = self.settings.teacher_temperature
        return first + (last - first) * min(1.0, 3 * self.steps_done / max(1, self.steps))

    def cross_entropy(self, wanted: Tensor, answered: Tensor) -> Tensor:
        """Of the student's scores with the teacher's probabilities, (sample, prototype) each; one number a sample."""
        return -(wanted * (answered.float() / self.settings.student_temperature).log_softmax(1)).sum(1)

    def after_step(self, network: nn.Module) -> None:
        """Let the teacher follow."""
        momentum = cosine_to_one(self.settings.momentum, self.steps_done, self.steps)
        follow(self.teacher["encoder"], network.get_submodule(pretrained_part(network)), momentum)
        follow(self.teacher["heads"], self.student, momentum)
        super().after_step(network)

    @torch.no_grad()
    def diagnostics(self, network: nn.Module, patches: Tensor) -> dict[str, float]:
        """Cosine between student's and teacher's features of one patch, and how many prototypes the teacher uses (e to the entropy)."""
        student = _map(network.get_submodule(pretrained_part(network))(patches))
        teacher = _map(self.teacher["encoder"](patches))
        agreement = functional.cosine_similarity(_tokens(student).flatten(0, 1), _tokens(teacher).flatten(0, 1)).mean()
        heads = cast(nn.ModuleDict, self.teacher["heads"])
        used = self.sharpened(heads["token"](_tokens(teacher)).flatten(0, 1), "token").mean(0)
        entropy = -(used * used.clamp(min=1e-9).log()).sum()
        return {"teacher_agreement": float(agreement), "prototypes_used": float(entropy.exp())}


class PrototypeHead(nn.Module):
    """An MLP, a bottleneck of length 1, and its cosines with prototypes (Caron et al. 2021, appendix C)."""

    def __init__(self, inputs: int, hidden: int, bottleneck: int, prototypes: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(inputs, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, bottleneck)
        )
        self.prototypes = nn.Parameter(torch.randn(prototypes, bottleneck))

    def forward(self, features: Tensor) -> Tensor:
        """Cosines, (…, inputs) to (…, prototypes)."""
        places = functional.normalize(self.layers(features), dim=-1)
        return functional.linear(places, functional.normalize(self.prototypes, dim=-1))


@torch.no_grad()
def sinkhorn(scores: Tensor, temperature: float) -> Tensor:
    """Probabilities (sample, prototype) that use all prototypes alike (Caron et al. 2020, arXiv 2006.09882; three rounds, as DINOv2)."""
    table = (scores.float() / temperature).log_softmax(1)
    samples = mean_over_processes(torch.tensor(float(len(scores)), device=scores.device))
    for _ in range(_SINKHORN_ROUNDS):
        columns = mean_over_processes(table.exp().sum(0)) / samples  # each prototype's share of the samples
        table = (table - columns.clamp(min=1e-12).log()).log_softmax(1)
    return table.exp()


def local_size(patch: Sequence[int], strides: Sequence[int], share: float) -> list[int]:
    """The shape of small views: that share of the patch, in whole tokens, at least two along an axis that has two."""
    return [
        stride * min(length // stride, max(2, round(share * length / stride)))
        for length, stride in zip(patch, strides, strict=True)
    ]


def _map(maps: Tensor | Sequence[Tensor]) -> Tensor:
    return maps if isinstance(maps, Tensor) else maps[-1]


def _tokens(features: Tensor) -> Tensor:
    """A map (batch, feature, *grid) as (batch, token, feature)."""
    return features.flatten(2).transpose(1, 2)
