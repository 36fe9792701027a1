import numpy as np
import pytest

from nnunet_selma.evaluation.metrics.editions import EDITIONS
from nnunet_selma.evaluation.scoring import CaseScore
from nnunet_selma.recipes.challenge.results import mean_over_seeds, seed_table, write_results
from tests.conftest import write_image


def test_seeds_are_means_over_cases_with_lowest_and_highest():
    values = {0: (0.2, 0.4), 1: (0.5, 0.7), 2: (0.1, 0.3)}
    scores = [
        CaseScore(
            method="a",
            case=f"cfos_neuron_{n}_seed{seed}",
            structure="cfos_neuron",
            official={"dice": dice, "betti_0_error": 4.0},
            corrected={},
            extra={},
        )
        for seed, pair in values.items()
        for n, dice in enumerate(pair)
    ]
    table = seed_table(scores, EDITIONS[2024])
    assert table.rows == [["a", "36.7 (20.0 to 60.0)", "4.0 (4.0 to 4.0)"]]
    assert "c-Fos+ cell: Dice (%) ↑" in table.head


def test_a_case_counts_once_with_the_mean_over_its_seeds():
    scores = [
        CaseScore(
            method="a",
            case=f"{case}_seed{seed}",
            structure="microglia",
            official={"cldice": official},
            corrected={"cldice": fair},
            extra={},
        )
        for case, seed, official, fair in (
            ("microglia_1", 0, 1.0, 0.0),
            ("microglia_1", 1, 0.5, 0.5),
            ("microglia_2", 0, 0.4, 0.4),
        )
    ]
    first, second = mean_over_seeds(scores)
    assert (first.case, first.official, first.corrected) == ("microglia_1", {"cldice": 0.75}, {"cldice": 0.25})
    assert (second.case, second.official) == ("microglia_2", {"cldice": 0.4})


@pytest.mark.parametrize("seeds", [2])
def test_the_page_has_the_tables_of_the_paper(tmp_path, rng, seeds):
    truth = {f"{s}_1": rng.random((10, 11, 12)) < 0.2 for s in ("cfos_neuron", "microglia")}
    arms = {"zoomlin": 0.02, "ours": 0.0, "ours-scratch": 0.1}
    for seed in range(seeds):
        for case, mask in truth.items():
            write_image(tmp_path / "cases" / "references" / f"{case}_seed{seed}.nii.gz", mask.astype(np.uint8))
            for arm, wrong in arms.items():
                predicted = mask ^ (rng.random(mask.shape) < wrong)
                write_image(tmp_path / "cases" / arm / f"{case}_seed{seed}.nii.gz", predicted.astype(np.uint8))
    budget = {"pretraining steps": 2, "finetuning steps": 1000}
    page = write_results(
        tmp_path, list(arms), tmp_path / "cases" / "references", dict.fromkeys(arms, budget), lambda _: None
    )
    text = page.read_text(encoding="utf-8")
    assert "### ours, and ours-scratch" in text
    assert "### zoomlin" not in text  # has no arm from random weights here
    assert "Mean ± standard deviation over cases (c-Fos+ cell 1, microglia 1)." in text  # seeds are no further cases
    assert "| ours | 100.0 (100.0 to 100.0) |" in text
    assert "1,000" in text
    assert (tmp_path / "evaluation" / "cases.csv").is_file()
    assert (tmp_path / "evaluation" / "tables.tex").is_file()
