"""Networks without their wrappers, and the names of their parts; of nnU-Net's networks and of those of this package."""

from torch import nn
from torch._dynamo import OptimizedModule
from torch.nn.parallel import DistributedDataParallel


def without_ddp(network: nn.Module) -> nn.Module:
    """The network without the wrapper of DistributedDataParallel."""
    return network.module if isinstance(network, DistributedDataParallel) else network


def bare(network: nn.Module) -> nn.Module:
    """The network without the wrappers of DistributedDataParallel and torch.compile."""
    network = without_ddp(network)
    if isinstance(network, OptimizedModule):
        network = network._orig_mod
    return network


def pretrained_part(network: nn.Module) -> str:
    """Name of the submodule that pretexts on features train and that a frozen encoder freezes."""
    return getattr(network, "pretrained_part", "encoder")


def stage_of(key: str) -> str:
    """Name of the stage, or of the smallest named part, in which a parameter of a network lies, as in "encoder.stages.0"."""
    words = key.split(".")
    return ".".join(words[: 3 if "stages" in words or "transpconvs" in words or "steps" in words else 2])
