"""Every benchmark runs, as small as possible; what it measures is looked at by people."""

import json
import os
import statistics

import pytest

from benchmarks import table
from benchmarks.__main__ import PAGE, comparisons, main
from benchmarks.pairs import Comparison, Side, compare


@pytest.fixture
def own_environment(monkeypatch):
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results", "nnUNet_n_proc_DA"):
        monkeypatch.setenv(name, os.environ.get(name, ""))


FAST = ["step_", "loaded_", "overhead_", "floor_", "judge_", "microscopes_"]
SLOW = ["first_", "patches_", "disk_", "convert_", "memory", "volume_", "objects_"]


def test_every_benchmark_has_a_test():
    assert [one.name for one in comparisons() if not one.name.startswith((*FAST, *SLOW))] == []


@pytest.mark.parametrize("names", [FAST, pytest.param(SLOW, marks=pytest.mark.slow)])
def test_every_benchmark_runs(names, tmp_path, own_environment, capsys):
    before = PAGE.read_text()
    assert main([*names, "--quick", "--results", str(tmp_path)]) == 0
    written = {path.stem: json.loads(path.read_text()) for path in tmp_path.glob("*.json")}
    chosen = {one.name: one.work for one in comparisons(quick=True) if one.name.startswith(tuple(names))}
    done = [chosen[name] for name in written]
    assert all(work in done for work in chosen.values())
    assert all(done.count(work) == 1 for work in done)  # none twice
    for one in written.values():
        assert one["median_ratio"] > 0
        assert set(one["machine"]) == {"date", "machine", "versions"}
    assert PAGE.read_text() == before  # figures of a quick run are not for the page


def constant(costs):
    left = list(costs)
    return lambda: left.pop(0)


def process(costs):
    left = [*costs, float(os.getpid()), float(os.environ["OF_THIS_SIDE"])]
    return lambda: left.pop(0)


def comparison(start, ours, other, repetitions):
    sides = [
        Side(label=name, start=start, arguments={"costs": costs}, environment={"OF_THIS_SIDE": name})
        for name, costs in (("1", ours), ("2", other))
    ]
    return Comparison(name="x", what="y", ours=sides[0], other=sides[1], target=2.0, repetitions=repetitions)


def test_the_ratio_is_that_of_pairs():
    ours, other = [1.0, 2.0, 4.0, 1.0, 1.0], [2.0, 6.0, 4.0, 5.0, 4.0]
    result = compare(comparison(constant, ours, other, 5), apart=False)
    assert result.ratios == [2.0, 3.0, 1.0, 5.0, 4.0]
    assert result.median == 3.0
    assert result.spread == (statistics.quantiles(result.ratios)[0], statistics.quantiles(result.ratios)[2])
    assert compare(comparison(constant, ours, other, 2), apart=False).spread == (2.0, 3.0)


def test_sides_live_in_processes_of_their_own_with_their_own_environment():
    before = dict(os.environ)
    result = compare(comparison(process, [3.0], [6.0], 3))
    assert dict(os.environ) == before
    assert result.ratios[0] == 2.0
    assert len({os.getpid(), result.costs_ours[1], result.costs_other[1]}) == 3
    assert (result.costs_ours[2], result.costs_other[2]) == (1.0, 2.0)


def test_the_table_says_what_was_not_reached(tmp_path):
    result = compare(comparison(constant, [2.0], [3.0], 1), apart=False)
    (tmp_path / "x.json").write_text(json.dumps({**result.as_json(), "machine": table.machine()}))
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- benchmarks: begin -->\nold\n<!-- benchmarks: end -->\nafter\n")
    for _ in range(2):  # a second refresh changes nothing
        table.refresh(page, tmp_path, ["x", "not measured yet"])
        text = page.read_text()
        assert "| y | 1: 2 s | 2: 3 s | 1.50 (1.50 to 1.50, 1 pairs) | 2, **not reached** |" in text
        assert "old" not in text
        assert text.startswith("before\n")
        assert text.endswith("after\n")
