import numpy as np
import pytest
import tifffile
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from nnunetv2.imageio.tif_reader_writer import Tiff3DIO

from nnunet_selma.errors import SelmaError
from nnunet_selma.nnunet.raw_cases import raw_cases, raw_reader
from nnunet_selma.running.json_files import write_json
from tests.conftest import write_image


def described(folder, ending, **more):
    (folder / "imagesTr").mkdir(parents=True)
    write_json(folder / "dataset.json", {"file_ending": ending, **more})
    return folder


def test_volumes_in_tiff_are_not_read_as_colour_pictures(tmp_path, capfd):
    raw = described(tmp_path, ".tif")
    tifffile.imwrite(raw / "imagesTr" / "a_0000.tif", np.zeros((8, 5, 6), np.uint16))
    assert raw_reader(raw, raw_cases(raw)) is Tiff3DIO
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("listed", [False, True])
def test_cases_are_those_of_nnunet(listed, tmp_path):
    entries = {"dataset": {"a": {"images": ["imagesTr/a_0000.nrrd", "imagesTr/a_0001.nrrd"]}}} if listed else {}
    raw = described(tmp_path, ".nrrd", **entries)
    files = [write_image(raw / "imagesTr" / f"a_000{channel}.nrrd", np.zeros((4, 5, 6))) for channel in range(2)]
    cases = raw_cases(raw)
    assert {case: entry["images"] for case, entry in cases.items()} == {"a": list(map(str, files))}
    assert raw_reader(raw, cases) is SimpleITKIO


def test_a_dataset_without_images_and_one_that_no_reader_takes(tmp_path):
    with pytest.raises(SelmaError, match=r"imagesTr: holds no images that end in \.nrrd"):
        raw_cases(described(tmp_path / "empty", ".nrrd"))
    raw = described(tmp_path / "damaged", ".nrrd")
    (raw / "imagesTr" / "a_0000.nrrd").write_bytes(b"no image")
    with pytest.raises(SelmaError, match=r"a_0000\.nrrd: nnU-Net cannot read the image"):
        raw_reader(raw, raw_cases(raw))
