"""Costs of a step on a GPU, measured on a CPU: bytes kept for the backward pass, and kernels that are started."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode

_VIEWS = {
    "view",
    "_unsafe_view",
    "detach",
    "expand",
    "slice",
    "select",
    "permute",
    "transpose",
    "unsqueeze",
    "squeeze",
    "alias",
    "as_strided",
    "t",
    "reshape",
    "narrow",
    "split",
    "unbind",
    "unfold",
}


def saved_bytes(work):
    """Bytes of all memory that autograd keeps of what `work` computes."""
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = work()
    assert result is not None
    return sum(kept.values())


class _Calls(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function.overloadpacket.__name__ not in _VIEWS
        return function(*args, **(kwargs or {}))


def calls(work):
    """Operations that are no views: each starts a kernel, or some, on a GPU."""
    with _Calls() as counted:
        work()
    return counted.count
