"""A challenge goes on with what it has done, and refuses to mix results."""

from dataclasses import replace

import pytest

from nnunet_selma.errors import SelmaError
from nnunet_selma.recipes.challenge import Challenge, usual_arms
from nnunet_selma.recipes.challenge.data import ChallengeData
from nnunet_selma.running.json_files import read_json, write_json


@pytest.fixture
def challenge(tmp_path):
    data = ChallengeData.below(tmp_path / "data", tile=32, tiles_per_volume=1)
    return Challenge(data=data, output=tmp_path / "out", arms=usual_arms(["xundj"]))


def test_the_same_challenge_goes_on_and_another_arm_may_join(challenge):
    challenge.check_same_run()
    challenge.check_same_run()
    replace(challenge, arms=usual_arms(["wu"])).check_same_run()
    noted = read_json(challenge.output / "challenge.json")
    assert set(noted["arms"]) == {"xundj", "xundj-scratch", "wu", "wu-scratch"}


def test_words_that_no_result_depends_on_may_change(challenge):
    """Earlier versions noted the whole recipe, with the words of `recipe show`."""
    challenge.check_same_run()
    noted = challenge.output / "challenge.json"
    content = read_json(noted)
    for arm in content["arms"].values():
        arm["recipe"] += ", differences=(Difference(what='volumes', paper='other words', here='', why=''),))"
    write_json(noted, content)
    challenge.check_same_run()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"scale": "paper"}, "another scale"),
        ({"predict_options": "-npp 0"}, "another options"),
        ({"changes": {"pretraining": {"epochs": 3}}}, "another changes"),
    ],
)
def test_results_of_other_settings_are_not_mixed(challenge, change, sentence):
    challenge.check_same_run()
    with pytest.raises(SelmaError, match=sentence):
        replace(challenge, **change).check_same_run()


def test_another_recipe_of_the_same_name_is_refused(challenge):
    challenge.check_same_run()
    first, *others = challenge.arms
    changed = replace(first, recipe=replace(first.recipe, finetuning="SelmaFinetuneTrainer_FrozenEncoder"))
    with pytest.raises(SelmaError, match="another arm xundj"):
        replace(challenge, arms=[changed, *others]).check_same_run()
