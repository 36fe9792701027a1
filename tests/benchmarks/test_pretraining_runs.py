"""Arms, and the runs of the pretraining study on real volumes, as small as possible."""

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch

from benchmarks.pretraining.__main__ import fine_tune_as_pretrained
from benchmarks.pretraining.arms import ARMS, BASE, arm_named, merged
from benchmarks.pretraining.measuring import Case, in_tiles, middle
from nnunet_selma.nnunet.commands import FOLDER_VARIABLES
from nnunet_selma.nnunet.settings import read_settings
from nnunet_selma.running.json_files import read_json
from nnunet_selma.trainers import TRAINERS


def test_every_arm_names_trainers_and_settings_that_exist():
    for name, arm in ARMS.items():
        assert arm_named(name) is arm
        assert {arm.finetuning, *([arm.pretext] if arm.pretext else [])} <= set(TRAINERS)
        read_settings({"selma": arm.settings})
    with pytest.raises(KeyError, match="no arm is called 'nobody'"):
        arm_named("nobody")


def test_arms_that_differ_in_fine_tuning_alone_share_a_pretraining():
    shared, other = ARMS["old default"], ARMS["encoder"]
    assert shared.pretraining_name(0) == other.pretraining_name(0) != shared.pretraining_name(1)
    assert ARMS["no skips"].pretraining_name(0) != shared.pretraining_name(0)


def test_later_settings_win_and_none_is_lost():
    changed = merged(BASE, {"inpainting": {"skips": False}}, {"finetuning": {"carry": "encoder"}})
    assert changed["inpainting"] == {**BASE["inpainting"], "skips": False}
    assert changed["finetuning"]["carry"] == "encoder"
    assert BASE["inpainting"]["skips"] is True


def test_names_and_the_box_that_is_measured():
    case = Case("cfos_neuron_1147_3", np.zeros((1, 2, 2, 2)), np.zeros((2, 2, 2)))
    assert (case.structure, case.cube) == ("cfos_neuron", "cfos_neuron_1147")
    assert middle((100, 96, 40), (32, 32, 32)) == (slice(2, 98), slice(0, 96), slice(4, 36))


def test_tiles_are_put_together_where_they_were():
    image = np.random.default_rng(0).random((1, 10, 12, 9)).astype(np.float32)
    whole = in_tiles(lambda tiles: tiles[:, 0], image, (2, 4, 3))
    assert np.array_equal(whole.numpy(), image[(0, *middle((10, 12, 9), (2, 4, 3)))])


class FakeStudy:
    """Notes what is asked of it, in order; the pretraining of one seed fails."""

    def __init__(self, failing=None):
        self.asked, self.failing = [], failing

    def pretrain(self, stage, arm, seed):
        self.asked.append(("pretrain", arm.pretraining_name(seed)))
        if seed == self.failing:
            raise ValueError("the disk is full")

    def finetune(self, stage, arm, seed, labels):
        self.asked.append(("finetune", arm.name, seed, labels))


WAITING = [(ARMS[name], seed, None) for seed in (0, 1) for name in ("random", "old default", "encoder")]


def test_what_arms_share_is_pretrained_once_and_before_them():
    study = FakeStudy()
    with ThreadPoolExecutor(1) as pool:
        fine_tune_as_pretrained(study, None, WAITING, pool)
    assert sorted(entry for entry in study.asked if entry[0] == "finetune") == sorted(
        ("finetune", arm.name, seed, None) for arm, seed, _ in WAITING
    )
    for arm, seed, _ in WAITING:
        if arm.pretext:
            pretrained = ("pretrain", arm.pretraining_name(seed))
            assert study.asked.count(pretrained) == 1
            assert study.asked.index(pretrained) < study.asked.index(("finetune", arm.name, seed, None))


def test_a_failed_pretraining_stops_its_own_arms_alone(capsys):
    study = FakeStudy(failing=1)
    with (
        ThreadPoolExecutor(1) as pool,
        pytest.raises(SystemExit, match="1 trainings failed, the first with ValueError: the disk"),
    ):
        fine_tune_as_pretrained(study, None, WAITING, pool)
    done = {entry[1:3] for entry in study.asked if entry[0] == "finetune"}
    assert done == {("random", 0), ("random", 1), ("old default", 0), ("encoder", 0)}
    assert "8/8 trainings" in capsys.readouterr().out


@pytest.mark.slow
def test_an_arm_is_pretrained_fine_tuned_and_measured_once(real_data, tmp_path, monkeypatch):
    from benchmarks.pretraining.answers import answers
    from benchmarks.pretraining.running import SCREENING, STEPS_PER_EPOCH, Study

    for name in (*FOLDER_VARIABLES, "nnUNet_extTrainer", "OMP_NUM_THREADS", "nnUNet_n_proc_DA", "nnUNet_def_n_proc"):
        monkeypatch.setenv(name, os.environ.get(name, ""))  # set by the study, and restored behind the test
    threads = torch.get_num_threads()
    stage = replace(SCREENING, octants=(0,), pretraining_steps=4, points=(STEPS_PER_EPOCH,))
    study = Study(
        sources=(real_data / "delivr", real_data / "selma3d_crops"),
        unlabelled=(real_data / "wu_unlabelled",),
        output=tmp_path / "study",
        results=tmp_path / "results",
    )
    study.prepare(stage)
    for name in ("random", "no skips"):
        study.finetune(stage, ARMS[name], 0, labels=1)
    written = sorted((tmp_path / "results" / "labels").iterdir())
    assert [path.name for path in written] == ["no-skips_1_0.json", "random_1_0.json"]
    with_pretraining, without = map(read_json, written)
    assert (without["pretraining"], with_pretraining["pretraining"]["steps"]) == (None, 4)
    for result in (with_pretraining, without):
        (point,) = result["points"]
        assert {case["cube"] for case in point["cases"].values()} == set(SCREENING.test_cubes)
        for case in point["cases"].values():
            assert 0 < case["average_precision"] < 1
            assert 0 <= case["dice"] <= 1
    ranked = answers(study, stage, [ARMS["no skips"]], [0])
    assert list(ranked) == ["intensity of the image", "no skips"]
    assert all(set(cubes) == set(SCREENING.test_cubes) for cubes in ranked.values())
    assert ranked["intensity of the image"]["microglia_1874"] > 0.9  # labels of microglia follow brightness
    before = [path.stat().st_mtime_ns for path in written]
    study.finetune(stage, ARMS["random"], 0, labels=1)
    torch.set_num_threads(threads)
    assert [path.stat().st_mtime_ns for path in written] == before
