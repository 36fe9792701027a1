"""A dataset that grows takes along what people put into it."""

import shutil

import pytest

from nnunet_selma.annotation.rounds import standing
from nnunet_selma.annotation.rounds_text import as_text
from nnunet_selma.errors import SelmaError
from nnunet_selma.running.json_files import read_json, write_json
from tests.annotation.datasets import DATASET, convert, grow, tree
from tests.annotation.folders import blobs, paint


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


def test_a_dataset_of_patches_is_not_touched(source, folders):
    (folders.raw / DATASET).mkdir()
    (folders.raw / DATASET / "dataset.json").write_text("{}")
    with pytest.raises(SelmaError, match="exists already and was made from other files"):
        convert(source, folders)


def test_a_dataset_from_before_cubes_could_be_taken_out_goes_on(source, folders, rng):
    convert(source, folders)
    manifest = read_json(folders.raw / DATASET / "selma_manifest.json")
    del manifest["history"][0]["removed"]
    write_json(folders.raw / DATASET / "selma_manifest.json", manifest)
    assert "version 1" in as_text(standing(510, folders))
    grow(source, folders, rng)
    convert(source, folders, {"without": ("cube_0002",)})
    assert [list(version["removed"]) for version in standing(510, folders).history] == [[], [], ["cube_0002"]]


def test_labels_from_before_a_correction_are_kept(source, folders, rng):
    convert(source, folders)
    dataset, versions = folders.raw / DATASET, []
    for _ in range(2):
        versions.append((dataset / "labelsTr/cube_0001.nii.gz").read_bytes())
        paint(source, "cube_0001", blobs(rng))
        convert(source, folders)
    grow(source, folders, rng)
    kept = {path.name: path.read_bytes() for path in (dataset / "earlier_labels").iterdir()}
    assert kept == {f"cube_0001_version_{number}.nii.gz": label for number, label in enumerate(versions, start=1)}
    assert (dataset / "labelsTr/cube_0001.nii.gz").read_bytes() not in versions
