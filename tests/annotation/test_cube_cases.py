"""Images and labels of the cases that cubes become."""

import nibabel
import numpy as np
import pytest

from nnunet_selma.errors import SelmaError
from nnunet_selma.running.json_files import read_json
from tests.annotation.datasets import DATASET, convert, held_out, tree, voxels
from tests.annotation.folders import SPACING_UM, blobs, paint, values_sha256, write_cubes


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
