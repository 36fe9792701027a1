"""The state of a loop, told from the files that nnU-Net leaves."""

import pytest

from nnunet_selma.annotation.rounds import standing
from nnunet_selma.errors import SelmaError
from tests.annotation.datasets import DATASET


def test_a_dataset_of_patches_has_no_rounds(folders):
    (folders.raw / DATASET).mkdir()
    with pytest.raises(SelmaError, match="was not made from cubes"):
        standing(510, folders)
