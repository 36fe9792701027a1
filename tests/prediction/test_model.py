"""Stitching: logits of overlapping tiles, worked out by hand.

A volume of 2×2×6 voxels is the same in every line along x:

    x           0    1    2    3    4    5
    image      10   20   30   40   50   60

Tiles are 2×2×4 with steps of half a tile: A covers x 0 to 3, and B covers x 2 to 5. The network gives 22 for the background and, for the
class, the first voxel of the patch wherever it looks: 10 in all of A, and 30 in all of B.

Gaussian-like weights along x are 1 3 3 1 in each tile, so that the class has

    A           10   10   10   10              weights 1 3 3 1
    B                     30   30   30   30    weights     1 3 3 1
    mean        10   10   15   25   30   30    x=2: (3·10 + 1·30) / 4 = 15,  x=3: (1·10 + 3·30) / 4 = 25

and is the label where its mean is above 22. With uniform weights x=2 and x=3 have (10 + 30) / 2 = 20.

Two folds, of which the second adds 2 to the class: their mean adds (0 + 2) / 2 = 1 everywhere.

Mirrored along x the network sees the last voxel first: A has the mean of 10 and 40, which is 25, and B that of 30 and 60, which is 45. Mirroring
z and y changes nothing. x=2: (3·25 + 1·45) / 4 = 30,  x=3: (1·25 + 3·45) / 4 = 40.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch

from nnunet_selma.prediction.grids import Layer
from nnunet_selma.prediction.model import Model, Window
from nnunet_selma.prediction.tiling import Tiling
from tests.plans import plans
from tests.prediction.models import write_model

PEAKED, UNIFORM = (1.0, 3.0, 3.0, 1.0), (1.0, 1.0, 1.0, 1.0)
BY_HAND = {
    # name: weights along x, folds, mirroring, logits of the class along x, labels along x
    "weights with a peak": (PEAKED, 1, False, [10, 10, 15, 25, 30, 30], [0, 0, 0, 1, 1, 1]),
    "uniform weights": (UNIFORM, 1, False, [10, 10, 20, 20, 30, 30], [0, 0, 0, 0, 1, 1]),
    "two folds": (PEAKED, 2, False, [11, 11, 16, 26, 31, 31], [0, 0, 0, 1, 1, 1]),
    "mirrored": (PEAKED, 1, True, [25, 25, 30, 40, 45, 45], [1, 1, 1, 1, 1, 1]),
}
WHOLE = (slice(0, 2), slice(0, 2), slice(0, 6))


class FirstVoxel(torch.nn.Module):
    """Logits (batch, 2, z, y, x): 22, and the first voxel of the patch plus a bias."""

    def __init__(self):
        super().__init__()
        self.bias = torch.nn.Parameter(torch.zeros(1))

    def forward(self, patch):
        return torch.cat([torch.full_like(patch, 22), (patch[..., :1, :1, :1] + self.bias).expand_as(patch)], 1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    content = plans()
    content["configurations"]["3d_fullres"]["patch_size"] = [2, 2, 4]
    return write_model(tmp_path_factory.mktemp("model") / "model", content, folds=2)


def hand_made(folder, weights, folds, mirroring):
    """A model with the network above."""
    model = Model(replace(folder, folds=("0", "1")[:folds], mirroring=mirroring), "cpu")
    model._predictor.network = FirstVoxel().eval()
    model._predictor.list_of_parameters = [{"bias": torch.tensor([2.0 * fold])} for fold in range(folds)]
    model.__dict__["_weight"] = torch.tensor(weights, dtype=torch.half).expand(2, 2, 4)
    return model


@pytest.mark.parametrize("cut", [6, 3, 2])
@pytest.mark.parametrize("case", BY_HAND)
def test_tiles_are_stitched_as_worked_out_by_hand(case, cut, folder):
    """In one box, or in boxes that are cut off after `cut` voxels along x, of which each uses only the tiles that touch it."""
    weights, folds, mirroring, logits, labels = BY_HAND[case]
    model = hand_made(folder, weights, folds, mirroring)
    tiling = Tiling(shape=(2, 2, 6), tile=(2, 2, 4), step=0.5)
    window = Window(WHOLE, torch.arange(10.0, 70.0, 10.0).expand(1, 2, 2, 6))
    parts = []
    for start in range(0, 6, cut):
        box = (slice(0, 2), slice(0, 2), slice(start, start + cut))
        sums = model.empty_sums(box)
        model.add_tiles(sums, [Layer(planes=slice(0, 2), tiles=tuple(tiling.touching(box)))], window, batch=1)
        parts.extend(sums.means(box))
    stitched = torch.cat(parts, dim=3)
    assert np.array_equal(stitched[1], np.broadcast_to(logits, (2, 2, 6)))
    assert (stitched[0] == 22).all()
    assert np.array_equal(model.labels(stitched), np.broadcast_to(labels, (2, 2, 6)))


def test_tiles_that_touch_a_box():
    tiling = Tiling(shape=(2, 2, 6), tile=(2, 2, 4), step=0.5)
    starts = [[tile[2].start for tile in tiling.touching((*WHOLE[:2], slice(a, a + 2)))] for a in (0, 2, 4)]
    assert starts == [[0], [0, 2], [2]]


def test_probabilities_by_hand(folder):
    """With logits 0 and log(3) the class has 3 / (1 + 3) of 255: 191.25, rounded to 191."""
    model = hand_made(folder, UNIFORM, 1, False)
    logits = torch.zeros((2, 1, 1, 2))
    logits[1, ..., 1] = np.log(3)
    assert model.probabilities(logits).tolist() == [[[[128, 191]]]]  # 127.5 is rounded to the even number
