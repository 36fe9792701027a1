import csv
import io
from dataclasses import replace
from math import isnan, nan, sqrt

import pytest

from nnunet_selma.evaluation import tables
from nnunet_selma.evaluation.comparison import PairedDifference, rank
from nnunet_selma.evaluation.metrics.editions import EDITIONS
from nnunet_selma.evaluation.scoring import CaseScore
from nnunet_selma.evaluation.sections import PageSection, as_latex, as_markdown, latex_table, markdown_table
from tests.evaluation.test_comparison import TABLE_5, means_of


def scores(method="ours", cldice=(0.6, 0.8)):
    spots = [
        CaseScore(
            method=method,
            case=f"cfos_neuron_{n}",
            structure="cfos_neuron",
            official={"dice": d, "betti_0_error": b},
            corrected={},
            extra={},
        )
        for n, (d, b) in enumerate([(0.5, 1.0), (0.7, 4.0)])
    ]
    trees = [
        CaseScore(
            method=method,
            case=f"microglia_{n}",
            structure="microglia",
            official={"dice": 0.5, "cldice": c, "betti_0_error": 12.0, "betti_1_error": float(n)},
            corrected={"cldice": 0.0 if isnan(c) else c},
            extra={"hd95_um": 3.0},
        )
        for n, c in enumerate(cldice)
    ]
    return [*spots, *trees]


def markdown(found, year=2024, *, corrected=False):
    return "\n\n".join(markdown_table(table) for table in tables.means(found, EDITIONS[year], corrected=corrected))


def latex(found, year=2024, *, corrected=False):
    return "\n\n".join(latex_table(table) for table in tables.means(found, EDITIONS[year], corrected=corrected))


def test_one_table_has_the_columns_of_the_papers():
    head, _, row = markdown(scores()).splitlines()
    assert head == (
        "| method | c-Fos+ cell: Dice (%) ↑ | c-Fos+ cell: β0 error ↓ | microglia: Dice (%) ↑ | microglia: clDice (%) ↑ "
        "| microglia: β0 error ↓ | microglia: β1 error ↓ |"
    )
    # standard deviations of the cases, as in the paper
    assert (
        row
        == "| ours | 60.00 ± 10.00 | 2.500 ± 1.500 | 50.00 ± 0.00 | 70.00 ± 10.00 | 12.00 ± 0.00 | 0.5000 ± 0.5000 |"
    )
    assert "(c-Fos+ cell 2, microglia 2)" in tables.case_counts(scores())


@pytest.mark.parametrize(
    ("values", "printed"),
    [  # means and deviations that table 5 and table 4 print
        ([157.9 - 169.9, 157.9 + 169.9], "157.9 ± 169.9"),
        ([125.5 - 47.5, 125.5 + 47.5], "125.5 ± 47.5"),
        ([5.125 - 2.848, 5.125 + 2.848], "5.125 ± 2.848"),
        ([0.2471 - 0.5293, 0.2471 + 0.5293], "0.2471 ± 0.5293"),
        ([11.73 - 7.55, 11.73 + 7.55], "11.73 ± 7.55"),
        ([999.96, 999.96], "1000 ± 0"),
        ([2249.0, 2249.0], "2249 ± 0"),
        ([0.0, 0.0], "0.000 ± 0.000"),
    ],
)
def test_numbers_are_printed_as_in_the_paper(values, printed):
    summary = tables.Summary.over(dict(enumerate(values)), ddof=0)
    assert summary.cell(percent=False) == printed


def test_the_deviations_of_table_5_are_those_of_the_cases():
    """Eight loop errors with mean 1.000: only with n are the printed 0.8660 those of integers."""
    errors = dict(enumerate([0, 0, 0, 1, 1, 2, 2, 2]))
    assert tables.Summary.over(errors, ddof=0).standard_deviation == pytest.approx(0.8660, abs=5e-5)


def test_2026_has_standard_deviations_of_a_sample():
    values = {"a": 0.5, "b": 0.7}
    assert tables.Summary.over(values, ddof=1).standard_deviation == pytest.approx(0.1 * sqrt(2))
    assert tables.Summary.over(values, ddof=0).standard_deviation == pytest.approx(0.1)
    assert isnan(tables.Summary.over({"a": 0.5}, ddof=1).standard_deviation)
    assert tables.Summary.over({"a": 0.5}, ddof=0).standard_deviation == 0


def test_nan_is_counted_and_named_and_the_corrected_value_stands_beside_it():
    found = scores(cldice=(0.6, nan))
    text = markdown(found, corrected=True)
    assert "| NaN (1 of 2 NaN) | 30.00 ± 30.00 |" in text
    assert "clDice (%), corrected ↑" in text
    assert tables.without_value(found) == ["ours: cldice has no value (NaN) in microglia_1."]
    assert "corrected" not in markdown(found)


def test_no_corrected_column_stands_where_it_would_say_the_same():
    assert "corrected" not in markdown(scores(), corrected=True)
    assert "corrected" not in latex(scores(), corrected=True)


def test_latex_has_the_same_numbers_under_a_head_for_each_structure():
    text = latex(scores(method="a_b & 5%"))
    assert r"& \multicolumn{2}{c}{c-Fos+ cell} & \multicolumn{4}{c}{microglia} \\" in text
    assert r"\cmidrule(lr){2-3} \cmidrule(lr){4-7}" in text
    assert r"method & Dice (\%) $\uparrow$ & $\beta_0$ error $\downarrow$" in text
    assert r"a\_b \& 5\% & 60.00 $\pm$ 10.00 & 2.500 $\pm$ 1.500 & 50.00 $\pm$ 0.00" in text
    assert text.count("\\\\") == 3


def test_names_cannot_break_a_table():
    name = r"lr^2 {x} ~\y| $"
    assert r"lr\textasciicircum{}2 \{x\} \textasciitilde{}\textbackslash{}y| \$ &" in latex(scores(method=name))
    assert markdown(scores(method=name)).splitlines()[2].count("|") == 8


def test_more_structures_go_into_further_tables():
    many = [
        CaseScore(
            method="a",
            case=f"{s}_1",
            structure=s,
            official={"dice": 1.0, "panoptic_quality": 1.0},
            corrected={},
            extra={},
        )
        for s in ("cfos_neuron", "cell_nuclei", "AD_plaques", "microglia")
    ]
    assert [len(table) for table in tables.columns(many, EDITIONS[2026], corrected=False)] == [6, 2]


def test_every_case_is_a_row_of_the_csv():
    text = tables.cases_csv(scores(cldice=(0.6, nan)), corrected=True)
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [row["case"] for row in rows] == ["cfos_neuron_0", "cfos_neuron_1", "microglia_0", "microglia_1"]
    assert (rows[0]["cldice"], rows[0]["hd95_um"], rows[0]["betti_0_error"]) == ("", "", "1")
    assert (rows[3]["cldice"], rows[3]["cldice_corrected"], rows[3]["hd95_um"]) == ("nan", "0", "3")


def test_the_table_of_ranks():
    table = tables.ranks(rank(means_of(TABLE_5), EDITIONS[2024]))
    text = markdown_table(table).splitlines()
    assert text[0] == "| place | method | spot-like | tree-like | overall |"
    assert text[2] == "| 1 | Zoomlin | 1.000 | 1.000 | 1.000 |"
    assert text[4] == "| 3 | Tonyxu | 2.000 | 4.000 | 3.000 |"
    assert text[6] == "| 5 | Wu | 5.000 | 4.250 | 4.625 |"
    assert r"5 & Wu & 5.000 & 4.250 & 4.625 \\" in latex_table(table)


def test_the_paired_table():
    row = PairedDifference(
        structure="microglia",
        metric="dice",
        cases=7,
        without_value=1,
        mean=0.7150,
        other_mean=0.6987,
        difference=0.0163,
        low=0.001,
        high=0.03,
        p=0.0312,
        better=5,
        worse=2,
    )
    table = tables.paired([row], "with", "without", EDITIONS[2024])
    line = "| microglia | Dice (%) ↑ | 7 (1 NaN) | 71.50 | 69.87 | 1.63 | 0.10 to 3.00 | 5 / 2 | 0.0312 |"
    assert line in markdown_table(table)
    assert not table.notes
    few = tables.paired([replace(row, better=3, worse=2)], "with", "without", EDITIONS[2024])  # two of seven are ties
    assert "cannot fall below" in as_markdown([PageSection("", [few])])
    assert "% Where fewer than 6 cases differ" in as_latex([PageSection("", [few])])


def test_extras_are_apart_from_the_official_columns_and_mean_what_has_a_value():
    found = [*scores(), replace(scores()[-1], case="microglia_2", extra={"hd95_um": nan})]
    text = markdown_table(tables.extras(found, ddof=0))
    assert "| microglia | ours | 3.000 ± 0.000 (1 of 3 NaN) |" in text
    assert "| c-Fos+ cell | ours | – |" in text
    assert "hd95" not in markdown(scores(), corrected=True)
    assert tables.extras(scores()[:2], ddof=0) is None
