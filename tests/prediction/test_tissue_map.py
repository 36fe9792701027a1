from dataclasses import replace

import numpy as np
import pytest
from matplotlib.image import imread

from nnunet_selma import prediction
from nnunet_selma.morphology.tissue import TissueGrid
from nnunet_selma.prediction import Execution, VolumePrediction, predict_volume
from nnunet_selma.prediction.intensities import depends_on_statistics
from nnunet_selma.prediction.tissue_map import draw_tissue, shares_along_z
from nnunet_selma.volumes import open_volume
from tests.conftest import write_image
from tests.plans import plans
from tests.prediction.models import write_model

SHAPE = (40, 64, 64)
TISSUE = (slice(12, 28), slice(20, 44), slice(20, 44))


def test_shares_are_those_of_ten_parts_of_the_depth():
    boxes = np.zeros((20, 3, 4), bool)
    boxes[4:7] = True
    assert shares_along_z(boxes) == [0, 0, 1, 0.5, 0, 0, 0, 0, 0, 0]
    assert shares_along_z(boxes[:5]) == [0, 0, 0, 0, 1]


def test_the_outline_lies_around_what_is_predicted(tmp_path):
    """Orange pixels, of the outline alone, enclose as large a part of each panel as is predicted there."""
    boxes = np.zeros((10, 10, 10), bool)
    pictures = []
    for part in (boxes, boxes.copy()):
        part[2:8, 2:8, 2:8] = part is not boxes
        draw_tissue(tmp_path / "map.png", np.zeros(boxes.shape), TissueGrid(part), None)
        pictures.append(imread(tmp_path / "map.png")[:, :, :3])
    orange = [((picture[:, :, 0] > 0.8) & (picture[:, :, 2] < 0.5)).sum() for picture in pictures]
    assert orange[0] == 0
    assert orange[1] > 6 * 4 * 30  # six squares
    assert pictures[0].shape == pictures[1].shape


@pytest.fixture(scope="module")
def brain(tmp_path_factory):
    """A bright cube in a volume that is mostly outside, and a z-score model whose network has no norm."""
    folder = tmp_path_factory.mktemp("brain")
    rng = np.random.default_rng(0)
    voxels = 100 * rng.normal(1, 0.05, SHAPE)
    voxels[TISSUE] *= 6
    write_image(folder / "brain.nii.gz", voxels.astype(np.uint16))
    content = plans()
    content["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]["norm_op"] = None
    content["configurations"]["3d_fullres"]["normalization_schemes"] = ["ZScoreNormalization"]
    model = write_model(folder / "model", content)
    return VolumePrediction(inputs=(folder / "brain.nii.gz",), output=folder / "brain.ome.zarr", model=model, block=32)


def predicted(settings):
    """Everything that a run says, and the normalisation of its volume."""
    lines, runs = [], []

    class Stopped(Exception):
        pass

    def keep(begun, *_):
        runs.append(begun.run.intensities)
        raise Stopped

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prediction, "_predict_blocks", keep)
        with pytest.raises(Stopped):
            predict_volume(settings, Execution(), say=lines.append)
    return lines, runs[0]


def test_the_map_is_there_before_the_first_block(brain, tmp_path):
    settings = replace(brain, output=tmp_path / "out.ome.zarr")
    lines, _ = predicted(settings)
    assert imread(settings.staging / "tissue.png").ndim == 3
    (line,) = [line for line in lines if line.startswith("predicted along z")]
    assert line.count("%") == 10
    predict_volume(settings, Execution())
    assert (tmp_path / "out_segmentation_tissue.png").is_file()


def test_statistics_of_tissue_are_those_of_its_voxels(brain, tmp_path):
    """The mean and deviation of the cube in every fourth slice, by numpy, are the oracle; grid boxes are 4 voxels long and fill the cube."""
    settings = replace(brain, output=tmp_path / "out.ome.zarr", statistics="tissue")
    lines, intensities = predicted(settings)
    assert not [line for line in lines if line.startswith("warning")]
    voxels = open_volume(brain.inputs[0]).read()[TISSUE][2::4].astype(float)
    (moments,) = intensities.tissue
    assert moments.count == voxels.size
    assert moments.mean == pytest.approx(voxels.mean(), rel=1e-5)
    assert moments.standard_deviation == pytest.approx(voxels.std(), rel=1e-4)


def test_statistics_of_a_mostly_empty_volume_are_warned_of(brain, tmp_path):
    lines, intensities = predicted(replace(brain, output=tmp_path / "out.ome.zarr"))
    assert [line for line in lines if line.startswith("warning") and "--statistics tissue" in line]
    assert intensities.tissue is None


@pytest.mark.parametrize(
    ("schemes", "norm", "depends"),
    [
        (["ZScoreNormalization"], None, True),
        (["ZScoreNormalization"], "torch.nn.modules.batchnorm.BatchNorm3d", True),
        (["ZScoreNormalization"], "torch.nn.modules.instancenorm.InstanceNorm3d", False),
        (["CTNormalization"], None, False),
    ],
)
def test_instance_norm_and_fixed_normalisation_need_no_statistics(schemes, norm, depends):
    configuration = {"normalization_schemes": schemes, "architecture": {"arch_kwargs": {"norm_op": norm}}}
    assert depends_on_statistics(configuration) is depends
