import pytest

from nnunet_selma.errors import SelmaError
from nnunet_selma.nnunet.settings import Settings, as_lines, parse_assignments, read_settings, with_settings


def test_defaults_where_the_plans_say_nothing():
    assert read_settings({}) == Settings()


def test_what_is_set_is_read_back_and_the_plans_are_not_changed():
    plans = {"plans_name": "p"}
    changed = with_settings(
        plans,
        parse_assignments(["finetuning.epochs=20", "inpainting.block_edges=[2, 3]", "finetuning.pretrained=/a/b.pth"]),
    )
    settings = read_settings(changed)
    assert (settings.finetuning.epochs, settings.inpainting.block_edges, settings.finetuning.pretrained) == (
        20,
        (2, 3),
        "/a/b.pth",
    )
    assert plans == {"plans_name": "p"}
    assert read_settings(with_settings(changed, {"finetuning": {"epochs": 3}})).inpainting.block_edges == (2, 3)


def test_lines_are_assignments():
    lines = as_lines(Settings())
    assert read_settings(with_settings({}, parse_assignments(lines))) == Settings()
    assert "inpainting.mask_ratio=0.3" in lines


@pytest.mark.parametrize(
    ("assignment", "match"),
    [
        ("finetuning.epoch=3", "'epoch' is no setting of finetuning"),
        ("training.epochs=3", "no section"),
        ("epochs=3", "write section"),
        ("inpainting.mask_ratio=2", "between 0 and 1"),
        ("pretraining.epochs=0", "pretraining.epochs is 0; give at least 1"),
        ("pretraining.epochs=abc", 'cannot be "abc"; it is a whole number or null'),
        ("pretraining.seed=null", "it is a whole number"),
        ("finetuning.warmup_steps=-1", "0 or more"),
        ("finetuning.save_every=0", "at least 1"),
        ("inpainting.block_edges=8", "a list like"),
        ("inpainting.mask_ratio=high", "it is a number"),
        ("inpainting.standardise=1", "true or false"),
        ("pretraining.epochs=true", "whole number"),
    ],
)
def test_what_does_not_exist_or_makes_no_sense_is_refused(assignment, match):
    with pytest.raises(SelmaError, match=match):
        with_settings({}, parse_assignments([assignment]))


def test_plans_with_a_setting_of_an_earlier_version_are_read_with_a_sentence(capsys):
    stored = {"inpainting": {"block_shape": [2, 4, 4], "mask_ratio": 0.5}, "finetuning": {"validation_mirroring": None}}
    assert read_settings({"selma": stored}).inpainting.mask_ratio == 0.5
    assert capsys.readouterr().err.splitlines() == [
        "nnunet-selma: inpainting.block_shape was removed and is ignored; blocks are cubes of inpainting.block_edges"
    ]
    changed = with_settings({"selma": stored}, {"finetuning": {"epochs": 3}})
    assert changed["selma"] == {"inpainting": {"mask_ratio": 0.5}, "finetuning": {"epochs": 3}}
    with pytest.raises(SelmaError, match="'block_shape' is no setting of inpainting"):
        with_settings({}, {"inpainting": {"block_shape": [2, 4, 4]}})
