"""Summaries of the pretraining study: intervals against hand-computed cases, tables, the page, figures."""

import json
from math import isnan

import numpy as np
import pytest
from matplotlib.image import imread

from benchmarks.pretraining import intervals, pictures, tables
from benchmarks.pretraining.intervals import Interval, Run
from nnunet_selma.errors import SelmaError

BASELINE, ARM = tables.BASELINE, "new default"
CUBES = {"cfos_neuron": {1147: 3}, "microglia": {3941: 3, 7082: 3}}
CURVE = (32, 256, 1024)


def case(structure, cube, value):
    return {"structure": structure, "cube": cube, "dice": value}


def run(values, *, arm=ARM, seed=0, cubes=None):
    """A run with one point and a microglia case for each value; the cases lie in one cube if no other is named."""
    cubes = cubes or ["a"] * len(values)
    cases = {str(n): case("microglia", cube, value) for n, (cube, value) in enumerate(zip(cubes, values, strict=True))}
    return Run("confirmation", arm, seed, None, {64: cases})


def compare(runs_a, runs_b):
    return intervals.difference(runs_a, runs_b, 64, "dice", "microglia")


def write_study(folder, stages=("screening", "confirmation", "labels"), arms=(BASELINE, ARM, "loser"), seeds=(0, 1, 2)):
    """Result files as the runner writes them, with made-up scores that grow with steps and patches."""
    rng = np.random.default_rng(5)
    for stage in stages:
        (folder / stage).mkdir(parents=True, exist_ok=True)
        for number, arm in enumerate(arms):
            for labels in (1, 2, 5, 10) if stage == "labels" else (None,):
                for seed in seeds:
                    level = 0.3 + 0.04 * number + 0.05 * np.log2((labels or 12) / 4)
                    points = [
                        {"steps": steps, "offset": -1.25, "cases": scores(level + 0.03 * np.log2(steps / 256), rng)}
                        for steps in CURVE
                    ]
                    content = {
                        "stage": stage,
                        "arm": arm,
                        "seed": seed,
                        "labels": labels,
                        "changes": {},
                        "pretraining": None,
                        "seconds": 1.0,
                        "finished": "2026-01-01",
                        "points": points,
                    }
                    (folder / stage / f"{arm}_{labels}_{seed}.json").write_text(json.dumps(content))
    return folder


def scores(level, rng):
    cases = {}
    for structure, cubes in CUBES.items():
        for cube, octants in cubes.items():
            for octant in range(octants):
                value = float(np.clip(level + 0.03 * rng.normal(), 0, 1))
                cases[f"{structure}_{cube}_{octant}"] = {
                    "structure": structure,
                    "cube": f"{structure}_{cube}",
                    "average_precision": value,
                    "dice": value - 0.05,
                    "dice_calibrated": value,
                    "cldice": None if octant == 0 else value,
                    "betti_0": 100 * (1 - value),
                    "betti_1": 0.0,
                    "predicted_over_true": 1.4,
                }
    return cases


PAGE = "# Results\n\nbefore\n\n" + "\nbetween\n\n".join(
    f"<!-- begin: {name} -->\nold {name}\n<!-- end: {name} -->\n"
    for name in ("screening", "confirmation", "curves", "labels")
)


def test_a_difference_of_two_octants_is_that_computed_by_hand():
    result = compare([run([0.5, 0.7])], [run([0.4, 0.2], arm=BASELINE)])
    # a quarter of the draws takes the first octant twice, and a quarter the second: these are the bounds
    assert (result.mean, result.low, result.high) == pytest.approx((0.3, 0.1, 0.5))
    assert result.per_seed == pytest.approx({0: 0.3})


def test_the_bootstrap_draws_cubes_and_octants_and_seeds():
    """The variance of the drawn means is known in closed form: that between cubes, and that within them."""
    values, cubes = [0.0, 0.4, 1.0, 2.0, 3.0], list("aabbb")  # means of the cubes: 0.2 and 2.0
    result = compare([run(values, cubes=cubes)], [run([0.0] * 5, cubes=cubes, arm=BASELINE)])
    assert result.mean == pytest.approx(1.1)
    assert 0 <= result.low < 0.2 < 2.0 < result.high <= 3  # only octants that are drawn apart reach beyond the cubes
    members, counts = np.array([0, 0, 1, 1, 1]), np.array([2, 3])
    weights = intervals._case_weights(members, counts, 40000, np.random.default_rng(0))
    np.testing.assert_allclose(weights.sum(axis=1), 1)
    np.testing.assert_allclose(weights.mean(axis=0), 1 / counts[members] / 2, rtol=0.03)
    between, within = np.var([0.2, 2.0]) / 2, np.mean([0.04 / 2, (2 / 3) / 3]) / 2
    assert np.var(weights @ np.array(values)) == pytest.approx(between + within, rel=0.03)
    seeds = [run([number], seed=number) for number in (0, 1)]
    result = compare(seeds, [run([0.0], seed=number, arm=BASELINE) for number in (0, 1)])
    assert (result.mean, result.low, result.high) == pytest.approx((0.5, 0.0, 1.0))


def test_identical_arms_differ_by_nothing(rng):
    runs = [run(rng.random(5), seed=seed, cubes=list("aabbb")) for seed in range(3)]
    result = compare(runs, runs)
    assert (result.mean, result.low, result.high) == (0, 0, 0)
    assert not result.excludes_zero


def test_a_constant_shift_has_a_point_as_interval(rng):
    values = rng.random((3, 5))
    runs, shifted = (
        [run(v + shift, seed=seed, cubes=list("aabbb")) for seed, v in enumerate(values)] for shift in (0, 0.25)
    )
    result = compare(shifted, runs)
    assert (result.mean, result.low, result.high) == pytest.approx((0.25, 0.25, 0.25))
    assert result.excludes_zero


def test_the_same_start_gives_the_same_interval(rng):
    runs = [[run(rng.random(4), seed=seed, arm=arm) for seed in range(3)] for arm in (ARM, BASELINE)]
    assert compare(*runs) == compare(*runs)
    other = intervals.difference(*runs, 64, "dice", "microglia", seed=1)
    assert other.low != compare(*runs).low


def test_seeds_that_one_arm_lacks_are_left_out():
    result = compare(
        [run([0.5], seed=0), run([0.9], seed=1)], [run([0.4], seed=0, arm=BASELINE), run([0.1], seed=2, arm=BASELINE)]
    )
    assert result.mean == pytest.approx(0.1)
    assert list(result.per_seed) == [0]
    assert isnan(compare([run([0.5], seed=0)], [run([0.5], seed=1)]).mean)


def test_cases_without_a_score_in_either_arm_are_left_out():
    result = compare([run([0.5, None, 0.9, float("nan")])], [run([0.4, 0.1, None, 0.2], arm=BASELINE)])
    assert (result.mean, result.low, result.high) == pytest.approx((0.1, 0.1, 0.1))
    assert isnan(compare([run([None])], [run([0.5])]).mean)
    assert isnan(intervals.difference([run([0.5])], [run([0.5])], 64, "dice", "cfos_neuron").mean)


def test_means_are_over_cubes_and_not_over_octants():
    runs = [run([0.0, 0.2, 0.8], cubes=list("aab")), run([0.2, 0.4, 1.0], cubes=list("aab"), seed=1)]
    assert intervals.mean_over_cubes(runs, 64, "dice", "microglia") == pytest.approx(0.55)  # over octants it is 0.43
    interval = intervals.mean_interval(runs, 64, "dice", "microglia")
    assert interval.per_seed == pytest.approx({0: 0.45, 1: 0.65})
    assert interval.low < 0.55 < interval.high
    assert intervals.spread(runs, 64, "dice", "microglia") == pytest.approx(0.2 / 2**0.5)
    assert isnan(intervals.spread(runs[:1], 64, "dice", "microglia"))


def test_two_runs_of_a_seed_are_refused():
    with pytest.raises(ValueError, match="same seed"):
        intervals.mean_over_cubes([run([0.5]), run([0.6])], 64, "dice", "microglia")


def test_runs_are_read_as_they_were_written(tmp_path):
    folder = write_study(tmp_path, stages=["labels"], seeds=[1, 0]) / "labels"
    runs = intervals.read_runs(folder)
    assert [(r.arm, r.labels, r.seed) for r in runs[:3]] == [("loser", 1, 0), ("loser", 1, 1), ("loser", 2, 0)]
    assert list(runs[0].points) == list(CURVE)
    assert runs[0].points[32]["microglia_3941_0"]["cube"] == "microglia_3941"
    assert intervals.last_common_step(runs) == 1024
    assert intervals.read_runs(tmp_path / "nothing") == []
    with pytest.raises(SelmaError, match="no step"):
        intervals.last_common_step([])


def test_the_screening_lists_every_arm_best_microglia_first(tmp_path):
    table = tables.screening_table(intervals.read_runs(write_study(tmp_path) / "screening"))
    rows = table.splitlines()[4:]
    assert [row.split(" | ")[0] for row in rows] == ["| loser", f"| {ARM}", f"| {BASELINE}"]
    assert all(row.endswith("| 1.40, 1.40 | 3 |") for row in rows)
    assert "After 1024 steps" in table


def test_the_confirmation_has_means_and_differences_of_every_arm(tmp_path):
    runs = intervals.read_runs(write_study(tmp_path) / "confirmation")
    table = tables.confirmation_table(runs, BASELINE, 1024)
    for arm, times in {BASELINE: 2, ARM: 4, "loser": 4}.items():
        assert table.count(f"\n| {arm} |") == times
    expected = intervals.difference(
        intervals.of_arm(runs, "loser"), intervals.of_arm(runs, BASELINE), 1024, "average_precision", "microglia"
    )
    assert f"{100 * expected.mean:+.1f} ({100 * expected.low:+.1f} to {100 * expected.high:+.1f})" in table
    assert "β1 error ↓" in table
    assert "-0.0" not in table


def test_curve_and_labels_have_a_column_for_each_step_and_number_of_patches(tmp_path):
    write_study(tmp_path)
    curve = tables.curve_table(intervals.read_runs(tmp_path / "confirmation"), BASELINE)
    assert "| arm | measure | 32 | 256 | 1024 |" in curve
    labels = tables.labels_table(intervals.read_runs(tmp_path / "labels"), BASELINE, 1024)
    assert "| arm | measure | 1 patch | 2 patches | 5 patches | 10 patches |" in labels
    for table in (curve, labels):
        assert table.count(f"\n| {ARM} |") == table.count("\n| loser |") == 4
        assert "–" not in table


def test_a_comparison_without_scores_is_a_dash(tmp_path):
    runs = intervals.read_runs(write_study(tmp_path, arms=[ARM]) / "confirmation")
    last = tables.curve_table(runs, BASELINE).splitlines()[-1]
    assert last == f"| {ARM} | microglia: Dice, calibrated (points) ↑ | – | – | – |"


def test_bold_is_for_intervals_without_zero():
    assert tables._signed(Interval(0.02, 0.01, 0.03, {}), 100) == "**+2.0 (+1.0 to +3.0)**"
    assert tables._signed(Interval(-0.0001, -0.01, 0.03, {}), 100) == "+0.0 (-1.0 to +3.0)"


def test_the_page_changes_between_its_markers_only(tmp_path):
    results, page = write_study(tmp_path / "results", stages=["screening", "confirmation"]), tmp_path / "results.md"
    page.write_text(PAGE)
    tables.write_page(results, page)
    written = page.read_text()
    tables.write_page(results, page)
    assert page.read_text() == written
    assert "old labels" in written  # no runs with few patches, so nothing is replaced
    for name in ("screening", "confirmation", "curves"):
        assert f"old {name}" not in written
    outside, expected = (
        [part.partition("<!-- end: ")[2] if "<!-- end: " in part else part for part in text.split("<!-- begin: ")]
        for text in (written, PAGE)
    )
    assert outside == expected
    page.write_text("no markers\n")
    with pytest.raises(SelmaError, match="begin: screening"):
        tables.write_page(results, page)
    assert page.read_text() == "no markers\n"


def test_a_page_without_runs_stays_as_it_is(tmp_path):
    page = tmp_path / "results.md"
    page.write_text(PAGE)
    tables.write_page(tmp_path / "nothing", page)
    assert page.read_text() == PAGE


@pytest.mark.parametrize("draw", [pictures.label_efficiency, pictures.learning_curves])
def test_figures_are_small_pngs_that_show_something(draw, tmp_path):
    write_study(tmp_path)
    labels = draw is pictures.label_efficiency
    runs = intervals.read_runs(tmp_path / "labels") if labels else intervals.read_runs(tmp_path / "confirmation")
    draw(runs, tmp_path / "figure.png", [BASELINE, ARM, "loser", "an arm without runs"])
    content = (tmp_path / "figure.png").read_bytes()
    assert content.startswith(b"\x89PNG")
    assert len(content) < 100_000
    assert imread(tmp_path / "figure.png")[..., :3].std() > 0.05
    assert not list(tmp_path.glob("*.partial"))
