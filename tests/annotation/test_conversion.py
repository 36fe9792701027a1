"""`convert annotated` of a folder of cubes: the dataset that it makes, and how that grows."""

import os
import shutil
from contextlib import suppress

import numpy as np
import pytest

from nnunet_selma import cli
from nnunet_selma.errors import SelmaError
from nnunet_selma.running.json_files import read_json
from tests.annotation.datasets import DATASET, convert, held_out, tree, voxels
from tests.annotation.folders import blobs, paint, write_cubes


def test_a_dataset_grows_and_old_cases_keep_their_fold(source, folders, rng):
    first = convert(source, folders, structure="microglia")
    folds, files = held_out(folders), tree(folders.raw / DATASET)
    assert convert(source, folders) == {**first, "grown": False}  # nothing new
    assert tree(folders.raw / DATASET) == files
    new = write_cubes(source, rng, ["d", "b"], round_number=2)
    for name in new:
        paint(source, name, blobs(rng))
    corrected = blobs(rng)
    corrected[0] = 1
    paint(source, "cube_0002", corrected)
    manifest = convert(source, folders)
    entry = manifest["history"][-1]
    assert sorted(entry["added"]) == ["microglia_cube_0005", "microglia_cube_0006"]
    earlier = first["cases"]["microglia_cube_0002"]["label_sha256"]
    now = manifest["cases"]["microglia_cube_0002"]["label_sha256"]
    assert (entry["changed"], earlier != now) == ({"microglia_cube_0002": {"from": earlier, "to": now}}, True)
    assert manifest["history"][0] == first["history"][0]
    after = held_out(folders)
    assert {case: after[case] for case in folds} == folds
    assert after["microglia_cube_0006"] == folds["microglia_cube_0002"]
    assert after["microglia_cube_0005"] not in folds.values()
    changed = {name for name, digest in tree(folders.raw / DATASET).items() if files.get(name, digest) != digest}
    assert changed == {"labelsTr/microglia_cube_0002.nii.gz", "dataset.json", "selma_manifest.json"}
    np.testing.assert_array_equal(voxels(folders.raw / DATASET / "labelsTr/microglia_cube_0002.nii.gz"), corrected)
    assert read_json(folders.raw / DATASET / "dataset.json")["numTraining"] == 6


def other_image(source, folders, rng):
    write_cubes(source.parent / "other", rng, ["x"] * 4)
    shutil.copy(source.parent / "other/cube_0001/image.nii.gz", source / "cube_0001/image.nii.gz")
    return {}


def lost(source, folders, rng):
    shutil.rmtree(source / "cube_0002")
    return {}


def no_cube_left(source, folders, rng):
    return {"answers": {"without": tuple(f"cube_{number:04d}" for number in range(1, 5))}}


def no_cube(source, folders, rng):
    return {"answers": {"as_is": ("cube_0099",)}}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (other_image, "is another image than cube_0001 in the dataset"),
        (lost, "lacks cube_0002, which the dataset holds; put it back, or take it out with --without cube_0002"),
        (no_cube_left, "would hold no cube any more; remove the folder instead"),
        (no_cube, "cube_0099: is no cube of"),
    ],
)
def test_what_would_not_fit_the_dataset_is_refused(change, words, source, folders, rng):
    convert(source, folders)
    files = tree(folders.raw)
    more = change(source, folders, rng)
    with pytest.raises(SelmaError, match=words):
        convert(source, folders, **more)
    assert tree(folders.raw) == files


class TestACubeThatIsTakenOut:
    def test_leaves_the_dataset_and_its_fold(self, source, folders):
        first = convert(source, folders)
        folds, files, painted = held_out(folders), tree(folders.raw / DATASET), tree(source)
        manifest = convert(source, folders, {"without": ("cube_0002",)})
        assert sorted(manifest["cases"]) == ["cube_0001", "cube_0003", "cube_0004"]
        entry = manifest["history"][-1]
        digest = first["cases"]["cube_0002"]["label_sha256"]
        assert entry["removed"] == {"cube_0002": {"brain": "b", "label_sha256": digest}}
        assert (entry["cases"], entry["added"], entry["changed"]) == (3, {}, {})
        after = tree(folders.raw / DATASET)
        assert files.keys() - after.keys() == {"imagesTr/cube_0002_0000.nii.gz", "labelsTr/cube_0002.nii.gz"}
        assert {name for name in after if after[name] != files[name]} == {"dataset.json", "selma_manifest.json"}
        assert read_json(folders.raw / DATASET / "dataset.json")["numTraining"] == 3
        assert folds.pop("cube_0002") not in folds.values()
        splits = read_json(folders.preprocessed / DATASET / "splits_final.json")
        assert held_out(folders).keys() == folds.keys()
        for case, fold in folds.items():
            assert case in splits[fold]["val"]
        assert "cube_0002" not in str(splits)
        assert tree(source) == painted

    def test_stays_out_until_it_is_asked_for(self, source, folders, rng):
        convert(source, folders)
        manifest = convert(source, folders, {"without": ("cube_0002",)})
        for answers in ({"without": ("cube_0002",)}, {}):
            assert convert(source, folders, answers) == {**manifest, "grown": False}
        manifest = convert(source, folders, {"as_is": ("cube_0002",)})
        assert list(manifest["history"][-1]["added"]) == ["cube_0002"]
        assert "cube_0002" in held_out(folders)
        convert(source, folders, {"without": ("cube_0002",)})
        paint(source, "cube_0002", blobs(rng))
        assert "cube_0002" in convert(source, folders)["cases"]

    def test_may_be_gone(self, source, folders):
        convert(source, folders)
        shutil.rmtree(source / "cube_0002")
        manifest = convert(source, folders, {"without": ("cube_0002",)})
        assert sorted(manifest["cases"]) == ["cube_0001", "cube_0003", "cube_0004"]
        assert convert(source, folders) == {**manifest, "grown": False}

    def test_leaves_its_fold_though_the_run_was_killed_before(self, source, folders):
        convert(source, folders)
        file = folders.preprocessed / DATASET / "splits_final.json"
        before = file.read_text()
        convert(source, folders, {"without": ("cube_0002",)})
        after = file.read_text()
        file.write_text(before)
        os.utime(file, (0, 0))
        convert(source, folders)
        assert file.read_text() == after != before

    def test_is_reported_by_the_command(self, source, folders, capsys):
        command = ["convert", "annotated", str(source), "-d", "510"]
        assert cli.main(command) == 0
        assert cli.main([*command, "--without", "cube_0002"]) == 0
        assert "version 2: 0 new, 0 corrected, 1 taken out" in capsys.readouterr().out


@pytest.mark.parametrize("killed_at", range(18))
def test_a_kill_at_any_time_leaves_a_whole_version(killed_at, source, folders, rng, monkeypatch):
    """Each step that changes names on the disk may be the last one; the same command then makes what it would have made."""
    first = convert(source, folders)
    by_hand = folders.raw / DATASET / "labelsTs/test.nii.gz"
    by_hand.parent.mkdir()
    by_hand.write_bytes(b"by hand")
    small = tree(folders.raw / DATASET)
    (name,) = write_cubes(source, rng, ["d"], round_number=2)
    paint(source, name, blobs(rng))
    labels = tree(source)
    steps = iter(range(100))

    class Killed(BaseException):
        pass

    def dies(act):
        def step(*arguments, **more):
            if next(steps) == killed_at:
                raise Killed
            return act(*arguments, **more)

        return step

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", dies(os.replace))
        patch.setattr(os, "link", dies(os.link))
        with suppress(Killed):
            convert(source, folders)
    there = folders.raw / DATASET
    if there.exists():
        count = len(read_json(there / "selma_manifest.json")["cases"])
        assert count in (4, 5)
        assert len(list((there / "imagesTr").glob("*.nii.gz"))) == count
        assert count == 5 or tree(there) == small
    manifest = convert(source, folders)
    assert len(manifest["cases"]) == 5
    assert manifest["history"][0] == first["history"][0]
    assert len(manifest["history"]) == 2
    assert set(held_out(folders)) == set(manifest["cases"])
    assert tree(source) == labels
    assert by_hand.read_bytes() == b"by hand"
    assert [path.name for path in folders.raw.iterdir() if path.is_dir()] == [DATASET]


def test_the_command(source, folders, rng, capsys):
    write_cubes(source, rng, ["d"])
    command = ["convert", "annotated", str(source), "-d", "510"]
    assert cli.main(command) == 2
    assert "cube_0005; leave them out for now with --without-unchanged" in capsys.readouterr().err
    assert cli.main([*command, "--without-unchanged", "--structure", "microglia"]) == 0
    out = capsys.readouterr().out
    assert "left out: cube_0005: its label is as it was handed over" in out
    assert "58.3% of the voxels are not annotated" in out
    assert "\n  nnUNetv2_plan_and_preprocess -d 510 -c 3d_fullres --verify_dataset_integrity" in out
    (folders.preprocessed / DATASET / "nnUNetPlans.json").write_text("{}")
    assert cli.main([*command, "--without-unchanged"]) == 0
    assert "nothing new" in capsys.readouterr().out
    paint(source, "cube_0005", blobs(rng))
    assert cli.main(command) == 0
    out = capsys.readouterr().out
    assert "version 2: 1 new, 0 corrected" in out
    assert "\n  nnUNetv2_preprocess -d 510 -plans_name nnUNetPlans -c 3d_fullres" in out


def test_an_earlier_version_that_is_put_back_is_not_a_new_one(source, folders, capsys):
    convert(source, folders)
    (folders.raw / DATASET).rename(folders.raw / f".{DATASET}.former")
    assert cli.main(["convert", "annotated", str(source), "-d", "510"]) == 0
    assert "nothing new" in capsys.readouterr().out
