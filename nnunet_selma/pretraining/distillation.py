"""Self-distillation: a student learns to predict the output of its own moving average, the teacher, for whole views and masked tokens."""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from nnunet_selma.networks.parts import pretrained_module
from nnunet_selma.pretraining.base import Pretext, Task, coarsest, deepest_features, feature_shape, pooled
from nnunet_selma.pretraining.heads import cosine_to_one, follow, mean_over_processes, teacher_of
from nnunet_selma.pretraining.masking import fill_mask, repeated
from nnunet_selma.pretraining.views import view

_CENTRE_MOMENTUM = 0.9
_SINKHORN_ROUNDS = 3


class SelfDistillation(Pretext):
    """DINO (Caron et al. 2021, arXiv 2104.14294) on whole views and iBOT (Zhou et al. 2022, arXiv 2111.07832) on masked tokens, in 3D.

    Team Tonyxu of SELMA3D 2024 (paper, 4.2.4) did so with a vision transformer. Here a token is a place of the encoder's coarsest map:
    a token of a transformer, or a place of a convolutional encoder's deepest features. The voxels of masked tokens are set to zero.
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
                "encoder": teacher_of(pretrained_module(task.network)),
                "heads": teacher_of(self.student),
            }
        )
        for name in self.student:
            self.register_buffer(f"{name}_centre", torch.zeros(self.settings.prototypes, device=task.device))

    def compiled_parts(self, network: nn.Module) -> list[nn.Module]:
        """The encoders of student and teacher."""
        return [pretrained_module(network), self.teacher["encoder"]]

    def forward(self, network: nn.Module, patches: Tensor, structures: Tensor) -> dict[str, Tensor]:
        """Cross entropy of the student's outputs with the teacher's: for other views, and for masked tokens."""
        whole = torch.cat([view(patches, self.views, self.spacing, self.generator) for _ in range(2)])
        encoder = pretrained_module(network)
        with torch.no_grad():
            teachers = coarsest(self.teacher["encoder"](whole))
        masked, places = self.draw_tokens(len(whole), teachers.shape[2:])
        voxels = repeated(masked, self.strides).unsqueeze(1)
        students = coarsest(encoder(fill_mask(whole, voxels, "zeros", self.generator)))
        terms = {"views": self.view_loss(teachers, students, self.local_scores(encoder, patches))}
        # only masked tokens: scores of all tokens for thousands of prototypes would not fit into memory
        teachers_tokens, students_tokens = (
            tokens_of(features).flatten(0, 1)[places] for features in (teachers, students)
        )
        entropy = self.cross_entropy(self.targets(teachers_tokens, "token"), self.student["token"](students_tokens))
        terms["tokens"] = self.settings.patch_weight * entropy.sum() / max(1, len(places))
        return terms

    def view_loss(self, teachers: Tensor, students: Tensor, local: Sequence[Tensor]) -> Tensor:
        """Cross entropy of the student's scores for a whole view, and for small views, with the teacher's for the other whole view.

        Args:
            teachers: the teacher's features of two whole views, (2 × batch, feature, *grid).
            students: the student's features of the same views, masked.
            local: the student's scores for small views, (batch, prototype) each.
        """
        first, second = self.targets(pooled(teachers), "view").chunk(2)
        scores = self.student["view"](pooled(students)).chunk(2)
        pairs = [(first, scores[1]), (second, scores[0])]
        pairs += [(target, small) for target in (first, second) for small in local]
        return torch.stack([self.cross_entropy(target, score).mean() for target, score in pairs]).mean()

    @torch.no_grad()
    def targets(self, features: Tensor, name: str) -> Tensor:
        """The teacher's probabilities (sample, prototype) for features (sample, feature)."""
        heads = cast(nn.ModuleDict, self.teacher["heads"])
        return self.sharpened(heads[name](features), name)

    def local_scores(self, encoder: nn.Module, patches: Tensor) -> Sequence[Tensor]:
        """The student's scores for small views, (batch, prototype) each."""
        count = self.settings.local_crops
        if count == 0:
            return []
        crops = [
            view(patches, self.views, self.spacing, self.generator, crop=self.settings.local_crop, size=self.local_size)
            for _ in range(count)
        ]
        scores: Sequence[Tensor] = self.student["view"](pooled(coarsest(encoder(torch.cat(crops))))).chunk(count)
        return scores

    def draw_tokens(self, count: int, grid: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Masked tokens, bool (count, *grid), and their indices among all tokens of the batch, flattened."""
        tokens = torch.Size(grid).numel()
        order = torch.rand(count, tokens, generator=self.generator, device=self.generator.device).argsort(1)
        low, high = self.settings.mask_ratio
        shares = self.rng.uniform(low, high, size=count)
        counts = [round(float(share) * tokens) for share in shares]
        places = torch.cat([order[n, :length] + n * tokens for n, length in enumerate(counts)])
        masked = torch.zeros(count * tokens, dtype=torch.bool, device=order.device)
        return masked.index_fill(0, places, True).reshape(count, *grid), places

    def sharpened(self, scores: Tensor, name: str) -> Tensor:
        """The teacher's scores (sample, prototype) as probabilities, centred so that no prototype takes over.

        Sinkhorn is used for tokens only, because a few views cannot be spread over all prototypes.
        """
        temperature = self.teacher_temperature()
        if name == "token" and self.settings.centring == "sinkhorn":
            return sinkhorn(scores, temperature)
        centre = cast(Tensor, getattr(self, f"{name}_centre"))
        sharp = ((scores.float() - centre) / temperature).softmax(1)
        if self.training:
            # in every process, even if its views have no masked token, because the others wait for it
            count = mean_over_processes(scores.new_full((), len(scores), dtype=torch.float32))
            mean = mean_over_processes(scores.float().sum(0)) / count.clamp(min=1e-6)
            centre.lerp_(torch.where(count > 0, mean, centre), 1 - _CENTRE_MOMENTUM)
        return sharp

    def teacher_temperature(self) -> float:
        """The teacher's temperature at this step; it rises over the first third of the run."""
        first, last = self.settings.teacher_temperature
        return first + (last - first) * min(1.0, 3 * self.steps_done / max(1, self.steps))

    def cross_entropy(self, targets: Tensor, scores: Tensor) -> Tensor:
        """Cross entropy (sample,) of the student's scores with the teacher's probabilities, (sample, prototype) each."""
        return -(targets * (scores.float() / self.settings.student_temperature).log_softmax(1)).sum(1)

    def after_step(self, network: nn.Module) -> None:
        """Move the teacher towards the student."""
        momentum = cosine_to_one(self.settings.momentum, self.steps_done, self.steps)
        follow(self.teacher["encoder"], pretrained_module(network), momentum)
        follow(self.teacher["heads"], self.student, momentum)
        super().after_step(network)

    @torch.no_grad()
    def diagnostics(self, network: nn.Module, patches: Tensor) -> dict[str, float]:
        """Cosine between the student's and the teacher's features, and the number of prototypes that the teacher uses, exp(entropy)."""
        student = deepest_features(network, patches)
        teacher = coarsest(self.teacher["encoder"](patches))
        agreement = functional.cosine_similarity(tokens_of(student), tokens_of(teacher), dim=2).mean()
        heads = cast(nn.ModuleDict, self.teacher["heads"])
        scores = heads["view"](pooled(teacher)).float() - cast(Tensor, self.view_centre)
        used = (scores / self.teacher_temperature()).softmax(1).mean(0)
        entropy = -(used * used.clamp(min=1e-9).log()).sum()
        return {"teacher_agreement": float(agreement), "prototypes_used": float(entropy.exp())}

    def embed(self, network: nn.Module, patches: Tensor) -> Tensor:
        """Vectors that the student's head compares with prototypes, in which a collapse shows, (batch, bottleneck)."""
        head = cast(PrototypeHead, self.student["view"])
        return head.directions(pooled(deepest_features(network, patches)))


class PrototypeHead(nn.Module):
    """An MLP to vectors of length 1, and their cosines with prototypes (Caron et al. 2021, appendix C)."""

    def __init__(self, inputs: int, hidden: int, bottleneck: int, prototypes: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(inputs, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, bottleneck)
        )
        self.prototypes = nn.Parameter(torch.randn(prototypes, bottleneck))

    def forward(self, features: Tensor) -> Tensor:
        """Cosines, (…, inputs) to (…, prototypes)."""
        return functional.linear(self.directions(features), functional.normalize(self.prototypes, dim=-1))

    def directions(self, features: Tensor) -> Tensor:
        """Vectors of length 1 that are compared with the prototypes, (…, inputs) to (…, bottleneck)."""
        return functional.normalize(self.layers(features), dim=-1)


@torch.no_grad()
def sinkhorn(scores: Tensor, temperature: float) -> Tensor:
    """Probabilities (sample, prototype) that use all prototypes equally (Caron et al. 2020, arXiv 2006.09882; three rounds, as DINOv2)."""
    table = (scores.float() / temperature).log_softmax(1)
    for _ in range(_SINKHORN_ROUNDS):
        # samples of each prototype, up to a factor that cancels in the next line
        columns = mean_over_processes(table.exp().sum(0))
        table = (table - columns.clamp(min=1e-12).log()).log_softmax(1)
    return table.exp()


def local_size(patch: Sequence[int], strides: Sequence[int], share: float) -> list[int]:
    """Shape of small views in voxels: a share of the patch, rounded to whole tokens, at least two along an axis that has two."""
    return [
        stride * min(length // stride, max(2, round(share * length / stride)))
        for length, stride in zip(patch, strides, strict=True)
    ]


def tokens_of(features: Tensor) -> Tensor:
    """A map (batch, feature, *grid) as (batch, token, feature)."""
    return features.flatten(2).transpose(1, 2)
