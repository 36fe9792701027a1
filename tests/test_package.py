"""What is installed, and what importing it costs."""

import os
import subprocess
import sys
import zipfile

import pytest

from tests.conftest import REPOSITORY

SEARCH = """
import pickle, sys
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name as find
for name in ("SelmaSSLTrainer", "SelmaFinetuneTrainer"):
    cls = find(name)
    assert cls.__module__.startswith("nnunet_selma.trainers."), cls.__module__
    assert cls is find(name)
    assert pickle.loads(pickle.dumps(cls)) is cls
import nnunet_selma
print("FROM", nnunet_selma.__file__)
"""


def run_python(program: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        cwd="/",
        check=False,
    )


@pytest.mark.parametrize(
    "module",
    ["nnunet_selma", "nnunet_selma.cli", "nnunet_selma.structures", "nnunet_selma.volumes", "nnunet_selma.trainers"],
)
def test_import_loads_no_torch(module):
    done = run_python(f"import sys, {module}; sys.exit('torch' in sys.modules)")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("folder", [REPOSITORY / "trainers", REPOSITORY / "nnunet_selma" / "ext_trainers"])
def test_nnunet_finds_both_trainers_in_a_fresh_process(folder):
    done = run_python(SEARCH, nnUNet_extTrainer=str(folder))
    assert done.returncode == 0, done.stderr


def test_an_unknown_trainer_is_not_found_and_says_so():
    import nnunet_selma.trainers

    with pytest.raises(AttributeError, match="SelmaSSLTrainer"):
        _ = nnunet_selma.trainers.SomethingElse


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "-q",
        "-w",
        str(folder),
        str(REPOSITORY),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return next(folder.glob("*.whl"))


def test_the_wheel_holds_the_package_and_no_generic_name(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"nnunet_selma"}
    packaged = {str(p.relative_to(REPOSITORY)) for p in (REPOSITORY / "nnunet_selma").rglob("*.py")}
    assert packaged <= set(names)
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_the_wheel_works_in_a_fresh_environment(wheel, tmp_path):
    """Beside the existing packages: the new environment sees them through a .pth file, but not this checkout."""
    import sysconfig

    environment = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True)
    python = environment / "bin" / "python"
    site = next((environment / "lib").glob("python*/site-packages"))
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(site), str(wheel)], check=True
    )
    (site / "existing.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    folder = subprocess.run(
        [str(python), "-c", "from nnunet_selma.ext_trainers import FOLDER; print(FOLDER)"],
        capture_output=True,
        text=True,
        check=True,
        cwd="/",
    ).stdout.strip()
    done = subprocess.run(
        [str(python), "-c", SEARCH],
        env={**os.environ, "nnUNet_extTrainer": folder},
        capture_output=True,
        text=True,
        cwd="/",
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert f"FROM {site}" in done.stdout
