"""Validations are kept, though nnU-Net replaces them."""

from datetime import datetime, timedelta

from nnunet_selma import cli
from nnunet_selma.annotation.kept_validations import KEPT
from nnunet_selma.annotation.rounds import standing
from nnunet_selma.running.json_files import read_json, write_json
from tests.annotation.datasets import DATASET, convert
from tests.annotation.folders import write_cubes
from tests.annotation.loops import MODEL, Clock, annotate, trained


def test_the_validation_of_each_version_is_kept(cubes, folders, rng, capsys):
    annotate(cubes, rng, 1, 2, 3)
    convert(cubes, folders)
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
    write_cubes(cubes, rng, ["a"], round_number=2)
    annotate(cubes, rng, 4)
    convert(cubes, folders)
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
    assert cli.main(["round", "-d", "510", str(cubes)]) == 0
    assert kept.stat().st_mtime_ns == written


def test_a_kept_validation_stays_as_it_was_seen(cubes, folders, rng):
    trained(cubes, folders, rng)
    assert not any(validation.seen for validation in standing(510, folders).validations)
    kept = read_json(folders.results / DATASET / KEPT)
    file = folders.preprocessed / DATASET / "splits_final.json"
    write_json(file, [{"train": split["val"], "val": split["val"]} for split in read_json(file)])
    assert not any(validation.seen for validation in standing(510, folders).validations)
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


def test_validations_of_a_dataset_that_was_removed_are_dropped(cubes, folders, rng):
    clock = trained(cubes, folders, rng)
    assert len(standing(510, folders).validations) == 1
    clock.convert_again()
    assert standing(510, folders).validations == []
    assert read_json(folders.results / DATASET / KEPT) == {"trainings": []}


def test_a_training_on_a_cube_that_was_taken_out_stays_as_it_was(tmp_path, folders, rng, capsys):
    source = tmp_path / "cubes"
    write_cubes(source, rng, ["a", "b", "b"])
    clock = trained(source, folders, rng)
    assert cli.main(["round", "-d", "510"]) == 0
    before = capsys.readouterr().out
    convert(source, folders, {"without": ("cube_0002",)})
    clock.convert_again()
    assert cli.main(["round", "-d", "510"]) == 0
    after = capsys.readouterr().out
    assert "version 2" in after
    assert "2 cases, 0 new, 0 corrected, 1 taken out" in after
    assert "left out: cube_0002" in after
    reported = [line for line in before.splitlines() if " version 1" in line]
    assert len(reported) == 6  # the version, three trainings, their validation and the weakest brains
    assert [line for line in after.splitlines() if " version 1" in line] == reported
    assert "n 3 cubes of 2 brains" in after
