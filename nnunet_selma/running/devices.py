"""Where a network computes."""

from typing import TYPE_CHECKING, Any

from nnunet_selma.errors import SelmaError

if TYPE_CHECKING:
    import torch


def available_device(name: str, option: str = "--device") -> "torch.device":
    """The device of that name.

    Args:
        name: "cpu", "cuda" or "mps", also with a number, as in "cuda:1".
        option: where a user names it, for the error.

    Raises:
        SelmaError: the machine, or this PyTorch, does not have it.
    """
    import torch  # seconds that commands without a network spare

    device = torch.device(name)
    parts: dict[str, Any] = {"cuda": torch.cuda, "mps": torch.backends.mps}
    if device.type in parts and not parts[device.type].is_available():
        raise SelmaError(
            f"{option} {device.type} was asked for, and PyTorch {torch.__version__} finds none here; take {option} cpu"
        )
    return device
