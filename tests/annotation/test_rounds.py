"""`nnunet-selma round`: the state of a loop, told from the files that nnU-Net leaves, and the commands that lead on."""

import os
from datetime import datetime, timedelta

import numpy as np
import pytest

from nnunet_selma import cli
from nnunet_selma.annotation.conversion import CubeSettings, convert_cubes
from nnunet_selma.annotation.rounds import KEPT, as_text, mean_and_interval, next_commands, standing
from nnunet_selma.conversion.annotated import AnnotatedSettings
from nnunet_selma.errors import SelmaError
from nnunet_selma.running.json_files import read_json, write_json
from tests.annotation.folders import SHAPE, blobs, paint, write_cubes

DATASET = "Dataset510_SELMA3D"
MODEL = "nnUNetTrainer__nnUNetPlans__3d_fullres"


@pytest.fixture
def source(tmp_path, rng):
    write_cubes(tmp_path / "cubes", rng, ["a", "b", "c"])
    return tmp_path / "cubes"


def annotate(source, rng, *numbers):
    for number in numbers:
        paint(source, f"cube_{number:04d}", blobs(rng))


def convert(source, folders, **answers):
    return convert_cubes(source, AnnotatedSettings(), CubeSettings(**answers), folders)


def at(path, moment):
    os.utime(path, (moment.timestamp(),) * 2)


class Clock:
    """Moments one minute apart, which begin with the last version of a dataset."""

    def __init__(self, folders):
        self.folders = folders
        history = read_json(folders.raw / DATASET / "selma_manifest.json")["history"]
        self.moment = datetime.fromisoformat(history[-1]["date"])

    def next(self):
        self.moment += timedelta(minutes=1)
        return self.moment

    def convert_again(self, **change):
        """Move the last version of the dataset to the next moment."""
        file = self.folders.raw / DATASET / "selma_manifest.json"
        content = read_json(file)
        content["history"][-1]["date"] = self.next().isoformat()
        write_json(file, content)

    def preprocess(self):
        """The files that nnU-Net's preprocessing leaves."""
        folder = self.folders.preprocessed / DATASET / "nnUNetPlans_3d_fullres"
        folder.mkdir(exist_ok=True)
        (folder.parent / "nnUNetPlans.json").write_text("{}")
        moment = self.next()
        for case in read_json(self.folders.raw / DATASET / "selma_manifest.json")["cases"]:
            (folder / f"{case}.pkl").touch()
            at(folder / f"{case}.pkl", moment)

    def train(self, fold, dice=None, *, finished=True):
        """The files that nnU-Net's training of a fold leaves; `dice` is case to Dice."""
        folder = self.folders.results / DATASET / MODEL / f"fold_{fold}"
        (folder / "validation").mkdir(parents=True, exist_ok=True)
        names = ["debug.json", *(["checkpoint_final.pth"] if finished else [])]
        for name in names:
            (folder / name).touch()
            at(folder / name, self.next())
        if dice is not None:
            cases = [
                {"metrics": {"1": {"Dice": value}}, "reference_file": f"/gt/{case}.nii.gz", "prediction_file": "p"}
                for case, value in dice.items()
            ]
            write_json(folder / "validation/summary.json", {"metric_per_case": cases})
            at(folder / "validation/summary.json", self.next())


def commands(source, folders):
    return [line for line in next_commands(standing(510, folders, source)) if not line.startswith("#")]


def test_the_printed_commands_lead_through_two_rounds(source, folders, rng):
    with pytest.raises(SelmaError, match="give the folder of cubes"):
        standing(510, folders)
    assert commands(source, folders) == [f"nnunet-selma view {source}/cube_0001"]
    annotate(source, rng, 1, 2)
    assert commands(source, folders) == [f"nnunet-selma view {source}/cube_0003"]
    annotate(source, rng, 3)
    assert commands(source, folders) == [f"nnunet-selma convert annotated {source} -d 510"]
    convert(source, folders)
    clock = Clock(folders)
    train = [f"nnUNetv2_train 510 3d_fullres {fold} -tr nnUNetTrainer -p nnUNetPlans" for fold in range(3)]
    again = "nnunet-selma round -d 510"
    plan = "nnUNetv2_plan_and_preprocess -d 510 -c 3d_fullres --verify_dataset_integrity"
    assert commands(None, folders) == [plan, *train, again]
    clock.preprocess()
    assert commands(None, folders) == [*train, again]
    clock.train(0)
    clock.train(1, finished=False)
    assert commands(None, folders) == [f"{train[1]} --c", train[2], again]
    clock.train(1)
    clock.train(2)
    results = folders.results / DATASET / MODEL
    brains = " ".join(f"/brains/{name}.ome.zarr" for name in "abc")
    assert commands(None, folders) == [f"nnunet-selma propose {brains} -n 3 -o {source} --level 1 --model {results}"]

    write_cubes(source, rng, ["a"], round_number=2)
    annotate(source, rng, 4)
    assert commands(None, folders) == [f"nnunet-selma convert annotated {source} -d 510"]
    convert(source, folders)
    clock.convert_again()
    preprocess = "nnUNetv2_preprocess -d 510 -plans_name nnUNetPlans -c 3d_fullres"
    assert commands(None, folders) == [preprocess, *train, again]
    state = standing(510, folders)
    assert state.stale == ["cube_0004"]
    assert [one.version for one in state.trainings] == [1, 1, 1]
    assert "round 2: 1 cube handed over (a 1), 1 changed since, 1 in the dataset" in as_text(state)


def test_the_first_training_has_the_plans_that_were_written_last(source, folders, rng):
    annotate(source, rng, 1, 2, 3)
    convert(source, folders)
    clock = Clock(folders)
    clock.preprocess()

    def write_plans(name, **content):
        path = folders.preprocessed / DATASET / f"{name}.json"
        write_json(path, content)
        at(path, clock.next())

    write_plans("nnUNetResEncUNetMPlans", configurations={"2d": {}, "3d_fullres": {}})
    train = "nnUNetv2_train 510 3d_fullres 0 -tr"
    assert commands(None, folders)[0] == f"{train} nnUNetTrainer -p nnUNetResEncUNetMPlans"
    write_plans("nnUNetSmallPlans", configurations={"3d_fullres": {}}, selma={"finetuning": {"epochs": 3}})
    assert commands(None, folders)[0] == f"{train} SelmaFinetuneTrainer -p nnUNetSmallPlans"
    write_plans("nnUNetPlans_attention_unet", configurations={"2d": {}})
    assert commands(None, folders)[0] == "nnUNetv2_train 510 2d 0 -tr nnUNetTrainer -p nnUNetPlans_attention_unet"
    clock.train(0)
    assert commands(None, folders)[0] == f"{train.replace(' 0 ', ' 1 ')} nnUNetTrainer -p nnUNetPlans"


def test_a_corrected_label_must_be_converted_and_preprocessed_again(source, folders, rng):
    annotate(source, rng, 1, 2, 3)
    convert(source, folders)
    clock = Clock(folders)
    clock.preprocess()
    annotate(source, rng, 2)
    assert "changed since they were converted: cube_0002" in as_text(standing(510, folders))
    convert(source, folders)
    clock.convert_again()
    assert standing(510, folders).stale == ["cube_0002"]


def test_the_validation_of_each_version_is_kept(source, folders, rng, capsys):
    annotate(source, rng, 1, 2, 3)
    convert(source, folders)
    clock = Clock(folders)
    clock.preprocess()
    for fold, dice in enumerate([{"cube_0001": 0.5}, {"cube_0002": 0.25}, {"cube_0003": float("nan")}]):
        clock.train(fold, dice)
    folds = read_json(folders.preprocessed / DATASET / "splits_final.json")
    assert sorted(case for fold in folds[:3] for case in fold["val"]) == ["cube_0001", "cube_0002", "cube_0003"]
    assert cli.main(["round", "-d", "510"]) == 0
    out = capsys.readouterr().out
    assert f"version 1, {MODEL}: 0.375 (0.250 to 0.500), n 2 cubes of 2 brains\n" in out
    assert "weakest brains in version 1: b 0.250 (n 1), a 0.500 (n 1)" in out
    write_cubes(source, rng, ["a"], round_number=2)
    annotate(source, rng, 4)
    convert(source, folders)
    clock.convert_again()
    clock.preprocess()
    clock.train(0, {"cube_0001": 0.75, "cube_0004": 1.0})
    assert cli.main(["round", "-d", "510"]) == 0
    out = capsys.readouterr().out
    assert f"version 1, {MODEL}: 0.375 (0.250 to 0.500), n 2 cubes of 2 brains\n" in out
    assert f"version 2, {MODEL}: 0.875 (no interval), n 2 cubes of 1 brain\n" in out
    assert "change from version 1: +0.250 (no interval), n 1 cube in both" in out
    kept = folders.results / DATASET / KEPT
    assert len(read_json(kept)["trainings"]) == 4
    written = kept.stat().st_mtime_ns
    assert cli.main(["round", "-d", "510", str(source)]) == 0
    assert kept.stat().st_mtime_ns == written


def test_validation_on_training_cases_is_called_so(tmp_path, folders, rng):
    source = tmp_path / "cubes"
    write_cubes(source, rng, ["a", "a"])
    annotate(source, rng, 1, 2)
    convert(source, folders)
    clock = Clock(folders)
    clock.preprocess()
    assert commands(None, folders)[0].startswith("nnUNetv2_train 510 3d_fullres all ")
    clock.train("all", {"cube_0001": 0.5, "cube_0002": 0.75})
    text = as_text(standing(510, folders))
    assert "0.625 (no interval), n 2 cubes of 1 brain; trained on the same cubes" in text
    assert text.endswith("-f all")


def test_a_dataset_of_patches_has_no_rounds(folders):
    (folders.raw / DATASET).mkdir()
    with pytest.raises(SelmaError, match="was not made from cubes"):
        standing(510, folders)


def test_the_interval_resamples_brains(rng):
    values = {f"{brain}{number}": level for brain, level in (("a", 0.2), ("b", 0.8)) for number in range(50)}
    brains = {case: case[0] for case in values}
    assert mean_and_interval(values, brains) == pytest.approx((0.5, 0.2, 0.8))
    alone = {case: case for case in values}
    mean, low, high = mean_and_interval(values, alone)
    expected = 1.96 * 0.3 / 10
    assert (mean, high - mean, mean - low) == pytest.approx((0.5, expected, expected), abs=0.01)


def trained(source, folders, rng):
    annotate(source, rng, 1, 2, 3)
    convert(source, folders)
    clock = Clock(folders)
    clock.preprocess()
    for fold, dice in enumerate([{"cube_0001": 0.5}, {"cube_0002": 0.25}, {"cube_0003": 0.75}]):
        clock.train(fold, dice)
    return clock


def test_a_kept_validation_stays_as_it_was_seen(source, folders, rng):
    trained(source, folders, rng)
    assert not any(one.seen for one in standing(510, folders).validations)
    kept = read_json(folders.results / DATASET / KEPT)
    file = folders.preprocessed / DATASET / "splits_final.json"
    write_json(file, [{"train": split["val"], "val": split["val"]} for split in read_json(file)])
    assert not any(one.seen for one in standing(510, folders).validations)
    assert read_json(folders.results / DATASET / KEPT) == kept


def test_the_command_keeps_validations_by_the_folds_as_they_were(tmp_path, folders, rng):
    """With a second brain, the folds no longer say that those of a single one validated what they were trained on."""
    source = tmp_path / "cubes"
    write_cubes(source, rng, ["a", "a"])
    annotate(source, rng, 1, 2)
    convert(source, folders)
    file = folders.raw / DATASET / "selma_manifest.json"
    manifest = read_json(file)
    earlier = datetime.fromisoformat(manifest["history"][0]["date"]) - timedelta(hours=1)
    manifest["history"][0]["date"] = earlier.isoformat()
    write_json(file, manifest)
    clock = Clock(folders)
    clock.preprocess()
    clock.train(0, {"cube_0001": 0.5, "cube_0002": 0.75})
    write_cubes(source, rng, ["b"], round_number=2)
    annotate(source, rng, 3)
    assert cli.main(["convert", "annotated", str(source), "-d", "510"]) == 0
    (entry,) = read_json(folders.results / DATASET / KEPT)["trainings"]
    assert (entry["version"], entry["seen"]) == (1, True)


def test_validations_of_a_dataset_that_was_removed_are_dropped(source, folders, rng):
    clock = trained(source, folders, rng)
    assert len(standing(510, folders).validations) == 1
    clock.convert_again()
    assert standing(510, folders).validations == []
    assert read_json(folders.results / DATASET / KEPT) == {"trainings": []}


def test_cubes_that_are_left_out_do_not_wait(source, folders, rng):
    annotate(source, rng, 1, 2)
    convert(source, folders, without_unchanged=True)
    state = standing(510, folders)
    assert "left out: cube_0003" in as_text(state)
    assert next_commands(state)[0].startswith("nnUNetv2_plan_and_preprocess -d 510")
    paint(source, "cube_0003", np.full(SHAPE, 255, np.uint8))
    assert commands(None, folders) == [f"nnunet-selma convert annotated {source} -d 510"]
    convert(source, folders)
    assert commands(None, folders)[0].startswith("nnUNetv2_plan_and_preprocess -d 510")


def test_the_next_proposal_repeats_the_last_one(source, folders, rng):
    trained(source, folders, rng)
    record = read_json(source / "selma_cubes.json")
    paths = {name: [f"/brains/{name}.n5", "fingerprint"] for name in ("a", "e f")}  # e f has no cube
    settings = {**record["rounds"][-1]["settings"], "count": 7, "seed": 4, "pool": 90}
    write_json(source / "selma_cubes.json", {**record, "rounds": [{"round": 1, "settings": settings, "brains": paths}]})
    (line,) = commands(None, folders)
    expected = f"propose /brains/a.n5 '/brains/e f.n5' -n 7 -o {source} --seed 4 --pool 90 --level 1 --model "
    assert line.startswith(f"nnunet-selma {expected}")


def test_commands_name_a_dataset_of_another_name(source, folders, rng):
    annotate(source, rng, 1, 2, 3)
    convert_cubes(source, AnnotatedSettings(name="Vessels"), CubeSettings(), folders)
    annotate(source, rng, 2)
    assert commands(None, folders) == [f"nnunet-selma convert annotated {source} -d 510 --name Vessels"]
