import blosc2
import numpy as np
import pytest
from batchgenerators.utilities.file_and_folder_operations import write_pickle

from nnunet_selma.errors import SelmaError
from nnunet_selma.nnunet.preprocessed_cases import faults_of_cases, padding_sentence, shapes_of_cases


@pytest.mark.parametrize(
    ("shapes", "patch", "padding"),
    [
        ([(64, 64, 64)], (32, 32, 32), None),
        ([(30, 64, 64)], (32, 32, 32), None),
        ([(24, 64, 64)], (32, 32, 32), "25%"),
        ([(16, 64, 64), (64, 64, 64)], (32, 32, 32), "25%"),
        ([(3, 48, 64)], (64, 64), "25%"),
        ([], (32, 32, 32), None),
    ],
)
def test_some_padding_is_warned_of(shapes, patch, padding):
    said = padding_sentence(shapes, patch)
    assert (padding is None) == (said == "")
    assert padding is None or said.startswith(f"{padding} of a patch of {'×'.join(map(str, patch))} is padding")


def test_a_patch_that_is_mostly_padding_is_refused():
    with pytest.raises(
        SelmaError, match="69% of a patch of 32×32×32 is padding, because cases are as small as 10×40×40"
    ):
        padding_sentence([(10, 40, 40)], (32, 32, 32))


def test_shapes_of_many_cases_are_those_of_an_even_spread(tmp_path):
    class Cases:
        def __init__(self, folder, names):
            assert folder == str(tmp_path)
            assert len(names) <= 64

        @staticmethod
        def get_identifiers(folder):
            return [f"{number:03d}" for number in range(200)]

        @staticmethod
        def load_case(name):
            return np.zeros((1, int(name) + 1, 2, 3)), None, None, {}

    shapes = shapes_of_cases(tmp_path, Cases)
    assert shapes[0] == (1, 2, 3)
    assert shapes[-1][0] > 190
    assert len(shapes) <= 64


def write_case(folder, name, voxels):
    for ending in ("", "_seg"):
        blosc2.asarray(voxels, urlpath=str(folder / f"{name}{ending}.b2nd"))
    write_pickle({}, str(folder / f"{name}.pkl"))


def cut(path):
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def test_damaged_files_and_numbers_that_are_not_finite_are_named(tmp_path, rng):
    voxels = rng.normal(size=(1, 40, 20, 20)).astype(np.float32)
    for name in ("good", "image", "label", "properties", "nan"):
        write_case(tmp_path, name, voxels)
    blosc2.open(str(tmp_path / "nan.b2nd"), mode="a")[0, 39, 3, 3] = np.nan
    for file in ("image.b2nd", "label_seg.b2nd", "properties.pkl"):
        cut(tmp_path / file)
    faults = list(faults_of_cases(tmp_path, ["good", "image", "label", "properties", "nan"]))
    assert [fault.split(", which", 1)[0] for fault in faults] == [
        str(tmp_path / file) for file in ("image.b2nd", "label_seg.b2nd", "properties.pkl", "nan.b2nd")
    ]
    assert all("is damaged" in fault for fault in faults[:3])
    assert "not finite" in faults[3]
    assert list(faults_of_cases(tmp_path, ["good", "nan"], damaged_only=True)) == []


def test_a_case_of_a_tile_store_has_no_label_and_is_good(tmp_path, rng):
    write_case(tmp_path, "tile", rng.integers(0, 9, (1, 4, 4, 4)).astype(np.uint16))
    (tmp_path / "tile_seg.b2nd").unlink()
    assert list(faults_of_cases(tmp_path, ["tile"])) == []
