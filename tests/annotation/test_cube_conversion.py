"""`convert annotated` of a folder of cubes: the dataset it makes, and how that grows."""

import hashlib
import os
import shutil
from contextlib import suppress

import nibabel
import numpy as np
import pytest

from nnunet_selma import cli
from nnunet_selma.annotation.conversion import CubeSettings, convert_cubes
from nnunet_selma.conversion.annotated import AnnotatedSettings
from nnunet_selma.conversion.splits import dealt_folds, splits_of_folds
from nnunet_selma.errors import SelmaError
from nnunet_selma.running.json_files import read_json, write_json
from tests.annotation.folders import SHAPE, SPACING_UM, blobs, paint, values_sha256, write_cubes

DATASET = "Dataset510_SELMA3D"


@pytest.fixture
def source(tmp_path, rng):
    """Four painted cubes of three brains, the last painted in part."""
    folder = tmp_path / "cubes"
    names = write_cubes(folder, rng, ["a", "b", "a", "c"])
    for name in names[:3]:
        paint(folder, name, blobs(rng))
    labels = blobs(rng)
    labels[5:] = 255
    paint(folder, names[3], labels)
    return folder


def convert(source, folders, answers=None, **settings):
    return convert_cubes(source, AnnotatedSettings(**settings), CubeSettings(**(answers or {})), folders)


def voxels(path):
    return np.asarray(nibabel.load(path).dataobj).T


def tree(folder):
    """Every file of a folder with its hash."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def held_out(folders):
    splits = read_json(folders.preprocessed / DATASET / "splits_final.json")
    return {case: fold for fold, split in reversed(list(enumerate(splits))) for case in split["val"]}


def test_voxels_that_nobody_annotated_get_nnunets_ignore_label(source, folders):
    before = tree(source)
    manifest = convert(source, folders, structure="microglia")
    dataset = folders.raw / DATASET
    content = read_json(dataset / "dataset.json")
    assert content["labels"] == {"background": 0, "structure": 1, "ignore": 2}
    assert (content["numTraining"], len(manifest["cases"])) == (4, 4)
    for number in range(1, 5):
        case, cube = f"microglia_cube_{number:04d}", source / f"cube_{number:04d}"
        image = nibabel.load(dataset / f"imagesTr/{case}_0000.nii.gz")
        np.testing.assert_array_equal(np.asarray(image.dataobj).T, voxels(cube / "image.nii.gz"))
        assert image.header.get_zooms() == pytest.approx(SPACING_UM[::-1])
        painted = voxels(cube / "label.nii.gz")
        expected = np.where(painted == 255, 2, painted)
        np.testing.assert_array_equal(voxels(dataset / f"labelsTr/{case}.nii.gz"), expected)
        assert manifest["cases"][case]["label_sha256"] == values_sha256(painted)
    assert (2 in expected, manifest["cases"][case]["brain"]) == (True, "c")
    assert tree(source) == before
    folds = held_out(folders)
    assert folds["microglia_cube_0001"] == folds["microglia_cube_0003"]
    assert len(set(folds.values())) == 3
    for split in read_json(folders.preprocessed / DATASET / "splits_final.json"):
        assert not set(split["train"]) & set(split["val"])


def test_nnunet_takes_the_labels_and_counts_ignored_voxels_for_nothing(source, folders):
    from nnunetv2.experiment_planning.verify_dataset_integrity import verify_dataset_integrity
    from nnunetv2.utilities.label_handling.label_handling import LabelManager

    convert(source, folders)
    verify_dataset_integrity(str(folders.raw / DATASET), num_processes=1)
    manager = LabelManager(read_json(folders.raw / DATASET / "dataset.json")["labels"], None)
    assert (manager.ignore_label, manager.num_segmentation_heads) == (2, 2)


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


def test_folds_that_a_user_changed_stay(source, folders, rng):
    convert(source, folders)
    file = folders.preprocessed / DATASET / "splits_final.json"
    cases = [f"cube_{number:04d}" for number in range(1, 5)]
    given = [{"train": [cases[0], cases[2]], "val": [cases[1], cases[3]]}]
    given += [{"train": given[0]["val"], "val": given[0]["train"]}]
    write_json(file, given)
    (name,) = write_cubes(source, rng, ["d"], round_number=2)
    paint(source, name, blobs(rng))
    convert(source, folders)
    assert read_json(file) == [
        {"train": given[0]["train"], "val": [*given[0]["val"], name]},
        {"train": [*given[1]["train"], name], "val": given[1]["val"]},
    ]


def copy_of_another_brain(source):
    """The same tissue under another path, as after a disk was renamed."""
    for name in ("cube_0001", "cube_0002"):
        cube = read_json(source / name / "cube.json")
        assert cube["path"]
    shutil.copy(source / "cube_0001/image.nii.gz", source / "cube_0004/image.nii.gz")
    origin = read_json(source / "cube_0001/cube.json")["origin_um_zyx"]
    content = read_json(source / "cube_0004/cube.json")
    write_json(source / "cube_0004/cube.json", {**content, "origin_um_zyx": origin})
    paint(source, "cube_0004", np.ones(SHAPE, np.uint8))


def test_the_same_tissue_under_another_name_shares_a_fold(source, folders):
    copy_of_another_brain(source)
    manifest = convert(source, folders)
    folds = held_out(folders)
    assert folds["cube_0004"] == folds["cube_0001"] == folds["cube_0003"]
    assert [relation["reason"] for relation in manifest["related_patches"]] == ["identical images"]


class TestQuestions:
    def test_unchanged_cubes(self, source, folders, rng):
        names = write_cubes(source, rng, ["a", "d"])
        with pytest.raises(
            SelmaError, match=r"2 cubes as handed over: cube_0005, cube_0006.*--without-unchanged.*--as-is"
        ):
            convert(source, folders)
        assert not (folders.raw / DATASET).exists()
        manifest = convert(source, folders, {"without_unchanged": True})
        assert (len(manifest["cases"]), len(manifest["left_out"])) == (4, 2)
        manifest = convert(source, folders, {"as_is": (names[0],), "without_unchanged": True})
        assert names[0] in manifest["cases"]
        assert names[1] not in manifest["cases"]
        convert(source, folders, {"without_unchanged": True})  # what was answered is not asked again

    def test_half_done_cubes(self, source, folders, rng):
        names = write_cubes(source, rng, ["a", "d", "d"])
        for name in names:
            labels = blobs(rng)
            labels[6:] = 0
            paint(source, name, labels)
        with pytest.raises(
            SelmaError, match=r"3 labels that may be unfinished: cube_0005 has no label in the 6 planes 6 to 11 along z"
        ):
            convert(source, folders)
        manifest = convert(source, folders, {"as_is": tuple(names[:2]), "without": tuple(names[2:])})
        assert {*names[:2]} <= manifest["cases"].keys()
        assert manifest["left_out"] == ["cube_0007: as asked for"]

    @pytest.mark.parametrize("how", ["handed over", "not annotated"])
    def test_an_annotation_that_is_gone(self, how, tmp_path, source, folders, rng):
        handed_over = tmp_path / "handed_over.nii.gz"
        names = write_cubes(source, rng, ["a"])
        shutil.copy(source / names[0] / "label.nii.gz", handed_over)
        paint(source, names[0], blobs(rng))
        convert(source, folders)
        if how == "handed over":
            shutil.copy(handed_over, source / names[0] / "label.nii.gz")
        else:
            paint(source, names[0], np.full(SHAPE, 255, np.uint8))
        with pytest.raises(SelmaError, match="though an annotation of it is in the dataset"):
            convert(source, folders, {"without_unchanged": True})

    def test_nothing_is_annotated(self, tmp_path, folders, rng):
        write_cubes(tmp_path / "new", rng, ["a"])
        with pytest.raises(SelmaError, match="no cube is annotated yet"):
            convert(tmp_path / "new", folders, {"without_unchanged": True})

    def test_a_label_under_another_name(self, source, folders, rng):
        (name,) = write_cubes(source, rng, ["a"])
        shutil.copy(source / name / "label.nii.gz", source / name / "label_done.nii.gz")
        with pytest.raises(SelmaError, match=r"beside it lies label_done\.nii\.gz, which is not read"):
            convert(source, folders)


def test_several_classes_are_named(source, folders, rng):
    paint(source, "cube_0001", blobs(rng, value=3))
    with pytest.raises(SelmaError, match="holds the values 3, and the dataset has 1 class"):
        convert(source, folders)
    convert(source, folders, {"classes": ("soma", "axon", "vessel")})
    labels = read_json(folders.raw / DATASET / "dataset.json")["labels"]
    assert labels == {"background": 0, "soma": 1, "axon": 2, "vessel": 3, "ignore": 4}
    assert voxels(folders.raw / DATASET / "labelsTr/cube_0004.nii.gz").max() == 4


def test_channels(tmp_path, folders, rng):
    source = tmp_path / "cubes"
    names = write_cubes(source, rng, ["a", "b"], channels=2)
    for name in names:
        paint(source, name, blobs(rng))
    with pytest.raises(SelmaError, match="has 2 channels, and 1 name"):
        convert(source, folders)
    convert(source, folders, stains=("cfos", "auto"))
    assert read_json(folders.raw / DATASET / "dataset.json")["channel_names"] == {"0": "cfos", "1": "auto"}
    second = voxels(folders.raw / DATASET / "imagesTr/cube_0002_0001.nii.gz")
    np.testing.assert_array_equal(second, voxels(source / "cube_0002/image_channel_1.nii.gz"))


def other_image(source, folders, rng):
    write_cubes(source.parent / "other", rng, ["x"] * 4)
    shutil.copy(source.parent / "other/cube_0001/image.nii.gz", source / "cube_0001/image.nii.gz")
    return {}


def removed(source, folders, rng):
    shutil.rmtree(source / "cube_0002")
    return {}


def other_classes(source, folders, rng):
    return {"answers": {"classes": ("soma",)}}


def other_structure(source, folders, rng):
    return {"structure": "microglia"}


def left_out_later(source, folders, rng):
    return {"answers": {"without": ("cube_0001",)}}


def no_cube(source, folders, rng):
    return {"answers": {"as_is": ("cube_0099",)}}


def of_patches(source, folders, rng):
    return {"foreground": 1}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (other_image, "is another image than cube_0001 in the dataset"),
        (removed, "lacks cube_0002, which the dataset holds"),
        (other_classes, "was begun with classes structure"),
        (other_structure, "was begun with structure not given"),
        (left_out_later, "is in the dataset already"),
        (no_cube, "cube_0099: is no cube of"),
        (of_patches, "--foreground: means nothing for"),
    ],
)
def test_what_would_not_fit_the_dataset_is_refused(change, words, source, folders, rng):
    convert(source, folders)
    files = tree(folders.raw)
    more = change(source, folders, rng)
    with pytest.raises(SelmaError, match=words):
        convert(source, folders, **more)
    assert tree(folders.raw) == files


def test_a_dataset_of_patches_is_not_touched(source, folders):
    (folders.raw / DATASET).mkdir()
    (folders.raw / DATASET / "dataset.json").write_text("{}")
    with pytest.raises(SelmaError, match="exists already and was made from other files"):
        convert(source, folders)


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


def test_dealt_folds_are_even_and_part_no_group():
    groups = {f"c{number:02d}": f"g{number // 3}" for number in range(24)}
    folds = dealt_folds(groups, {}, 5)
    assert {case: folds[case] for case in groups} == {
        case: folds[f"c{3 * (int(case[1:]) // 3):02d}"] for case in groups
    }
    sizes = [list(folds.values()).count(fold) for fold in range(5)]
    assert max(sizes) - min(sizes) <= 3
    grown = dealt_folds({**groups, "c24": "g0", "c25": "g9"}, {**folds, "c24": 2}, 5)
    assert {case: grown[case] for case in groups} == folds
    assert grown["c24"] == 2  # where it was, though its group is elsewhere
    sizes[2] += 1
    assert grown["c25"] == sizes.index(min(sizes))
    assert dealt_folds({**groups, "c24": "g0"}, folds, 5)["c24"] == folds["c00"]
    splits = splits_of_folds(folds, 5)
    assert sorted(case for split in splits for case in split["val"]) == sorted(groups)
    assert splits_of_folds({"a": 0, "b": 1}, 3)[2] == {"train": ["b"], "val": ["a"]}
    assert splits_of_folds({"a": 0}, 2) == [{"train": ["a"], "val": ["a"]}] * 2


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


def test_options_for_cubes_are_refused_for_patches(tmp_path, folders, capsys):
    (tmp_path / "patches").mkdir()
    assert cli.main(["convert", "annotated", str(tmp_path / "patches"), "--without-unchanged"]) == 2
    assert "--without-unchanged: is for folders that nnunet-selma propose wrote" in capsys.readouterr().err


def grow(source, folders, rng, brain="d"):
    """Convert with one more cube of a brain; returns its name."""
    (name,) = write_cubes(source, rng, [brain], round_number=2)
    paint(source, name, blobs(rng))
    convert(source, folders)
    return name


class TestWhatPeoplePutIntoTheDataset:
    def test_goes_along(self, source, folders, rng):
        convert(source, folders)
        dataset = folders.raw / DATASET
        (dataset / "labelsTs/deep").mkdir(parents=True)
        (dataset / "labelsTs/deep/test.nii.gz").write_bytes(b"by hand")
        (dataset / "notes.txt").write_text("by hand")
        (dataset / "latest").symlink_to("notes.txt")
        (dataset / "gone").symlink_to("labelsTs/none")
        name = grow(source, folders, rng)
        assert (dataset / f"labelsTr/{name}.nii.gz").is_file()
        assert (dataset / "labelsTs/deep/test.nii.gz").read_bytes() == b"by hand"
        assert (dataset / "latest").read_text() == "by hand"
        assert ((dataset / "latest").is_symlink(), (dataset / "gone").is_symlink()) == (True, True)
        assert [path.name for path in folders.raw.iterdir() if path.is_dir()] == [DATASET]

    @pytest.mark.parametrize(
        "file", ["imagesTr/mine_0000.nii.gz", "labelsTr/mine.nii.gz", "imagesTr/cube_0001_0001.nii.gz"]
    )
    def test_is_refused_among_the_cases(self, file, source, folders, rng):
        convert(source, folders)
        (folders.raw / DATASET / file).touch()
        files = tree(folders.raw)
        with pytest.raises(SelmaError, match=f"{file}: belongs to no cube"):
            grow(source, folders, rng)
        assert tree(folders.raw) == files

    def test_a_dataset_may_be_a_link(self, source, folders, rng, tmp_path):
        convert(source, folders)
        elsewhere = tmp_path / "disk/cubes"
        elsewhere.parent.mkdir()
        shutil.move(folders.raw / DATASET, elsewhere)
        (folders.raw / DATASET).symlink_to(elsewhere)
        name = grow(source, folders, rng)
        assert (folders.raw / DATASET).readlink() == elsewhere
        assert (elsewhere / f"labelsTr/{name}.nii.gz").is_file()
        assert [path.name for path in elsewhere.parent.iterdir()] == ["cubes"]
        assert read_json(elsewhere / "dataset.json")["name"] == DATASET


class TestFoldsMadeByHand:
    def test_overlapping_ones_stay_and_take_new_cases_beside_their_brain(self, source, folders, rng):
        convert(source, folders)
        file = folders.preprocessed / DATASET / "splits_final.json"
        given = [
            {"train": ["cube_0002"], "val": ["cube_0003", "cube_0001"]},
            {"train": ["cube_0004"], "val": ["cube_0001", "cube_0002", "cube_0003"]},
        ]
        write_json(file, given)
        text = file.read_text()
        assert not convert(source, folders)["grown"]
        assert file.read_text() == text
        name = grow(source, folders, rng, "a")
        assert read_json(file) == [{**split, "val": [*split["val"], name]} for split in given]
        other = grow(source, folders, rng, "c")
        assert other in read_json(file)[1]["train"]

    def test_a_case_that_was_taken_out_stays_out(self, source, folders, rng):
        convert(source, folders)
        file = folders.preprocessed / DATASET / "splits_final.json"
        splits = [{part: [c for c in cases if c != "cube_0004"] for part, cases in s.items()} for s in read_json(file)]
        splits = [split for split in splits if split["val"]]
        write_json(file, splits)
        convert(source, folders)
        assert read_json(file) == splits
        name = grow(source, folders, rng, "b")
        placed = {case for split in read_json(file) for case in (*split["train"], *split["val"])}
        assert placed == {"cube_0001", "cube_0002", "cube_0003", name}


@pytest.mark.parametrize("renamed", ["brain", "path"])
def test_cubes_of_one_name_or_of_one_path_share_a_fold(renamed, source, folders):
    content = read_json(source / "cube_0003/cube.json")
    write_json(source / "cube_0003/cube.json", {**content, renamed: "/moved/elsewhere"})
    manifest = convert(source, folders)
    folds = held_out(folders)
    assert folds["cube_0001"] == folds["cube_0003"] != folds["cube_0002"]
    assert manifest["groups"]["cube_0001"] == manifest["groups"]["cube_0003"]


def test_numbers_that_are_given_are_compared_also_where_they_are_the_default(source, folders, capsys):
    command = ["convert", "annotated", str(source), "-d", "510"]
    assert cli.main([*command, "--folds", "3"]) == 0
    assert cli.main(command) == 0
    assert cli.main([*command, "--folds", "3", "--seed", "0"]) == 0
    capsys.readouterr()
    assert cli.main([*command, "--folds", "5"]) == 2
    assert "was begun with folds 3" in capsys.readouterr().err


def test_what_was_left_out_is_not_asked_again_until_its_label_changes(source, folders, rng):
    names = write_cubes(source, rng, ["a", "b", "c"], round_number=2)
    paint(source, names[1], np.full(SHAPE, 255, np.uint8))
    (source / names[2] / "label.nii.gz").write_bytes(b"damaged")
    manifest = convert(source, folders, {"without_unchanged": True, "without": (names[2],)})
    assert (len(manifest["cases"]), sorted(manifest["left_out_cubes"])) == (4, names)
    assert convert(source, folders) == {**manifest, "grown": False}
    labels = blobs(rng)
    labels[6:] = 0
    paint(source, names[0], labels)
    with pytest.raises(SelmaError, match=f"{names[0]} has no label in the 6 planes"):
        convert(source, folders)
    paint(source, names[0], blobs(rng))
    manifest = convert(source, folders)
    assert (manifest["grown"], names[0] in manifest["cases"], sorted(manifest["left_out_cubes"])) == (
        True,
        True,
        names[1:],
    )


def test_an_answer_is_kept_where_nothing_is_new(source, folders, rng):
    convert(source, folders)
    names = write_cubes(source, rng, ["a"], round_number=2)
    splits = (folders.preprocessed / DATASET / "splits_final.json").read_bytes()
    assert not convert(source, folders, {"without_unchanged": True})["grown"]
    there = read_json(folders.raw / DATASET / "selma_manifest.json")
    assert (sorted(there["left_out_cubes"]), len(there["history"])) == (names, 1)
    assert (folders.preprocessed / DATASET / "splits_final.json").read_bytes() == splits


def test_an_earlier_version_that_is_put_back_is_not_a_new_one(source, folders, capsys):
    convert(source, folders)
    (folders.raw / DATASET).rename(folders.raw / f".{DATASET}.former")
    assert cli.main(["convert", "annotated", str(source), "-d", "510"]) == 0
    assert "nothing new" in capsys.readouterr().out
