"""Pretexts as a trainer makes them, on a small network."""

import torch

from nnunet_selma.nnunet.settings import read_settings
from nnunet_selma.pretraining.base import Task
from tests.plans import network, plans


def task(net=None, *, patch=(16, 16, 16), spacing=None, channels=1, steps=100, **sections):
    return Task(
        network=network(plans()) if net is None else net,
        settings=read_settings({"selma": sections}),
        patch=patch,
        spacing=(1.0,) * len(patch) if spacing is None else spacing,
        channels=channels,
        steps=steps,
        device=torch.device("cpu"),
    )


def unknown(patches):
    """Structures of patches whose cases say none."""
    return torch.full((len(patches),), -1)
