"""The report's tables and sentences, and its page of an evaluation on disk."""

import json
import re

import numpy as np
import pytest
import torch

from nnunet_selma.demo.report import Comparison, dice_table, findings, mean_dice, write_report
from nnunet_selma.evaluation import EvaluationSettings, evaluate, write_evaluation
from nnunet_selma.evaluation.scoring import CaseScore
from nnunet_selma.finetuning.pretrained import SUMMARY
from tests.conftest import write_image


def score(method, case, dice):
    structure = case.rpartition("_")[0]
    return CaseScore(method=method, case=case, structure=structure, official={"dice": dice}, corrected={}, extra={})


SCORES = [
    score("with", "cfos_neuron_1", 0.8),
    score("with", "cfos_neuron_2", 0.6),
    score("with", "blood_vessel_1", 0.1),
    score("without", "cfos_neuron_1", 0.6),
    score("without", "cfos_neuron_2", 0.6),
    score("without", "blood_vessel_1", 0.3),
]
HISTORY = {"val_losses": [1.0, 0.4], "reconstruction_error": [0.3], "trivial_error": [0.8]}


def test_means_are_over_cases_then_over_structures():
    cells, vessels, overall = mean_dice(SCORES)
    assert (cells.name, cells.cases, vessels.cases, overall.cases) == ("c-Fos+ cell", 2, 1, 3)
    assert cells.methods == {"with": pytest.approx(0.7), "without": pytest.approx(0.6)}
    assert overall.methods == {"with": pytest.approx(0.4), "without": pytest.approx(0.45)}


def test_the_table_ends_with_a_row_of_means_and_marks_the_best_of_each_row():
    table = dice_table(mean_dice(SCORES))
    assert table.rows == [
        ["c-Fos+ cell", "2", "0.700", "0.600"],
        ["blood vessel", "1", "0.100", "0.300"],
        ["mean of the structures", "3", "0.400", "0.450"],
    ]
    assert table.mean_row
    assert table.best == [(0, 2), (1, 3), (2, 3)]


@pytest.mark.parametrize(
    ("losses", "error", "fell", "below"),
    [([1.0, 0.4], 0.3, "fell", "below"), ([0.4, 1.0], 0.9, "did not fall", "not below")],
)
def test_findings_say_what_happened_whatever_happened(losses, error, fell, below):
    history = {"val_losses": losses, "reconstruction_error": [error], "trivial_error": [0.8]}
    first, second, *_ = findings({"history": history, "epochs": 2, "warnings": []}, {"with": 0.4, "without": 0.45})
    assert f"loss {fell}:" in first
    assert f", {below} that" in second


@pytest.mark.parametrize(
    ("other", "sentence"),
    [(0.3, "beats: other (0.300)."), (0.5, "It is worse than: other (0.500)."), (0.41, "As good to within 0.02")],
)
def test_comparisons(other, sentence):
    summary = {"history": HISTORY, "epochs": 1, "warnings": ["it did not learn"]}
    text = " ".join(findings(summary, {"with": 0.4, "other": other}))
    assert sentence in text
    assert "It did not learn." in text


def test_the_page_shows_an_evaluation_as_it_was_written(tmp_path, rng):
    """Every cell of `tables.md` is in the page, and the only bold row is that of the means."""
    methods = {"with": 0.02, "untrained network": 0.4}
    for case in ("cfos_neuron_1", "blood_vessel_1"):
        truth = rng.random((8, 12, 14)) < 0.2
        write_image(tmp_path / f"truth/{case}.nii.gz", truth.astype(np.uint8))
        write_image(tmp_path / f"raw/{case}_0000.nii.gz", rng.integers(0, 900, truth.shape, dtype=np.uint16))
        for method, wrong in methods.items():
            prediction = truth ^ (rng.random(truth.shape) < wrong)
            write_image(tmp_path / method / f"{case}.nii.gz", prediction.astype(np.uint8))
    predictions = {method: tmp_path / method for method in methods}
    evaluation = evaluate(tmp_path / "truth", predictions, EvaluationSettings(year=2026))
    folder = tmp_path / "report" / "evaluation_2026"
    write_evaluation(evaluation, folder)
    pretraining = tmp_path / "pretraining"
    pretraining.mkdir()
    (pretraining / SUMMARY).write_text(json.dumps({"history": HISTORY, "epochs": 2, "warnings": []}))
    for picture in ("reconstruction.png", "learning.png"):
        (pretraining / picture).touch()
    logging = {"train_losses": [0.5, 0.4], "val_losses": [0.6, 0.5], "mean_fg_dice": [0.1, 0.2]}
    torch.save({"logging": logging}, tmp_path / "checkpoint_final.pth")
    page = write_report(
        tmp_path / "report",
        Comparison(tmp_path / "raw", tmp_path / "truth", predictions, {2026: folder}),
        pretraining,
        {"with": tmp_path},
        [("nnUNetv2_train <1>", 2.0)],
        synthetic=True,
    ).read_text(encoding="utf-8")
    assert "nnUNetv2_train &lt;1&gt;" in page
    rows = [line for line in (folder / "tables.md").read_text(encoding="utf-8").splitlines() if line[:1] == "|"]
    cells = {cell.strip() for row in rows if "---" not in row for cell in row.strip("|").split(" | ")}
    assert len(cells) > 8
    assert cells <= set(re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", page))
    assert page.count("<tr class=mean>") == 1
    assert "<tr class=mean><td class=name>mean of the structures</td>" in page
