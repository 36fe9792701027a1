"""Voxel sizes worked out by hand, and the same unit in every place that reads one."""

import numpy as np
import pytest

from nnunet_selma.errors import SelmaError
from nnunet_selma.nnunet.plans import check_same_unit
from nnunet_selma.prediction.grids import spacing_in_plans, trained_in_voxels
from nnunet_selma.running.json_files import write_json
from nnunet_selma.volumes import open_volume
from nnunet_selma.volumes.units import spacing_from_header, um_in_header_unit
from tests.conftest import write_image

# header, micrometres in its unit, voxel size in µm
HEADERS = [
    ((1.0, 1.0, 1.0), None, None),
    ((0.002, 0.001866, 0.001866), 1000.0, (2.0, 1.866, 1.866)),
    ((6.0, 1.625, 1.625), 1.0, (6.0, 1.625, 1.625)),
    ((0.5, 0.5, 0.5), 1.0, (0.5, 0.5, 0.5)),
    ((1.0, 1.0, 2.0), 1.0, (1.0, 1.0, 2.0)),
    ((0.0, 1.0, 2.0), None, None),
    ((-1.0, 1.0, 2.0), None, None),
    ((float("nan"), 1.0, 2.0), None, None),
    ((float("inf"), 1.0, 2.0), None, None),
]


@pytest.mark.parametrize(("header", "unit", "um"), HEADERS)
def test_the_unit_of_a_header(header, unit, um):
    assert um_in_header_unit(header) == unit
    assert spacing_from_header(header) == um


def test_an_atlas_may_have_larger_voxels_in_mm():
    assert spacing_from_header((0.5, 0.2, 0.2), mm_below=1.0) == (500.0, 200.0, 200.0)
    assert spacing_from_header((25.0, 25.0, 25.0), mm_below=1.0) == (25.0, 25.0, 25.0)
    assert spacing_from_header((1.0, 1.0, 1.0), mm_below=1.0) is None


@pytest.mark.parametrize(("header", "unit", "um"), HEADERS[:5])
def test_files_plans_and_datasets_agree_on_the_unit(header, unit, um, tmp_path, folders):
    for name in ("a.nii.gz", "a.nrrd", "a.mha"):
        path = write_image(tmp_path / name, np.zeros((2, 3, 4), np.uint16), header)
        assert open_volume(path).spacing_um_zyx == (None if um is None else pytest.approx(um, rel=1e-4))
    plans = {"original_median_spacing_after_transp": list(header)}
    assert trained_in_voxels(plans) == (unit is None)
    expected = (1.0, 1.0, 1.0) if um is None else pytest.approx(header)
    assert spacing_in_plans(um, plans) == expected
    (folders.raw / "Dataset001_A").mkdir()
    write_json(folders.raw / "Dataset001_A" / "selma_manifest.json", {"cases": {"a": {"spacing_zyx": list(header)}}})
    other = (1.0, 1.0, 1.0) if um else (4.0, 2.0, 2.0)
    check_same_unit("Dataset001_A", folders, "Dataset002_B", [header])
    with pytest.raises(SelmaError, match="same --spacing"):
        check_same_unit("Dataset001_A", folders, "Dataset002_B", [other])
