"""The folders and variables of a demo; its commands run in tests/pipeline."""

import os

import pytest

from nnunet_selma.demo.demo import Demo, DemoSize, run_demo


@pytest.fixture
def runs(monkeypatch):
    """Demos are noted, not run; the variables that they set are removed afterwards."""
    done = []
    monkeypatch.setattr(Demo, "run", lambda demo, data: done.append((demo, data)))
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results", "nnUNet_extTrainer"):
        monkeypatch.setenv(name, "elsewhere")
    for name in ("OMP_NUM_THREADS", "nnUNet_n_proc_DA", "nnUNet_def_n_proc"):
        monkeypatch.setenv(name, "7")
    return done


def test_a_real_download_is_used_where_it_lies(runs, tmp_path):
    download = tmp_path / "download"
    download.mkdir()
    size = DemoSize(patches=5)
    run_demo(tmp_path / "out", data=download, seed=3, size=size)
    ((demo, data),) = runs
    assert data == download
    assert (demo.output, demo.seed, demo.size, demo.pipeline.device) == (tmp_path / "out", 3, size, "cpu")
    assert demo.pipeline.folders.raw == tmp_path / "out" / "workspace" / "nnUNet_raw"
    assert os.environ["nnUNet_raw"] == str(demo.pipeline.folders.raw)
    assert demo.pipeline.environment["nnUNet_def_n_proc"] == "1"  # a validation starts as many processes


def test_an_earlier_workspace_is_removed_and_the_drawn_data_stay(runs, tmp_path):
    run_demo(tmp_path)
    dataset = tmp_path / "workspace" / "nnUNet_raw" / "Dataset510_Old"
    dataset.mkdir()
    (tmp_path / "download").mkdir()
    run_demo(tmp_path)
    assert not dataset.exists()
    assert (tmp_path / "download").is_dir()
    assert [data for _, data in runs] == [None, None]
