"""Environments for others than this package."""

import subprocess
import sys
from pathlib import Path


def without_this_package(folder: Path) -> Path:
    """The Python of a new environment that has every package of this one but nnunet_selma."""
    import nnunetv2

    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    (site,) = folder.glob("lib/python*/site-packages")
    for entry in Path(nnunetv2.__path__[0]).parent.iterdir():
        if "nnunet_selma" not in entry.name and not (site / entry.name).exists():
            (site / entry.name).symlink_to(entry)
    python = folder / "bin" / "python"
    looked_for = (
        "import importlib.util as u; print(u.find_spec('nnunetv2') is None, u.find_spec('nnunet_selma') is None)"
    )
    done = subprocess.run([python, "-I", "-c", looked_for], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True"]
    return python


PREDICT = """from nnunetv2.inference.predict_from_raw_data import predict_entry_point_modelfolder

if __name__ == "__main__":
    predict_entry_point_modelfolder()
"""
"""`nnUNetv2_predict_from_modelfolder` as a file, which processes that are started beside it can import."""


def predict(python: Path, folder: Path, model: Path, folds: list[str]) -> None:
    """Predict the images in `in` of a folder into its `out`, on a CPU and without mirroring, in an environment."""
    (folder / "predict.py").write_text(PREDICT)
    paths = ["-i", folder / "in", "-o", folder / "out", "-m", model]
    options = ["-f", *folds, "--disable_tta", "-device", "cpu", "-npp", "1", "-nps", "1"]
    command = [python, "-I", folder / "predict.py", *paths, *options]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
