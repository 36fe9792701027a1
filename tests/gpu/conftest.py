"""Checks on a GPU: `make gpu` runs them and writes a table into docs/performance.md.

`pytest tests/gpu --device cpu` rehearses on a CPU, at small sizes, all of them that a CPU can run.
"""

import platform
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

_BEGIN, _END = "<!-- gpu: begin -->", "<!-- gpu: end -->"
_ROWS = pytest.StashKey()


@dataclass(frozen=True)
class Size:
    """How large the checks are."""

    patch: int
    features: tuple[int, ...]
    steps: int
    batch: int = 2
    seeds: int = 5
    memory_patch: int = 128
    volume: int = 160


FULL = Size(patch=64, features=(32, 64, 128, 256), steps=20)
REHEARSAL = Size(patch=16, features=(4, 8, 8), steps=2, seeds=1, memory_patch=16, volume=40)


def pytest_addoption(parser):
    parser.addoption("--device", default="cuda", choices=("cuda", "cpu"), help="cpu: a rehearsal at small sizes")
    parser.addoption("--gpu-page", type=Path, help="page whose table is replaced by this run's")


def _device(config):
    return torch.device(config.getoption("--device", "cuda"))


def pytest_configure(config):
    config.stash[_ROWS] = []


def pytest_collection_modifyitems(config, items):
    if _device(config).type == "cuda" and not torch.cuda.is_available():
        here = Path(__file__).parent
        for item in items:
            if here in item.path.parents:
                item.add_marker(
                    pytest.mark.skip(reason="PyTorch finds no CUDA device here; make gpu is for a machine that has one")
                )


@pytest.fixture(scope="session")
def device(request):
    return _device(request.config)


@pytest.fixture(scope="session")
def size(device):
    return FULL if device.type == "cuda" else REHEARSAL


@pytest.fixture(autouse=True)
def eager(monkeypatch):
    """nnU-Net compiles on a GPU unless it is told not to; the check of torch.compile says otherwise for itself."""
    monkeypatch.setenv("nnUNet_compile", "f")


@pytest.fixture
def row(request):
    """Adds a row to the table: what was checked, what came out, and what was asked for."""
    return lambda *cells: request.config.stash[_ROWS].append(cells)


def _table(rows):
    lines = [
        "| check | result | asked for |",
        "|---|---|---|",
        *("| " + " | ".join(map(str, cells)) + " |" for cells in rows),
    ]
    card = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{platform.machine()} (rehearsal)"
    versions = ", ".join(f"{name} {version(name)}" for name in ("nnunetv2", "torch"))
    return "\n".join([*lines, "", f"On: {card}; CUDA {torch.version.cuda}; {versions}; {date.today().isoformat()}."])


def pytest_terminal_summary(terminalreporter, config):
    rows = config.stash[_ROWS]
    if not rows:
        return
    terminalreporter.write_line(_table(rows))
    page = config.getoption("--gpu-page", None)
    if page is not None and _device(config).type == "cuda":
        before, rest = page.read_text(encoding="utf-8").split(_BEGIN)
        _, after = rest.split(_END)
        page.write_text(f"{before}{_BEGIN}\n{_table(rows)}\n{_END}{after}", encoding="utf-8")
