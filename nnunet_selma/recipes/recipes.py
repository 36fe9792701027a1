"""The five systems of SELMA3D 2024 and ours, each a named triple of network, pretext and fine-tuning, with settings.

Source: the challenge paper (arXiv 2501.03880), section 4.2 and table 3. A recipe adds no code: its parts combine with every other's.
"""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any, Literal

from nnunet_selma.errors import SelmaError
from nnunet_selma.networks.designs import network_plans
from nnunet_selma.nnunet.plans import Plans, fitting_patch, own_configuration, small_plans, total_strides
from nnunet_selma.nnunet.settings import with_settings

Scale = Literal["tiny", "paper"]
SettingsChange = Mapping[str, Mapping[str, Any]]
"""Section of the settings to setting to value."""


def merged(*changes: SettingsChange) -> dict[str, dict[str, Any]]:
    """All changes together; a later one replaces an earlier one."""
    sections: dict[str, dict[str, Any]] = {}
    for change in changes:
        for section, values in change.items():
            sections.setdefault(section, {}).update(values)
    return sections


@dataclass(frozen=True, kw_only=True)
class Size:
    """Size of a recipe's network, patch and batch; None: that of the plans or of the network."""

    patch_edge: int | None = None
    batch_size: int | None = None
    features: tuple[int, ...] | None = None
    """Features of each stage of nnU-Net's own network, a single number for the others."""
    settings: SettingsChange = field(default_factory=dict)
    """Settings of this scale, above all the length of the runs."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One row of `recipe show`: what the paper says, what is done here, and why it differs."""

    what: str
    paper: str
    here: str
    why: str = ""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A method."""

    name: str
    title: str
    network: str
    """"plan" for the network nnU-Net configured, or a name of `nnunet_selma.networks`."""
    configuration: str = "3d_fullres"
    pretext: str | None
    """Trainer that pretrains; None trains from random weights."""
    finetuning: str = "SelmaFinetuneTrainer"
    """Trainer that fine-tunes."""
    settings: SettingsChange = field(default_factory=dict)
    """Settings that make the method what it is, at every scale."""
    paper: Size
    tiny: Size
    differences: tuple[Difference, ...] = ()

    def size(self, scale: Scale) -> Size:
        """Sizes at a scale."""
        return {"tiny": self.tiny, "paper": self.paper}[scale]

    def plans(self, plans: Plans, name: str, scale: Scale, changes: SettingsChange | None = None) -> Plans:
        """The recipe's plans, made from nnU-Net's own; preprocessed data are shared.

        Args:
            plans: plans of the annotated dataset, or its plans for pretraining.
            name: name of the new plans.
            scale: "tiny" or "paper".
            changes: further settings, which go before the recipe's.

        Raises:
            SelmaError: the plans do not have the recipe's configuration, or a network's extra is missing.
        """
        size = self.size(scale)
        if self.network != "plan":
            made = network_plans(
                plans,
                name,
                network=self.network,
                configuration=self.configuration,
                patch_edge=size.patch_edge,
                batch_size=size.batch_size,
                features=size.features[0] if size.features else None,
            )
        elif size.features is not None:
            made = small_plans(
                plans,
                name,
                configuration=self.configuration,
                patch_edge=size.patch_edge or 32,
                batch_size=size.batch_size or 2,
                features=size.features,
            )
        else:
            made = _with_patch(plans, name, self.configuration, size)
        for settings in (self.settings, size.settings, changes or {}):
            made = with_settings(made, settings)
        return made


def _with_patch(plans: Plans, name: str, configuration: str, size: Size) -> Plans:
    made = deepcopy(plans)
    planned = own_configuration(made, configuration)
    made |= {"plans_name": name, "configurations": {configuration: planned}}
    if size.patch_edge is not None:
        planned["patch_size"] = fitting_patch([size.patch_edge] * len(planned["patch_size"]), total_strides(planned))
    planned["batch_size"] = size.batch_size or planned["batch_size"]
    return made


def run_length(epochs: int, iterations: int, *, validation: int = 4, every: int = 10) -> dict[str, int]:
    """The settings of a run of that many epochs of that many steps."""
    return {
        "epochs": epochs,
        "iterations_per_epoch": iterations,
        "validation_iterations": validation,
        "save_every": every,
    }


_TINY = {"pretraining": run_length(8, 32, every=4), "finetuning": run_length(8, 32, every=4)}
"""256 steps each: minutes on two cores, and nowhere near what a method can do."""
_TINY_UNET = Size(patch_edge=32, batch_size=2, features=(16, 32, 64), settings=_TINY)
_ADAMW_PRETRAINING = {"pretraining": {"optimizer": "adamw", "learning_rate": 3e-4}}
"""Settings of nnU-Net's own transformers; with its SGD and a momentum of 0.99, pretexts that compare views collapse."""
_FINETUNED = {"carry": "all", "encoder_rate": 1.0, "decoder_rate": 1.0, "fit_head": False, "calibrate": False}
_INPAINTED = {
    "mask_ratio": 0.6,
    "standardise": True,
    "skips": True,
    "sparse": False,
    "aligned": False,
    "deep_supervision": False,
    "counted": "masked",
}
"""Settings of the teams that are written out, so that they stay theirs when the defaults of this package change."""
_NOT_SAID = "not stated"
_SLICES = Difference(
    what="volumes",
    paper="",
    here="tiles rich in tissue, full resolution, uint16",
    why="the converters choose and read them; nothing is lost",
)


def _volumes(paper: str) -> Difference:
    return Difference(what=_SLICES.what, paper=paper, here=_SLICES.here, why=_SLICES.why)


_OPTIMISER = Difference(
    what="pretraining, optimiser and length",
    paper=_NOT_SAID,
    here="AdamW, 3e-4; 1000 epochs of 250 steps",
    why="nnU-Net's SGD with a momentum of 0.99 makes views collapse; the length is nnU-Net's own",
)
_ADAMW = Difference(what="optimiser", paper=_NOT_SAID, here="AdamW, as nnU-Net trains its own transformers")
_PATCH = Difference(
    what="patch",
    paper="",
    here="the recipe's edge, or the plan's where that is shorter",
    why="patches of the annotated data are as small as 50 voxels",
)
_FINETUNING_LENGTH = Difference(
    what="fine-tuning, length",
    paper=_NOT_SAID,
    here="1000 epochs of 250 steps, batch of the plans",
    why="nnU-Net's own",
)

RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            name="zoomlin",
            title="Zoomlin, first: BYOL and a frozen encoder",
            network="plan",
            pretext="SelmaSSLTrainer_BYOL",
            finetuning="SelmaFinetuneTrainer_FrozenEncoder",
            settings={"finetuning": {**_FINETUNED, "loss": "dice"}, **_ADAMW_PRETRAINING},
            paper=Size(),
            tiny=_TINY_UNET,
            differences=(
                Difference(what="network", paper="3D U-Net", here="the U-Net that nnU-Net configures"),
                Difference(
                    what="pretext",
                    paper="BYOL: online and target network, target by exponential moving average, mean squared error of features",
                    here="the same; momentum 0.996 to 1, layer norm in the heads, mean and maximum pooled",
                    why="batches of two have no statistics for batch norm, and instance norm leaves little of a patch in the mean alone",
                ),
                _volumes("slices converted from TIFF to JPG, stacked to volumes"),
                _OPTIMISER,
                Difference(what="fine-tuning", paper="encoder frozen, decoder trained with Dice loss", here="the same"),
                _FINETUNING_LENGTH,
            ),
        ),
        Recipe(
            name="bioAI",
            title="BioAI, second: four pretexts and Swin UNETR",
            network="swin_unetr",
            pretext="SelmaSSLTrainer_MultiTask",
            settings={
                "finetuning": {**_FINETUNED, "loss": "dice_focal_boundary"},
                "inpainting": _INPAINTED,
                **_ADAMW_PRETRAINING,
            },
            paper=Size(
                patch_edge=96,
                settings={"pretraining": {"epochs": 400, "iterations_per_epoch": 250}, "finetuning": {"epochs": 500}},
            ),
            tiny=Size(patch_edge=32, batch_size=2, features=(12,), settings=_TINY),
            differences=(
                Difference(
                    what="network",
                    paper="SwinUNETR",
                    here="Swin UNETR of MONAI's blocks, with outputs for deep supervision",
                ),
                Difference(
                    what="pretext",
                    paper="inpainting, rotation, contrastive predictive coding, and biological structure classification",
                    here="the same four, equal weights; contrast is NT-Xent between two views, as in Tang et al.",
                    why="Tang et al. call that contrastive coding; weights are not stated",
                ),
                _volumes("90,000 sub-volumes of about 400³, about 2,000 of them used, patches of 96³"),
                Difference(what="pretraining, length", paper="100,000 iterations", here="400 epochs of 250 steps"),
                Difference(
                    what="fine-tuning",
                    paper="whole network, focal, Dice and boundary loss, 500 epochs",
                    here="the same; an epoch is 250 steps",
                    why="the length of their epoch is not stated",
                ),
                _PATCH,
                _ADAMW,
                Difference(
                    what="models",
                    paper="one trained on c-Fos alone, another on all annotated data; split 80 / 10 / 10 %",
                    here="one model on all of it, nnU-Net's folds; train another with --structures cfos_neuron",
                ),
                Difference(
                    what="prediction",
                    paper="a DenseNet tells c-Fos from the rest and picks one of the two; pieces under 5 voxels are removed",
                    here="not part of run or challenge: nnunet-selma train-router, and predict-routed --remove-below 5",
                ),
            ),
        ),
        Recipe(
            name="xundj",
            title="XunDJ: masked volume inpainting and Swin UNETR",
            network="swin_unetr",
            pretext="SelmaSSLTrainer",
            settings={
                "finetuning": {**_FINETUNED, "loss": "dice"},
                "inpainting": {**_INPAINTED, "fill": "zeros"},
                **_ADAMW_PRETRAINING,
            },
            paper=Size(
                patch_edge=64,
                batch_size=4,
                settings={"pretraining": {"epochs": 100}, "finetuning": {"epochs": 2000}},
            ),
            tiny=Size(patch_edge=32, batch_size=2, features=(12,), settings=_TINY),
            differences=(
                Difference(what="network", paper="Swin UNETR, input 64×64×64", here="the same, of MONAI's blocks"),
                Difference(
                    what="pretext",
                    paper="masked self-supervised learning that sets regions to zero instead of inpainting them",
                    here="blocks of 4, 8 or 16 voxels, 60 % of the volume, set to zero of a patch that was brought to mean 0 and standard deviation 1",
                    why="sizes and share are not stated",
                ),
                _volumes("planes reduced to a third of width and height, PNG, patches of 64³ after normalisation"),
                Difference(
                    what="length",
                    paper="100 epochs, then 2000, batch of 4",
                    here="the same; an epoch is 250 steps",
                    why="theirs is not stated",
                ),
                Difference(
                    what="augmentation",
                    paper="random cropping, padding, flipping, rotation, intensity",
                    here="nnU-Net's, which has all of these and more",
                ),
                _PATCH,
                _ADAMW,
                Difference(
                    what="fine-tuning",
                    paper="Dice loss; best and last checkpoint",
                    here="Dice loss; nnU-Net keeps both",
                ),
            ),
        ),
        Recipe(
            name="tonyxu",
            title="Tonyxu: DINOv2 with iBOT in 3D, a frozen transformer and an adapter",
            network="vit_adapter",
            pretext="SelmaSSLTrainer_SelfDistillation",
            finetuning="SelmaFinetuneTrainer_FrozenEncoder",
            settings={
                "finetuning": {**_FINETUNED, "loss": "dice_ce", "optimizer": "adamw", "learning_rate": 1e-4},
                "distillation": {"centring": "sinkhorn"},
                **_ADAMW_PRETRAINING,
            },
            paper=Size(
                patch_edge=128,
                settings={
                    "pretraining": {"epochs": 500, "iterations_per_epoch": 250},
                    "distillation": {"prototypes": 65536, "hidden": 2048, "bottleneck": 256},
                    "finetuning": {"epochs": 120, "iterations_per_epoch": 250, "warmup_steps": 3000},
                },
            ),
            tiny=Size(patch_edge=32, batch_size=2, features=(96,), settings=_TINY),
            differences=(
                Difference(
                    what="network",
                    paper="3D ViT, a lightweight adapter, a convolutional decoder",
                    here="ViT-S with tokens of 8³ voxels, adapter at strides 1 to 4, U-Net decoder",
                    why="the size of their transformer is not stated",
                ),
                Difference(
                    what="pretext",
                    paper="DINOv2's self-distillation with an exponential moving average teacher, and iBOT on masked patches",
                    here="the same two losses; Sinkhorn for tokens, a moving centre for views; without DINOv2's KoLeo term",
                    why="a batch of a few views cannot be spread over all prototypes",
                ),
                _volumes("300,000 patches of 128³ of which more than 10 % of the voxels are above an intensity of 500"),
                Difference(what="pretraining, length", paper="125,000 iterations", here="500 epochs of 250 steps"),
                Difference(
                    what="intensities",
                    paper="percentiles 0.05 to 99.95 scaled to -1 to 1",
                    here="nnU-Net's normalisation of the plans",
                    why="one preprocessing serves all recipes",
                ),
                Difference(
                    what="fine-tuning",
                    paper="ViT frozen; Dice and cross entropy, AdamW, 30,000 iterations, learning rate warmed up to 1e-4 over 3,000",
                    here="120 epochs of 250 steps, warm-up over 3,000 steps to about 0.9e-4",
                    why="nnU-Net's decay begins with the first epoch",
                ),
                Difference(
                    what="augmentation and folds",
                    paper="affine, contrast, Gaussian noise, flips; three folds stratified by structure",
                    here="nnU-Net's augmentation, which has all of these; folds stratified by structure, five by default",
                ),
                _PATCH,
            ),
        ),
        Recipe(
            name="wu",
            title="Wu: SimCLR on slices and an attention U-Net",
            network="attention_unet",
            configuration="2d",
            pretext="SelmaSSLTrainer_SimCLR",
            settings={
                **_ADAMW_PRETRAINING,
                "finetuning": {**_FINETUNED, "loss": "dice_focal"},
                "views": {"crop": [1.0, 1.0], "noise": 0.0, "blur": [0.0, 2.0], "contrast": [0.5, 1.6]},
            },
            paper=Size(patch_edge=256),
            tiny=Size(patch_edge=64, batch_size=16, features=(16,), settings=_TINY),
            differences=(
                Difference(
                    what="network",
                    paper="2D attention U-Net",
                    here="the same, of MONAI's blocks, in nnU-Net's 2d configuration",
                ),
                Difference(
                    what="pretext",
                    paper="SimCLR between a contrast-enhanced and a blurred version of a slice",
                    here="both views get random contrast and blur, and are mirrored",
                    why="one recipe for both views is SimCLR's own",
                ),
                _volumes("planes reduced to a quarter of their size"),
                Difference(
                    what="patch",
                    paper="slices resized to 256²",
                    here="patches of 256² of nnU-Net's 2d data",
                    why="resizing would change the voxel size between structures",
                ),
                _OPTIMISER,
                Difference(what="fine-tuning", paper="whole network, focal and Dice loss", here="the same"),
                _FINETUNING_LENGTH,
            ),
        ),
        Recipe(
            name="ours",
            title="ours: inpainting in the unit of the volume, on nnU-Net's own network",
            network="plan",
            pretext="SelmaSSLTrainer",
            paper=Size(),
            tiny=_TINY_UNET,
            differences=(
                Difference(
                    what="pretext",
                    paper="section 6 asks for learning that is specific to light-sheet structures",
                    here="the defaults of SelmaSSLTrainer: 30 % masked, every voxel counts, and how bright a patch is within its volume must be told",
                    why="instance norm takes brightness out, and bright is what is stained (docs/results.md says what was compared)",
                ),
                Difference(
                    what="fine-tuning",
                    paper="",
                    here="the defaults of SelmaFinetuneTrainer: the heads are fitted first, what was pretrained learns at 0.03 of the rate, then the decision threshold is fitted",
                ),
            ),
        ),
    )
}


def recipe_named(name: str) -> Recipe:
    """The recipe of that name, whatever its capitals; raises `SelmaError` that lists the known ones."""
    recipe = {known.lower(): recipe for known, recipe in RECIPES.items()}.get(name.lower())
    if recipe is None:
        raise SelmaError(f"unknown recipe {name!r}: choose one of {', '.join(RECIPES)}")
    return recipe


def from_scratch(recipe: Recipe) -> Recipe:
    """The same network, wholly trained from random weights with the recipe's loss and settings."""
    return Recipe(
        name=f"{recipe.name}-scratch",
        title=f"{recipe.title}; from random weights",
        network=recipe.network,
        configuration=recipe.configuration,
        pretext=None,
        settings=recipe.settings,
        paper=recipe.paper,
        tiny=recipe.tiny,
    )


def as_table(recipe: Recipe, scale: Scale) -> str:
    """Text of `recipe show`: the parts, the settings, and the paper's words beside what is done."""
    size = recipe.size(scale)
    lines = [
        recipe.title,
        f"  network      {recipe.network}, {recipe.configuration}",
        f"  pretext      {recipe.pretext or 'none'}",
        f"  fine-tuning  {recipe.finetuning}",
        f"  {scale}: patch {size.patch_edge or 'of the plans'}, batch {size.batch_size or 'of the plans'}, features {size.features or 'of the network'}",
    ]
    for settings in (recipe.settings, size.settings):
        lines += [f"  {section}.{key}={value}" for section, values in settings.items() for key, value in values.items()]
    for row in recipe.differences:
        lines += [
            "",
            row.what,
            *([f"  paper: {row.paper}"] if row.paper else []),
            f"  here:  {row.here}",
            *([f"  why:   {row.why}"] if row.why else []),
        ]
    return "\n".join(lines)
