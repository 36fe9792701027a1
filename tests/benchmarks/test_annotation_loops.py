"""Simulated annotation loops: what each strategy may know, tables, and one short loop on real volumes."""

import json
import os
from itertools import combinations, product
from types import SimpleNamespace

import nibabel
import numpy as np
import pytest
import torch

from benchmarks.annotation import brains, running, strategies
from benchmarks.annotation.__main__ import main
from benchmarks.annotation.strategies import STRATEGIES, Situation
from benchmarks.annotation.tables import loops_table, write_page
from benchmarks.pretraining.intervals import Run
from nnunet_selma.annotation import choosing
from nnunet_selma.annotation.candidates import Candidate, place_of
from nnunet_selma.nnunet.commands import FOLDER_VARIABLES
from nnunet_selma.running.json_files import read_json

EDGE = (10, 10, 10)


@pytest.fixture(autouse=True)
def responses_without_files(monkeypatch):
    """Structure responses come with the candidates of these tests."""
    monkeypatch.setattr(choosing, "with_responses", lambda pool, progress: list(pool))


def candidate(brain, index):
    start = tuple(i * e for i, e in zip(index, EDGE, strict=True))
    return Candidate(
        brain=SimpleNamespace(name=brain),
        start=start,
        shape=EDGE,
        place=place_of(brain, f"/{brain}.tif", "", start, EDGE, (1.0, 1.0, 1.0)),
        region=tuple(int(i > 1) for i in index),
        tissue=0.5,
        brightness=float(sum(index)),
        response=float(index[0]),
    )


CANDIDATES = [candidate(brain, index) for brain in "ab" for index in product(range(4), range(5), range(5))]


def situation(*, taken=(), scores=None, foreground=None, seed=0, at=None):
    return Situation(
        candidates=CANDIDATES,
        foreground=foreground or [1] * len(CANDIDATES),
        taken=taken,
        scores=scores,
        round=at or (1 if scores is None else 2),
        seed=seed,
    )


def scored(numbers):
    """The more uncertain, the later in the list."""
    return [{"structure": number / 1000, "background": number / 2000} for number in numbers]


@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize("scores", [None, scored])
def test_every_strategy_chooses_cubes_that_are_left_again_and_again_the_same(name, scores):
    taken = [3, 47, 160]
    chosen = STRATEGIES[name](situation(taken=taken, scores=scores), 6)
    assert len({*chosen, *taken}) == 9
    assert set(chosen) <= set(range(len(CANDIDATES)))
    assert STRATEGIES[name](situation(taken=taken, scores=scores), 6) == chosen
    if (name, scores) != ("entropy", scored):  # which leaves nothing to chance
        assert STRATEGIES[name](situation(taken=taken, scores=scores, seed=1), 6) != chosen


def test_cubes_of_ours_do_not_touch():
    taken = strategies.ours(situation(), 4)
    chosen = [*taken, *strategies.ours(situation(taken=taken, scores=scored), 4)]
    assert len(chosen) == 8
    assert not any(CANDIDATES[a].place.touches(CANDIDATES[b].place) for a, b in combinations(chosen, 2))


def test_plain_entropy_takes_the_highest_mean_of_all():
    last = len(CANDIDATES) - 1
    assert strategies.plain_entropy(situation(taken=[last], scores=scored), 3) == [last - 1, last - 2, last - 3]
    assert strategies.plain_entropy(situation(), 3) == strategies.plain_random(situation(), 3)


def test_two_of_three_cubes_of_foreground_aware_random_hold_the_structure():
    foreground = [0] * len(CANDIDATES)
    rare = list(range(0, len(CANDIDATES), 20))
    for number in rare:
        foreground[number] = 5
    draws = [strategies.foreground_aware(situation(foreground=foreground, seed=seed), 3) for seed in range(100)]
    hits = np.mean([number in rare for draw in draws for number in draw])
    assert 2 / 3 - 0.05 < hits < 2 / 3 + 1 / 20 + 0.05
    assert len(strategies.foreground_aware(situation(foreground=[0] * len(CANDIDATES)), 3)) == 3


def test_octants_are_put_together_as_they_lie(tmp_path):
    cube = np.random.default_rng(0).integers(0, 1000, (4, 6, 8)).astype(np.float64)  # axes 0, 1, 2 of NIfTI
    for number in range(8):
        i, j, k = (number >> 1) & 1, number >> 2, number & 1  # octant = 4 · axis 1 + 2 · axis 0 + axis 2
        octant = cube[2 * i : 2 * i + 2, 3 * j : 3 * j + 3, 4 * k : 4 * k + 4]
        nibabel.save(nibabel.Nifti1Image(octant, np.eye(4)), tmp_path / f"patchvolume_7_{number}.nii.gz")
    assert np.array_equal(brains.whole(tmp_path, "7"), cube.T)


def made_up_runs():
    return [
        Run(
            "annotation",
            f"{strategy}, {start}",
            seed,
            budget,
            {
                running.STEPS: {
                    f"microglia_{cube}_0": {
                        "structure": "microglia",
                        "cube": f"microglia_{cube}",
                        **dict.fromkeys(
                            ("dice", "average_precision", "dice_calibrated"),
                            0.4 + 0.1 * level + 0.01 * seed + 0.2 * (start == "pretrained"),
                        ),
                    }
                    for cube in (3941, 7082)
                }
            },
        )
        for start in running.STARTS
        for level, strategy in enumerate(STRATEGIES)
        for budget in (2, 4, 8, 16)
        for seed in range(3)
    ]


def test_tables_compare_with_foreground_aware_random_of_the_same_start():
    lines = loops_table(made_up_runs(), "microglia").splitlines()
    means = [line for line in lines if line.startswith("| random weights | ours | Dice at 0.5")]
    assert means[0] == f"| random weights | ours | Dice at 0.5 |{' 41.0 (40.0 to 42.0) |' * 4}"
    assert means[1] == f"| random weights | ours | Dice at 0.5 |{' **-10.0 (-10.0 to -10.0)** |' * 4}"
    assert f"| ours | Dice at 0.5 |{' **+20.0 (+20.0 to +20.0)** |' * 4}" in lines
    assert not any(line.startswith("| pretrained | foreground-aware random") and "+" in line for line in lines)


def test_seeds_that_a_strategy_has_not_finished_are_left_out_for_all():
    runs = [run for run in made_up_runs() if (run.arm, run.labels, run.seed) != ("entropy, pretrained", 16, 2)]
    text = loops_table(runs, "microglia")
    assert "(seeds that all strategies finished: random weights 3, pretrained 2)" in text
    assert f"| pretrained | ours | Dice at 0.5 |{' 60.5 (60.0 to 61.0) |' * 4}" in text


def test_all_seeds_start_from_one_pretraining(tmp_path):
    asked = []
    study = running.LoopStudy(
        study=SimpleNamespace(pretrain=lambda *arguments: asked.append(arguments)), delivr=tmp_path
    )
    arm = running.loop("microglia", "ours", "pretrained")
    for seed in range(3):
        study.pretrain(study.stage, arm, seed)
    assert asked == [(running.CONFIRMATION, arm, running.PRETRAINING_SEED)] * 3
    assert arm.pretext == "SelmaSSLTrainer"
    assert running.loop("microglia", "ours", "random weights").pretext is None


def test_the_command_asks_for_the_data(capsys):
    with pytest.raises(SystemExit):
        main(["run"])
    assert "run needs --data" in capsys.readouterr().err


def test_the_page_keeps_its_text_where_there_are_no_runs(tmp_path):
    page = tmp_path / "results.md"
    page.write_text("a\n<!-- begin: annotation -->\n\nNot run yet.\n\n<!-- end: annotation -->\nb\n")
    write_page(tmp_path, page)
    assert "Not run yet." in page.read_text()
    folder = tmp_path / "microglia"
    folder.mkdir()
    for number, run in enumerate(made_up_runs()):
        (folder / f"{number}.json").write_text(
            json.dumps(
                {
                    "stage": run.stage,
                    "arm": run.arm,
                    "seed": run.seed,
                    "labels": run.labels,
                    "points": [{"steps": steps, "cases": cases} for steps, cases in run.points.items()],
                }
            )
        )
    write_page(tmp_path, page)
    text = page.read_text()
    assert text.startswith("a\n<!-- begin: annotation -->")
    assert text.endswith("<!-- end: annotation -->\nb\n")
    assert "Not run yet." not in text
    assert "Microglia, %" in text


@pytest.mark.slow
def test_a_loop_reveals_labels_of_chosen_cubes_and_goes_on_where_it_was(real_data, tmp_path, monkeypatch):
    from benchmarks.pretraining.running import STEPS_PER_EPOCH, Study
    from nnunet_selma.annotation.candidates import with_responses

    monkeypatch.setattr(choosing, "with_responses", with_responses)
    for name in (*FOLDER_VARIABLES, "nnUNet_extTrainer", "OMP_NUM_THREADS", "nnUNet_n_proc_DA", "nnUNet_def_n_proc"):
        monkeypatch.setenv(name, os.environ.get(name, ""))  # set by the study, and restored behind the test
    monkeypatch.setitem(running.BUDGETS, "cfos_neuron", (1, 3))
    monkeypatch.setattr(running, "OCTANTS", (0,))
    threads = torch.get_num_threads()
    study = running.LoopStudy(
        study=Study(
            sources=(real_data / "delivr",),
            unlabelled=(),
            output=tmp_path / "study",
            results=tmp_path / "results",
        ),
        delivr=real_data / "delivr",
        steps=STEPS_PER_EPOCH,
    )
    study.prepare("cfos_neuron")
    seen = []
    original = running.training_cases
    monkeypatch.setattr(
        running, "training_cases", lambda trainer: seen.append(trainer.do_split()[0]) or original(trainer)
    )
    arm = running.loop("cfos_neuron", "ours", "random weights")
    study.finetune(study.stage, arm, 0)
    first, second = (study.result(arm, 0, budget) for budget in (1, 3))
    results = [read_json(path) for path in (first, second)]
    assert [result["labels"] for result in results] == [1, 3]
    assert results[1]["cubes"] == [*results[0]["cubes"], *results[0]["next"]]
    assert results[1]["next"] == []
    assert seen == [sorted(result["cubes"]) for result in results]
    for result in results:
        (point,) = result["points"]
        assert list(point["cases"]) == ["cfos_neuron_1147_0"]
        assert 0 < point["cases"]["cfos_neuron_1147_0"]["average_precision"] < 1
    kept = first.stat().st_mtime_ns
    second.unlink()  # a killed loop
    study.finetune(study.stage, arm, 0)
    torch.set_num_threads(threads)
    assert first.stat().st_mtime_ns == kept
    assert read_json(second)["cubes"] == results[1]["cubes"]
