import pytest

from nnunet_selma.demo.report import by_structure, findings

SCORES = {
    "cfos_neuron_1": {"with": 0.8, "without": 0.6},
    "cfos_neuron_2": {"with": 0.6, "without": 0.6},
    "blood_vessel_1": {"with": 0.1, "without": 0.3},
}


def test_means_are_over_cases_then_over_structures():
    table = by_structure(SCORES)
    assert table["c-Fos+ cell"] == (2, {"with": pytest.approx(0.7), "without": pytest.approx(0.6)})
    assert table["mean of the structures"] == (3, {"with": pytest.approx(0.4), "without": pytest.approx(0.45)})


@pytest.mark.parametrize(
    ("losses", "error", "fell", "below"),
    [([1.0, 0.4], 0.3, "fell", "below"), ([0.4, 1.0], 0.9, "did not fall", "not below")],
)
def test_findings_say_what_happened_whatever_happened(losses, error, fell, below):
    history = {"val_losses": losses, "reconstruction_error": [error], "trivial_error": [0.8]}
    first, second, *_ = findings({"history": history, "epochs": 2, "warnings": []}, by_structure(SCORES))
    assert f"loss {fell}:" in first
    assert f", {below} that" in second


@pytest.mark.parametrize(
    ("other", "sentence"),
    [(0.3, "beats: other (0.300)"), (0.5, "It is worse than: other"), (0.41, "As good to within 0.02")],
)
def test_comparisons(other, sentence):
    history = {"val_losses": [1, 0], "reconstruction_error": [0], "trivial_error": [1]}
    table = by_structure({"cfos_neuron_1": {"with": 0.4, "other": other}})
    said = " ".join(findings({"history": history, "epochs": 1, "warnings": ["it did not learn"]}, table))
    assert sentence in said
    assert "It did not learn." in said
