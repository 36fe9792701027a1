import os

import pytest

from nnunet_selma.errors import SelmaError
from nnunet_selma.json_files import write_json
from nnunet_selma.pretrained import find_pretrained, network_identity
from tests.plans import plans

NETWORK = network_identity(plans()["configurations"]["3d_fullres"])
OTHER = network_identity(plans("128×128×112")["configurations"]["3d_fullres"])


def run(results, dataset, network, age):
    fold = results / dataset / "SelmaSSLTrainer__p__3d_fullres" / "fold_all"
    fold.mkdir(parents=True)
    write_json(fold / "ssl_summary.json", {"network": network})
    (fold / "checkpoint_final.pth").touch()
    os.utime(fold / "ssl_summary.json", (1e9 - age, 1e9 - age))
    return fold / "checkpoint_final.pth"


def test_the_newest_run_of_the_same_network(tmp_path):
    run(tmp_path, "Dataset500_old", NETWORK, age=50)
    newest = run(tmp_path, "Dataset501_new", NETWORK, age=10)
    run(tmp_path, "Dataset502_other", OTHER, age=0)
    assert find_pretrained("newest", tmp_path, NETWORK) == newest


def test_a_run_without_its_checkpoint_is_not_finished(tmp_path):
    run(tmp_path, "Dataset500_a", NETWORK, age=0).unlink()
    with pytest.raises(SelmaError, match="no finished pretraining"):
        find_pretrained("newest", tmp_path, NETWORK)


def test_paths_and_none(tmp_path):
    assert find_pretrained("none", tmp_path, NETWORK) is None
    path = run(tmp_path, "Dataset500_a", OTHER, age=0)
    assert find_pretrained(str(path), tmp_path, NETWORK) == path
    with pytest.raises(SelmaError, match="no such checkpoint"):
        find_pretrained(str(tmp_path / "x.pth"), tmp_path, NETWORK)
    with pytest.raises(SelmaError, match=r"1 pretraining\(s\) there have another network"):
        find_pretrained("newest", tmp_path, NETWORK)
