"""Devices on which a network computes."""

from typing import TYPE_CHECKING, Any

from nnunet_selma.errors import SelmaError

if TYPE_CHECKING:
    import torch


def usual_device() -> str:
    """The device that nnU-Net would compute on: cuda if there is a GPU, else mps, else cpu."""
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def available_device(name: str, option: str = "--device") -> "torch.device":
    """The PyTorch device of a name, checked to exist.

    Args:
        name: "cpu", "cuda" or "mps", also with a number, as in "cuda:1".
        option: option of the command line that names the device, for the error.

    Raises:
        SelmaError: this machine, or this PyTorch, has no such device.
    """
    import torch  # takes seconds, which commands without a network save

    device = torch.device(name)
    parts: dict[str, Any] = {"cuda": torch.cuda, "mps": torch.backends.mps}
    if device.type in parts and not parts[device.type].is_available():
        raise SelmaError(
            f"{option} {device.type} was asked for, and PyTorch {torch.__version__} finds none here; take {option} cpu"
        )
    return device
