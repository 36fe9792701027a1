"""Records come back from JSON, also those that earlier versions wrote."""

import pytest

from nnunet_selma.errors import SelmaError
from nnunet_selma.prediction.records import BlockRecord, PredictionResult, RunFacts
from nnunet_selma.prediction.run import Run
from nnunet_selma.running.json_files import read_json, write_json

FACTS = {
    "shape": [50, 60, 120],
    "dtype": "uint16",
    "channels": 1,
    "spacing_um_zyx": [4.0, 2.0, 2.0],
    "model": "9d1a3b0c5e7f2468",
    "axes": [0, 1, 2],
    "flips": [False, False, False],
    "block": [32, 32, 32],
    "chunk": 32,
    "in voxels": True,
    "slab": 64,
    "rows": 60,
    "copied": True,
    "precision": "single",
    "by_image": True,
    "versions": {"nnunet_selma": "0.7.0", "nnunetv2": "2.6.2"},
}
SETTINGS = {
    "inputs": ["/brain/slices"],
    "channels": None,
    "output": "/brain/whole.ome.zarr",
    "model": {
        "folder": "/brain/model",
        "folds": ["0"],
        "checkpoint": "checkpoint_final.pth",
        "mirroring": False,
        "step_size": 0.5,
    },
    "spacing_um_zyx": [4.0, 2.0, 2.0],
    "level": 0,
    "on_bad_slice": "error",
    "tissue_only": True,
    "mask": None,
    "statistics": "volume",
    "probabilities": False,
    "raw": True,
    "name": "segmentation",
    "version": "0.5",
    "block": 32,
    "max_memory": 16.0,
}
RESULT = {
    "voxels": 360000,
    "foreground": 1234,
    "tissue share": 0.4286,
    "blocks": 16,
    "blocks without tissue": 8,
    "tiles": 96,
    "seconds of prediction": 1.5,
    "seconds of the last call": 4.2,
    "blocks in single precision": 0,
}
"""Parts of a run.json and of a record, written when they were dictionaries."""


@pytest.fixture
def run(tmp_path):
    content = {"format": 2, "settings": SETTINGS, "facts": FACTS, "id": "7b2d", "overwrite": False}
    write_json(tmp_path / "run.json", content)
    (tmp_path / "blocks").mkdir()
    write_json(tmp_path / "blocks" / "000002.json", {"tiles": 12, "foreground": 34, "seconds": 0.123})
    return Run(tmp_path)


def test_a_run_of_an_earlier_version_is_read(run):
    assert (run.id, run.overwrite) == ("7b2d", False)
    assert run.facts.in_voxels
    assert run.facts.block == (32, 32, 32)
    assert run.facts.spacing_um_zyx == (4.0, 2.0, 2.0)
    assert run.settings.model.folds == ("0",)
    assert run.block_records() == [BlockRecord(tiles=12, foreground=34, seconds=0.123)]
    assert 2 not in run.blocks_to_do()


class SameFiles:
    """Files that are those of any run."""

    def changed(self, model, files):
        return None


def test_a_run_of_an_earlier_version_is_another_run(run):
    """Its blocks were predicted in another order, and its tissue found in another way."""
    stored = read_json(run.folder / "run.json")
    write_json(run.folder / "run.json", stored | {"format": 1})
    with pytest.raises(SelmaError, match=r"another format \(1 there, 2 now\)"):
        run.check_same(run.settings, run.facts, SameFiles())


def test_sizes_of_blocks_and_slabs_do_not_make_another_run(run):
    assert run.changed_setting(run.settings, run.facts, SameFiles()) is None
    stored = read_json(run.folder / "run.json")
    write_json(run.folder / "run.json", stored | {"facts": FACTS | {"slab": 32, "block": [64, 64, 64]}})
    assert run.changed_setting(run.settings, run.facts, SameFiles()) is None
    write_json(run.folder / "run.json", stored | {"facts": FACTS | {"dtype": "uint8"}})
    with pytest.raises(SelmaError, match=r"another dtype \(uint8 there, uint16 now\)"):
        run.check_same(run.settings, run.facts, SameFiles())


def test_records_keep_their_format():
    files = {"input": {"hash": "ab", "whole": True, "times": "cd"}}
    for content in (FACTS | {"files": files}, FACTS | {"files": {}}):
        assert RunFacts.from_json(content).as_json() == content
    assert RunFacts.from_json(FACTS) == RunFacts.from_json(FACTS | {"files": {}})
    assert PredictionResult.from_json(RESULT).as_json() == RESULT
