import pytest
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_selma import cli
from nnunet_selma.errors import SelmaError
from nnunet_selma.nnunet.plans import total_strides
from nnunet_selma.nnunet.settings import read_settings
from nnunet_selma.recipes.recipes import RECIPES, as_table, from_scratch, recipe_named
from nnunet_selma.trainers import TRAINERS
from tests.plans import plans


def both(edge=128):
    """Plans with a 3D and a 2D configuration."""
    content = plans("128×128×112")
    content["configurations"]["2d"] = plans("2d, 256×256")["configurations"]["2d"]
    return content


def test_the_five_teams_are_there_and_ours():
    assert [*RECIPES] == ["zoomlin", "bioAI", "xundj", "tonyxu", "wu", "ours"]
    assert {recipe.network for recipe in RECIPES.values()} == {"plan", "swin_unetr", "vit_adapter", "attention_unet"}
    for recipe in RECIPES.values():
        assert recipe.pretext in TRAINERS
        assert recipe.finetuning in TRAINERS
        assert recipe.differences


@pytest.mark.parametrize("scale", ["tiny", "paper"])
@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_makes_plans_whose_network_takes_the_patch(name, scale):
    recipe = RECIPES[name]
    made = recipe.plans(both(), "mine", scale, {"pretraining": {"seed": 7}})
    assert made["plans_name"] == "mine"
    ((configuration, own),) = made["configurations"].items()
    assert configuration == recipe.configuration
    assert own["data_identifier"] == both()["configurations"][configuration]["data_identifier"]
    assert all(edge % stride == 0 for edge, stride in zip(own["patch_size"], total_strides(own), strict=True))
    settings = read_settings(made)
    assert settings.pretraining.seed == 7
    for section, values in recipe.settings.items():
        for key, value in values.items():
            stored = getattr(getattr(settings, section), key)
            assert (list(stored) if isinstance(value, list) else stored) == value
    if scale == "tiny":
        manager = PlansManager(made)
        net = nnUNetTrainer.build_network_architecture(manager, manager.get_configuration(configuration), 1, 2, False)
        assert net(torch.zeros(1, 1, *own["patch_size"])).shape == (1, 2, *own["patch_size"])


def test_at_tiny_scale_all_have_one_budget():
    budgets = set()
    for recipe in RECIPES.values():
        made = recipe.plans(both(), "mine", "tiny")
        (own,) = made["configurations"].values()
        settings = read_settings(made)
        steps = [r.epochs * r.iterations_per_epoch for r in (settings.pretraining, settings.finetuning)]
        budgets.add((*steps, torch.Size(own["patch_size"]).numel() * own["batch_size"]))
    assert budgets == {(256, 256, 65536)}


def test_a_network_from_scratch_is_trained_as_the_recipe_says():
    scratch = from_scratch(RECIPES["bioAI"])
    assert (scratch.name, scratch.pretext, scratch.finetuning) == ("bioAI-scratch", None, "SelmaFinetuneTrainer")
    one, other = (recipe.plans(both(), "mine", "tiny") for recipe in (scratch, RECIPES["bioAI"]))
    assert one == other


def test_names_and_tables(capsys):
    assert recipe_named("BIOAI") is RECIPES["bioAI"]
    with pytest.raises(SelmaError, match="unknown recipe 'nobody': choose one of zoomlin"):
        recipe_named("nobody")
    assert cli.main(["recipe", "list"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 6
    assert cli.main(["recipe", "show", "tonyxu"]) == 0
    shown = capsys.readouterr().out
    assert "finetuning.learning_rate=0.0001" in shown
    assert "paper: 125,000 iterations" in shown
    assert "why:" in shown
    assert as_table(RECIPES["wu"], "tiny") != as_table(RECIPES["wu"], "paper")
    assert cli.main(["recipe", "show", "nobody"]) == 2


def test_the_teams_fine_tune_as_they_did_whatever_the_defaults_are():
    for recipe in RECIPES.values():
        if recipe.name != "ours":
            finetuning = read_settings(recipe.plans(both(), "mine", "tiny")).finetuning
            assert (finetuning.carry, finetuning.encoder_rate, finetuning.decoder_rate) == ("all", 1.0, 1.0)
            assert not finetuning.calibrate
            assert not finetuning.fit_head
    for name in ("xundj", "bioAI"):
        inpainting = read_settings(RECIPES[name].plans(both(), "mine", "tiny")).inpainting
        assert (inpainting.mask_ratio, inpainting.skips, inpainting.sparse) == (0.6, True, False)
        assert (inpainting.aligned, inpainting.deep_supervision, inpainting.counted) == (False, False, "masked")
