"""The model card: every number from a file of the training, and nothing that no file says."""

import re
import shlex
from dataclasses import replace

import numpy as np
import pytest
import yaml

from nnunet_selma.cli import command_parser
from nnunet_selma.errors import SelmaError
from nnunet_selma.evaluation import Evaluation, EvaluationSettings, write_evaluation
from nnunet_selma.evaluation.scoring import CaseScore
from nnunet_selma.running.json_files import read_json, write_json
from nnunet_selma.sharing.card import SECTIONS, model_card
from nnunet_selma.sharing.card_check import card_problems, sections_of
from nnunet_selma.sharing.card_commands import CardTexts
from nnunet_selma.sharing.card_validation import validation_lines
from nnunet_selma.sharing.licences import LICENCES, licence_named, licence_text
from nnunet_selma.sharing.publish import PublishSettings, publish
from nnunet_selma.sharing.results import facts_of
from nnunet_selma.sharing.validation import read_validation
from nnunet_selma.sharing.validation_dice import mean_dice
from tests.plans import plans
from tests.sharing.facts import model
from tests.sharing.models import CASES, SPLITS, write_segmentation


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return write_segmentation(tmp_path_factory.mktemp("workspace"))


def card_of(results, folder, **changes):
    publish(results, folder, PublishSettings(**{"license": "cc-by-nc-4.0", **changes}))
    text = (folder / "README.md").read_text(encoding="utf-8")
    return text, sections_of(text)


@pytest.fixture(scope="module")
def card(results, tmp_path_factory):
    return card_of(results, tmp_path_factory.mktemp("hub") / "nuclei", author="A | B", repository="lab/nuclei")


def test_a_hub_reads_the_front_matter(card):
    hub = pytest.importorskip("huggingface_hub")
    data = hub.ModelCard(card[0]).data
    assert (data.license, data.library_name, data.pipeline_tag) == ("cc-by-nc-4.0", "nnunetv2", "image-segmentation")
    assert {"SELMA3D", "cell_nuclei", "AD_plaques", "segmentation"} <= set(data.tags)


@pytest.mark.parametrize(
    ("name", "spacing", "layout", "tags"),
    [
        (
            "small",
            [5.0, 1.5, 2.0],
            "challenge_zip",
            {"3d", "biology", "microscopy", "light-sheet-microscopy", "SELMA3D"},
        ),
        ("small", [5.0, 1.5, 2.0], "delivr", {"3d", "biology", "microscopy", "light-sheet-microscopy"}),
        ("small", [5.0, 1.5, 2.0], "pairs", {"3d", "biology", "microscopy"}),
        ("small", [0.005, 0.0015, 0.002], None, {"3d"}),  # millimetres
        ("2d, 256×256", [0.005, 0.0015, 0.002], None, {"2d"}),
    ],
)
def test_tags_are_what_the_files_say(name, spacing, layout, tags):
    content = plans(name)
    (configuration,) = content["configurations"]
    facts = model(
        content={**content, "original_median_spacing_after_transp": spacing},
        configuration=configuration,
        manifest={"layout": layout} if layout else None,
    )
    texts = CardTexts(name="m", author=None, description=None, repository=None, checkpoint="checkpoint_final.pth")
    card = model_card(facts, texts, licence_named("mit"), 1, None)
    assert set(yaml.safe_load(card.split("---\n")[1])["tags"]) == {"nnU-Net", "segmentation", *tags}
    assert ("three-dimensional" in card) == ("3d" in tags)


@pytest.mark.parametrize(("dice", "words"), [(None, "no validation/summary.json"), ({}, "summary.json without scores")])
def test_a_card_says_whether_there_was_a_summary(dice, words):
    facts = model()
    facts = replace(facts, folds=(replace(facts.folds[0], dice=dice),))
    (line,) = validation_lines(facts, None)
    assert words in line


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ("Model", "A \\| B"),
        ("Model", "cell (1), plaque (2)"),
        ("Model", "5 × 1.5 × 2 µm (z, y, x)"),
        ("Model", "Byol on Dataset500_B, 7 epochs, 28 steps, SHA-256 of the checkpoint `ab12`"),
        ("Training data", "- cases: 5\n"),
        ("Training data", "cell nucleus 4"),
        ("Training data", "2, of 1 to 4 cases"),
        ("Training data", "fold 0: 3 training cases, 2 validation cases"),
        ("Training data", "fold 1: 2 training cases, 3 validation cases"),
        ("Training", "fold 1: 11 epochs, 3 steps each, batches of 2 patches, 66 patches in all"),
        ("Validation", "| cell | Dice ↑ | 4 (1 without a value) | 0.500 |"),
        ("Validation", "| plaque | Dice ↑ | 4 | 0.750 |"),
        ("Validation", "Not known: intervals"),
        ("How to use it", "hf download lab/nuclei --local-dir nuclei"),
        ("How to use it", "nnUNetv2_predict_from_modelfolder -i IN -o OUT -m nuclei -f 0 1"),
        ("How to use it", "-m nuclei -f 0 1 --spacing Z,Y,X"),
        (
            "How to use it",
            "nnUNetv2_predict -d 510 -i IN -o OUT -tr SelmaFinetuneTrainer -p nnUNetPlans -c 3d_fullres -f 0 1",
        ),
        ("How to use it", "hf upload lab/nuclei nuclei"),
        ("Licence", "CC BY 4.0, and the data page"),
        ("Citation", "10.1038/s41592-020-01008-z"),
    ],
)
def test_a_card_says(card, section, words):
    assert words in card[1][section]


def test_all_sections_in_their_order(card):
    assert tuple(card[1]) == SECTIONS


def score(case, dice, structure="cell_nuclei", method="a"):
    return CaseScore(
        method=method,
        case=case,
        structure=structure,
        official={"dice": dice, "panoptic_quality": 0.5},
        corrected={},
        extra={},
    )


def evaluation_in(folder, scores):
    methods = dict.fromkeys(score.method for score in scores)
    write_evaluation(
        Evaluation(
            EvaluationSettings(year=2026), folder / "truth", {name: folder / name for name in methods}, scores, []
        ),
        folder,
    )
    return folder / "evaluation.json"


def test_the_validation_of_an_evaluation(results, tmp_path):
    """Over 0.2, 0.4 and 0.9 the mean is 0.5; the mean of a resample is 0.2 in one of 27, more than 2.5 %, and so is 0.9."""
    cases = [*CASES[2:4], "cell_nuclei_9"]
    file = evaluation_in(tmp_path, [score(case, dice) for case, dice in zip(cases, (0.2, 0.4, 0.9), strict=True)])
    _, sections = card_of(results, tmp_path / "hub", evaluation=file)
    rows = re.findall(r"^\| cell nucleus \| (.+?) \|$", sections["Validation"], re.MULTILINE)
    assert rows[0] == "Dice (%) ↑ | 3 | 50.00 | 20.00 to 90.00"
    assert rows[1].endswith("| 3 | 50.00 | 50.00 to 50.00")
    assert "2 of the 3 cases have the name of a training case of a published fold" in sections["Validation"]


@pytest.mark.parametrize(
    ("cases", "folds", "trained_on"),
    [(SPLITS[0]["val"], ("0",), 0), (SPLITS[0]["val"], ("1",), 2), (CASES, (), 5), (["other_1", "other_2"], (), 0)],
)
def test_cases_that_were_trained_on_are_counted(results, tmp_path, cases, folds, trained_on):
    file = evaluation_in(tmp_path, [score(case, 0.5) for case in cases])
    validation = read_validation(file, None, facts_of(results, folds=folds))
    assert validation.trained_on == trained_on


def test_cases_without_a_value_are_counted_and_one_case_has_no_interval(results, tmp_path):
    file = evaluation_in(tmp_path, [score("cell_nuclei_1", float("nan")), score("cell_nuclei_2", 0.25)])
    dice = read_validation(tmp_path, None, facts_of(results)).rows[0]
    assert file.is_file()
    assert (dice.cases, dice.without_value, dice.mean) == (1, 1, 0.25)
    assert np.isnan(dice.low)
    assert dice.cells()[2:] == ["1 (1 more without a value)", "25.00", "–"]


def test_a_method_of_several_is_chosen(results, tmp_path):
    file = evaluation_in(tmp_path, [score("cell_nuclei_1", 0.5), score("cell_nuclei_1", 0.25, method="b")])
    facts = facts_of(results)
    with pytest.raises(SelmaError, match="several methods, a, b; choose this model with --method"):
        read_validation(file, None, facts)
    with pytest.raises(SelmaError, match="--method c"):
        read_validation(file, "c", facts)
    assert read_validation(file, "b", facts).rows[0].mean == 0.25
    with pytest.raises(SelmaError, match=r"is no evaluation\.json"):
        read_validation(tmp_path / "truth", None, facts)


def test_folds_that_the_splits_do_not_have(results, tmp_path):
    """Cases are of no known fold, and the card says so, instead of that they were left out."""
    file = evaluation_in(tmp_path, [score("cell_nuclei_1", 0.5)])
    facts = facts_of(results)
    facts.data.splits.pop()
    assert read_validation(file, None, facts).trained_on is None


@pytest.mark.parametrize("labels", [{"background": 0, "whole": [1, 2], "core": 2}, {"background": 0, "whole": 1}])
def test_the_dice_of_regions(tmp_path, labels):
    folder = write_segmentation(tmp_path)
    write_json(folder / "dataset.json", {**read_json(folder / "dataset.json"), "labels": labels})
    key = "(1, 2)" if isinstance(labels["whole"], list) else "1"
    for fold, dice in enumerate((0.5, 1.0)):
        write_json(
            folder / f"fold_{fold}" / "validation" / "summary.json",
            {"metric_per_case": [{"metrics": {key: {"Dice": dice}}}]},
        )
    assert mean_dice(fold.dice for fold in facts_of(folder).folds) == {"whole": (0.75, 2, 0)}


@pytest.mark.parametrize("licence", LICENCES, ids=lambda licence: licence.spdx)
@pytest.mark.parametrize("selma3d", [True, False, None])
def test_a_licence_names_its_text_and_the_question(licence, selma3d):
    text = licence_text(licence, "nuclei", None, selma3d=selma3d)
    assert text.startswith(f"SPDX-License-Identifier: {licence.spdx}\n")
    assert licence.url in text
    assert ("CC BY-NC" in text) == (selma3d is not False)
    assert "not known: who holds the rights" in text


def test_a_card_with_more_in_its_front_matter_is_good(card):
    """Publishers may add what hubs know."""
    more = card[0].replace("tags:\n", "datasets:\n- lab/data\nmodel-index:\n- name: x\n  results: []\ntags:\n", 1)
    assert yaml.safe_load(more.split("---\n")[1])["datasets"] == ["lab/data"]
    config = {"name": "nuclei", "folds": ["0", "1"], "kind": "segmentation", "license": "cc-by-nc-4.0"}
    assert card_problems(more, config) == []


def test_the_commands_of_a_card_can_be_given(card):
    commands = re.findall(r"^nnunet-selma (.+)$", card[1]["How to use it"], re.MULTILINE)
    assert len(commands) == 1
    for command in commands:
        command_parser().parse_args(shlex.split(command.replace("Z,Y,X", "5,1.5,2")))
