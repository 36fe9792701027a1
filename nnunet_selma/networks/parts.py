"""Networks without their wrappers, and the names of their parts, for nnU-Net's networks and those of this package."""

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


def pretrained_module(network: nn.Module) -> nn.Module:
    """The submodule that `pretrained_part` names; raises `AttributeError` if the network has none of that name."""
    return network.get_submodule(pretrained_part(network))


def has_encoder_and_decoder(network: nn.Module) -> bool:
    """True for a network of an `encoder` and a `decoder`, as nnU-Net's U-Nets and `EncoderDecoder` are."""
    return hasattr(network, "encoder") and hasattr(network, "decoder")


def encoder_of(network: nn.Module) -> nn.Module:
    """The encoder whose maps the decoder reads; `pretrained_part` may be a part of it."""
    return network.get_submodule("encoder")


def decoder_of(network: nn.Module) -> nn.Module:
    """The decoder, which turns the encoder's maps into a patch."""
    return network.get_submodule("decoder")


def stage_of(key: str) -> str:
    """Name of the stage in which a parameter of a network lies, as in "encoder.stages.0"; else its first two words."""
    words = key.split(".")
    return ".".join(words[: 3 if "stages" in words or "transpconvs" in words or "steps" in words else 2])
