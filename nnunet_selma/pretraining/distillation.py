"""Self-distillation: a student learns what its own moving average says of whole views and of the tokens it was not shown."""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from nnunet_selma.networks.parts import pretrained_part
from nnunet_selma.pretraining.base import Pretext, Task, coarsest, deepest_features, feature_shape, pooled
from nnunet_selma.pretraining.heads import cosine_to_one, follow, mean_over_processes, teacher_of
from nnunet_selma.pretraining.masking import fill_mask
from nnunet_selma.pretraining.views import view

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

    def called(self, network: nn.Module) -> list[nn.Module]:
        """The encoders of student and teacher."""
        return [network.get_submodule(pretrained_part(network)), self.teacher["encoder"]]

    def forward(self, network: nn.Module, patches: Tensor, structures: Tensor) -> dict[str, Tensor]:
        """Cross entropy of the student's answers with the teacher's: on other views, and on masked tokens."""
        whole = torch.cat([view(patches, self.views, self.spacing, self.generator) for _ in range(2)])
        encoder = network.get_submodule(pretrained_part(network))
        with torch.no_grad():
            wanted = coarsest(self.teacher["encoder"](whole))
        masked, places = self.draw_tokens(len(whole), wanted.shape[2:])
        voxels = masked
        for axis, stride in enumerate(self.strides):
            voxels = voxels.repeat_interleave(stride, dim=axis + 1)
        seen = coarsest(encoder(fill_mask(whole, voxels.unsqueeze(1), "zeros", self.generator)))
        terms = {"views": self.view_loss(wanted, seen, self.local_answers(encoder, patches))}
        # heads look at masked tokens alone: of thousands of prototypes there is no room for all tokens
        hidden, answered = (tokens_of(features).flatten(0, 1)[places] for features in (wanted, seen))
        targets = self.targets(hidden, "token")
        entropy = self.cross_entropy(targets, self.student["token"](answered))
        terms["tokens"] = self.settings.patch_weight * entropy.sum() / max(1, len(places))
        return terms

    def view_loss(self, wanted: Tensor, seen: Tensor, local: Sequence[Tensor]) -> Tensor:
        """Cross entropy of the student's answers to a whole view, and to small ones, with the teacher's to the other whole view."""
        first, second = self.targets(pooled(wanted), "view").chunk(2)
        answers = self.student["view"](pooled(seen)).chunk(2)
        pairs = [(first, answers[1]), (second, answers[0])]
        pairs += [(one, small) for one in (first, second) for small in local]
        return torch.stack([self.cross_entropy(one, other).mean() for one, other in pairs]).mean()

    @torch.no_grad()
    def targets(self, features: Tensor, name: str) -> Tensor:
        """Teacher's answer to features (sample, feature), as probabilities (sample, prototype)."""
        heads = cast(nn.ModuleDict, self.teacher["heads"])
        return self.sharpened(heads[name](features), name)

    def local_answers(self, encoder: nn.Module, patches: Tensor) -> Sequence[Tensor]:
        """The student's answers to small views, (batch, prototypes) each."""
        count = self.settings.local_crops
        if count == 0:
            return []
        crops = [
            view(patches, self.views, self.spacing, self.generator, crop=self.settings.local_crop, size=self.local_size)
            for _ in range(count)
        ]
        answers: Sequence[Tensor] = self.student["view"](pooled(coarsest(encoder(torch.cat(crops))))).chunk(count)
        return answers

    def draw_tokens(self, count: int, grid: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Tokens that the student does not see, bool (count, *grid), and their places among all tokens of the batch in a row."""
        tokens = torch.Size(grid).numel()
        order = torch.rand(count, tokens, generator=self.generator, device=self.generator.device).argsort(1)
        low, high = self.settings.mask_ratio
        shares = self.rng.uniform(low, high, size=count)
        places = torch.cat(
            [
                one[: round(float(share) * tokens)] + n * tokens
                for n, (one, share) in enumerate(zip(order, shares, strict=True))
            ]
        )
        masked = torch.zeros(count * tokens, dtype=torch.bool, device=order.device)
        return masked.index_fill(0, places, True).reshape(count, *grid), places

    def sharpened(self, scores: Tensor, name: str) -> Tensor:
        """The teacher's scores (sample, prototype) as probabilities that no prototype can take over.

        Sinkhorn evens out tokens only: a batch of a few views cannot be spread over all prototypes.
        """
        temperature = self.teacher_temperature()
        if name == "token" and self.settings.centring == "sinkhorn":
            return sinkhorn(scores, temperature)
        centre = cast(Tensor, getattr(self, f"{name}_centre"))
        sharp = ((scores.float() - centre) / temperature).softmax(1)
        if self.training:
            # asked of every process, also of one whose views have no masked token: the others would wait for it
            count = mean_over_processes(scores.new_full((), len(scores), dtype=torch.float32))
            mean = mean_over_processes(scores.float().sum(0)) / count.clamp(min=1e-6)
            centre.lerp_(torch.where(count > 0, mean, centre), 1 - _CENTRE_MOMENTUM)
        return sharp

    def teacher_temperature(self) -> float:
        """Rises over the first third of the run."""
        first, last = self.settings.teacher_temperature
        return first + (last - first) * min(1.0, 3 * self.steps_done / max(1, self.steps))

    def cross_entropy(self, wanted: Tensor, answered: Tensor) -> Tensor:
        """Cross entropy of the student's scores with the teacher's probabilities, (sample, prototype) each; a number per sample."""
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
        student = deepest_features(network, patches)
        teacher = coarsest(self.teacher["encoder"](patches))
        agreement = functional.cosine_similarity(tokens_of(student), tokens_of(teacher), dim=2).mean()
        heads = cast(nn.ModuleDict, self.teacher["heads"])
        scores = heads["view"](pooled(teacher)).float() - cast(Tensor, self.view_centre)
        used = (scores / self.teacher_temperature()).softmax(1).mean(0)
        entropy = -(used * used.clamp(min=1e-9).log()).sum()
        return {"teacher_agreement": float(agreement), "prototypes_used": float(entropy.exp())}

    def embed(self, network: nn.Module, patches: Tensor) -> Tensor:
        """Vectors that the student's head compares with the prototypes, in which a collapse shows, (batch, bottleneck)."""
        head = cast(PrototypeHead, self.student["view"])
        return head.places(pooled(deepest_features(network, patches)))


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
        return functional.linear(self.places(features), functional.normalize(self.prototypes, dim=-1))

    def places(self, features: Tensor) -> Tensor:
        """Vectors of length 1 that are compared with the prototypes, (…, inputs) to (…, bottleneck)."""
        return functional.normalize(self.layers(features), dim=-1)


@torch.no_grad()
def sinkhorn(scores: Tensor, temperature: float) -> Tensor:
    """Probabilities (sample, prototype) that use all prototypes alike (Caron et al. 2020, arXiv 2006.09882; three rounds, as DINOv2)."""
    table = (scores.float() / temperature).log_softmax(1)
    for _ in range(_SINKHORN_ROUNDS):
        columns = mean_over_processes(
            table.exp().sum(0)
        )  # how many samples each prototype has; equal factors cancel in the next line
        table = (table - columns.clamp(min=1e-12).log()).log_softmax(1)
    return table.exp()


def local_size(patch: Sequence[int], strides: Sequence[int], share: float) -> list[int]:
    """The shape of small views: that share of the patch, in whole tokens, at least two along an axis that has two."""
    return [
        stride * min(length // stride, max(2, round(share * length / stride)))
        for length, stride in zip(patch, strides, strict=True)
    ]


def tokens_of(features: Tensor) -> Tensor:
    """A map (batch, feature, *grid) as (batch, token, feature)."""
    return features.flatten(2).transpose(1, 2)
