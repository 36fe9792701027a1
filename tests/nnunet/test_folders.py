import pytest

from nnunet_selma.errors import SelmaError
from nnunet_selma.nnunet.folders import Folders


def test_a_dataset_of_which_there_are_models_only(tmp_path):
    where = Folders(raw=tmp_path / "raw", preprocessed=tmp_path / "preprocessed", results=tmp_path / "results")
    with pytest.raises(SelmaError, match="dataset 510: there is none in"):
        where.dataset(510)
    (where.results / "Dataset510_Old").mkdir(parents=True)
    assert where.dataset(510) == "Dataset510_Old"
    (where.raw / "Dataset510_Own").mkdir(parents=True)
    assert where.dataset(510) == "Dataset510_Own"
