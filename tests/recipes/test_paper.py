"""The recipes at scale "paper" against what the SELMA3D paper says of the five teams.

Sources: the challenge paper (arXiv 2501.03880), table 3 and sections 4.2.1 to 4.2.5, and team XunDJ's own abstract. The tables below hold the
numbers and terms of these texts, read there and not in the package.
"""

from dataclasses import dataclass
from functools import cache

import pytest
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import nn

from nnunet_selma import trainers
from nnunet_selma.finetuning.losses import TERMS
from nnunet_selma.networks.parts import pretrained_part
from nnunet_selma.nnunet.settings import Settings, read_settings
from nnunet_selma.recipes.recipes import RECIPES
from nnunet_selma.trainers.finetune import WarmupPolyLRScheduler
from tests.plans import plans


@dataclass(frozen=True)
class Made:
    """Effective configuration, settings and trainers of a recipe on nnU-Net's plans."""

    configuration: dict
    settings: Settings
    network: nn.Module
    pretext: str
    finetuning: type


@cache
def made(team: str) -> Made:
    """A recipe's plans, the network that nnU-Net builds from them, and the trainers that it would find."""
    recipe = RECIPES[team]
    content = plans("128×128×112")
    content["configurations"]["2d"] = plans("2d, 256×256")["configurations"]["2d"]
    content = recipe.plans(content, "mine", "paper")
    ((name, configuration),) = content["configurations"].items()
    manager = PlansManager(content)
    network = nnUNetTrainer.build_network_architecture(manager, manager.get_configuration(name), 1, 2, False)
    return Made(
        configuration,
        read_settings(content),
        network,
        getattr(trainers, recipe.pretext).pretext_class.rpartition(".")[2],
        getattr(trainers, recipe.finetuning),
    )


def network(one):
    return type(one.network).__name__


def axes(one):
    return len(one.configuration["patch_size"])


def patch(one):
    return one.configuration["patch_size"]


def batch(one):
    return one.configuration["batch_size"]


def pretext(one):
    return one.pretext


def pretraining_epochs(one):
    return one.settings.pretraining.epochs


def pretraining_steps(one):
    return one.settings.pretraining.epochs * one.settings.pretraining.iterations_per_epoch


def finetuning_epochs(one):
    return one.settings.finetuning.epochs


def finetuning_steps(one):
    return one.settings.finetuning.epochs * one.settings.finetuning.iterations_per_epoch


def loss(one):
    return {*TERMS[one.settings.finetuning.loss]}


def optimizer(one):
    return one.settings.finetuning.optimizer


def frozen(one):
    """The part of the network that fine-tuning leaves as it was pretrained."""
    freezes = one.finetuning.configure_optimizers is not trainers.SelmaFinetuneTrainer.configure_optimizers
    return pretrained_part(one.network) if freezes else None


def rates(one):
    """Factors of the learning rate in the pretrained encoder and decoder."""
    return one.settings.finetuning.encoder_rate, one.settings.finetuning.decoder_rate


def tasks(one):
    """The tasks of a pretext of several that have a weight."""
    return {name for name, weight in vars(one.settings.multitask).items() if name != "temperature" and weight > 0}


def fill(one):
    return one.settings.inpainting.fill


def masked_tokens(one):
    return one.settings.distillation.patch_weight > 0


def teacher_moves_slowly(one):
    section = {"Byol": one.settings.byol, "SelfDistillation": one.settings.distillation}[one.pretext]
    return 0.9 < section.momentum < 1


def views_differ_in(one):
    """Changes that tell two views of a slice apart."""
    views = one.settings.views
    changes = {"contrast": views.contrast[0] < 1 < views.contrast[1], "blur": views.blur[1] > 0}
    changes |= {"crop": views.crop != (1, 1), "noise": views.noise > 0}
    return {name for name, happens in changes.items() if happens}


def warmup_steps(one):
    return one.settings.finetuning.warmup_steps


def learning_rate(one):
    return one.settings.finetuning.learning_rate


FULFILLED = [
    ("zoomlin", "table 3", "BYOL", pretext, "Byol"),
    ("zoomlin", "4.2.1", "the target network is a moving average", teacher_moves_slowly, True),
    ("zoomlin", "4.2.1", "U-Net of nnU-Net (reference 46)", network, "PlainConvUNet"),
    ("zoomlin", "4.2.1", "3D", axes, 3),
    ("zoomlin", "4.2.1", "encoder frozen, decoder trained", frozen, "encoder"),
    ("zoomlin", "table 3", "Dice loss", loss, {"dice"}),
    ("bioAI", "table 3", "several pretexts", pretext, "MultiTask"),
    ("bioAI", "4.2.2", "four of them", tasks, {"inpainting", "rotation", "contrast", "structure"}),
    ("bioAI", "4.2.2", "SwinUNETR", network, "SwinUNETR"),
    ("bioAI", "4.2.2", "patches of 96×96×96", patch, [96, 96, 96]),
    ("bioAI", "4.2.2", "100,000 iterations", pretraining_steps, 100_000),
    ("bioAI", "table 3", "focal, Dice and boundary loss", loss, {"focal", "dice", "boundary"}),
    ("bioAI", "table 3", "the whole network is fine-tuned", frozen, None),
    ("bioAI", "table 3", "the whole network is fine-tuned", rates, (1, 1)),
    ("bioAI", "4.2.2", "500 epochs of fine-tuning", finetuning_epochs, 500),
    ("xundj", "table 3", "masked volume inpainting", pretext, "MaskedInpainting"),
    ("xundj", "abstract", "masked regions are set to zero", fill, "zeros"),
    ("xundj", "4.2.3", "SwinUNETR", network, "SwinUNETR"),
    ("xundj", "4.2.3", "64×64×64", patch, [64, 64, 64]),
    ("xundj", "4.2.3", "batch of 4", batch, 4),
    ("xundj", "4.2.3", "100 epochs of pretraining", pretraining_epochs, 100),
    ("xundj", "4.2.3", "2000 epochs of fine-tuning", finetuning_epochs, 2000),
    ("xundj", "4.2.3", "Dice loss", loss, {"dice"}),
    ("xundj", "table 3", "the model is fine-tuned", rates, (1, 1)),
    ("tonyxu", "table 3", "DINOv2", pretext, "SelfDistillation"),
    ("tonyxu", "4.2.4", "the teacher is a moving average", teacher_moves_slowly, True),
    ("tonyxu", "table 3", "iBOT on masked tokens", masked_tokens, True),
    ("tonyxu", "table 3", "ViT, adapter", network, "ViTAdapter"),
    ("tonyxu", "table 3", "3D", axes, 3),
    ("tonyxu", "4.2.4", "125,000 iterations of pretraining", pretraining_steps, 125_000),
    ("tonyxu", "4.2.4", "ViT frozen, adapter and decoder trained", frozen, "encoder.vit"),
    ("tonyxu", "4.2.4", "30,000 iterations of fine-tuning", finetuning_steps, 30_000),
    ("tonyxu", "4.2.4", "Dice and cross entropy", loss, {"dice", "cross_entropy"}),
    ("tonyxu", "4.2.4", "AdamW", optimizer, "adamw"),
    ("tonyxu", "4.2.4", "3,000 iterations of warm-up", warmup_steps, 3000),
    ("tonyxu", "4.2.4", "1×10⁻⁴", learning_rate, 1e-4),
    ("wu", "table 3", "SimCLR", pretext, "Simclr"),
    ("wu", "4.2.5", "contrast enhancement and Gaussian blur", views_differ_in, {"contrast", "blur"}),
    ("wu", "4.2.5", "attention U-Net", network, "AttentionUNet"),
    ("wu", "4.2.5", "2D", axes, 2),
    ("wu", "table 3", "256²", patch, [256, 256]),
    ("wu", "table 3", "focal and Dice loss", loss, {"focal", "dice"}),
    ("wu", "table 3", "the whole network is fine-tuned", frozen, None),
    ("wu", "table 3", "the whole network is fine-tuned", rates, (1, 1)),
]
"""Team, place in the paper, fact, what shows it, and its value."""

DIFFERENT = [
    ("zoomlin", "table 3", "volumes", ("TIFF", "JPG")),
    ("bioAI", "4.2.2", "pretext", ("contrastive predictive coding",)),
    ("bioAI", "4.2.2", "volumes", ("90,000", "400³", "2,000")),
    ("bioAI", "4.2.2", "models", ("c-Fos alone", "80 / 10 / 10 %")),
    ("bioAI", "4.2.2", "prediction", ("DenseNet", "5 voxels")),
    ("xundj", "table 3", "volumes", ("a third of width and height", "PNG")),
    ("xundj", "table 3", "augmentation", ("cropping", "padding", "flipping", "rotation", "intensity")),
    ("xundj", "abstract", "fine-tuning", ("best and last checkpoint",)),
    ("tonyxu", "4.2.4", "volumes", ("300,000", "128³", "10 %", "500")),
    ("tonyxu", "4.2.4", "intensities", ("0.05", "99.95", "-1 to 1")),
    ("tonyxu", "4.2.4", "augmentation and folds", ("affine", "contrast", "Gaussian noise", "flips", "three folds")),
    ("tonyxu", "4.2.4", "fine-tuning", ("warmed up to 1e-4 over 3,000",)),
    ("wu", "table 3", "volumes", ("a quarter",)),
    ("wu", "table 3", "patch", ("256²",)),
]
"""Team, place in the paper, row of `recipe show`, and what the row must tell of the paper."""


@pytest.mark.parametrize(("team", "place", "fact", "shown_by", "value"), FULFILLED)
def test_a_fact_of_the_paper_is_fulfilled(team, place, fact, shown_by, value):
    assert shown_by(made(team)) == value


@pytest.mark.parametrize(("team", "place", "row", "words"), DIFFERENT)
def test_what_differs_from_the_paper_is_listed(team, place, row, words):
    (difference,) = [difference for difference in RECIPES[team].differences if difference.what == row]
    assert [word for word in words if word not in difference.paper] == []
    assert difference.here not in ("", "the same")


def test_the_patch_of_tonyxu_is_that_of_the_paper_where_the_plans_reach_it():
    """128³ (4.2.4); these plans have 112 voxels along their last axis, and the row "patch" tells that the plans may be smaller."""
    assert patch(made("tonyxu")) == [128, 128, 112]
    assert "the plan's where that is shorter" in next(
        d.here for d in RECIPES["tonyxu"].differences if d.what == "patch"
    )


def test_the_warm_up_of_tonyxu_ends_as_its_difference_says():
    """4.2.4: up to 1×10⁻⁴ over the first 3,000 iterations; nnU-Net's decay has begun by then, which leaves about 0.9×10⁻⁴."""
    finetuning = made("tonyxu").settings.finetuning
    adamw = torch.optim.AdamW([nn.Parameter(torch.zeros(1))])
    schedule = WarmupPolyLRScheduler(
        adamw,
        finetuning.learning_rate,
        finetuning.epochs,
        steps_per_epoch=finetuning.iterations_per_epoch,
        warmup_steps=finetuning.warmup_steps,
    )
    taken = []
    for epoch in range(finetuning.epochs):
        schedule.step(epoch)
        for _ in range(finetuning.iterations_per_epoch):
            schedule.before_step()
            taken.append(adamw.param_groups[0]["lr"])
    assert max(taken) == pytest.approx(0.9e-4, abs=0.02e-4)
    assert abs(taken.index(max(taken)) - 3000) <= finetuning.iterations_per_epoch


def test_every_team_of_the_paper_has_a_recipe():
    """Table 3 lists five; "ours" is none of them."""
    assert {team for team, *_ in FULFILLED} == {*RECIPES} - {"ours"}
