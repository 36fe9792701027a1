import pytest
import torch

from nnunet_selma.errors import SelmaError
from nnunet_selma.running.devices import available_device, usual_device


def machine(monkeypatch, *, cuda, mps):
    """Let PyTorch say that this machine has these devices."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)


@pytest.mark.parametrize(
    ("cuda", "mps", "expected"),
    [(True, True, "cuda"), (True, False, "cuda"), (False, True, "mps"), (False, False, "cpu")],
)
def test_the_usual_device_is_the_best_that_is_there(cuda, mps, expected, monkeypatch):
    machine(monkeypatch, cuda=cuda, mps=mps)
    assert usual_device() == expected
    assert available_device(usual_device()).type == expected


@pytest.mark.parametrize("name", ["cuda", "cuda:1", "mps"])
def test_a_device_that_is_not_there_is_refused(name, monkeypatch):
    machine(monkeypatch, cuda=False, mps=False)
    with pytest.raises(SelmaError, match=f"--device {name[:3]}.* take --device cpu"):
        available_device(name)
    assert available_device("cpu") == torch.device("cpu")
