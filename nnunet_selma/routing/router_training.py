"""Training of a router on the annotated patches of a raw dataset; the class of a case is the structure in its name.

(1) Some patches of each case are read at random places and kept in memory, half a gigabyte at most. (2) Each training step takes the same
number of patches of each class, mirrored at random.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from nnunet_selma.errors import SelmaError
from nnunet_selma.routing.patches import read_patches, standardise
from nnunet_selma.routing.routers import OTHER, DenseNetRouter, class_probabilities, in_batches, most_probable
from nnunet_selma.running.json_files import read_json
from nnunet_selma.running.progress import Progress, silent
from nnunet_selma.structures import PREFIXES, of_case
from nnunet_selma.volumes import open_volume
from nnunet_selma.volumes.base import ShapeZYX

# 143 thousand parameters: half a second for a step of 8 patches of 64³ on one core
SMALL: dict[str, Any] = {"init_features": 16, "growth_rate": 8, "block_config": [2, 4, 6, 4]}
# DenseNet-121 (Huang et al. 2017, table 1) in three dimensions: 11 million parameters, 16 times slower
LARGE: dict[str, Any] = {"init_features": 64, "growth_rate": 32, "block_config": [6, 12, 24, 16]}
_LEAST_PATCH = 32
"""The network halves a patch five times."""
_LEARNING_RATE = 1e-3
"""Adam's usual one."""
_MOST_VOXELS = 2**28
"""Largest number of voxels of all patches that are kept; each takes two bytes."""
_MOST_OF_A_CASE = 16
"""Largest number of patches of a case."""
_OF_A_SLAB = 4
"""Number of patches that are read from the same planes."""
_JUDGED = 32
"""Largest number of patches of each class on which the trained router is tested."""


@dataclass(frozen=True, kw_only=True)
class RouterTraining:
    """Options for training a router."""

    classes: tuple[str, ...] = ()
    """Structures to tell apart, and `other` for all that is left; empty: each structure of the dataset."""
    patch: int = 64
    """Edge of a patch, voxels."""
    steps: int = 300
    """Training steps."""
    batch: int = 8
    """Patches in a training step."""
    large: bool = False
    """Train DenseNet-121, for a GPU, instead of a network for CPUs."""
    seed: int = 0
    """Seed of weights, places and mirroring."""

    def __post_init__(self) -> None:
        """Raise `SelmaError` for values that cannot be trained with."""
        if self.patch < _LEAST_PATCH:
            raise SelmaError(f"patches of {self.patch} voxels are too small for a router; give at least {_LEAST_PATCH}")
        if self.steps < 1 or self.batch < 2:
            raise SelmaError("a router is trained for at least 1 step, with at least 2 patches in each")
        if len(self.classes) == 1 or len(set(self.classes)) < len(self.classes):
            raise SelmaError(
                f"classes are {', '.join(self.classes)}: name at least two, each once, as in --classes cfos_neuron {OTHER}"
            )


@dataclass(frozen=True)
class ClassResult:
    """Result of a training for one class."""

    cases: int
    """Number of training cases."""
    recognised: float
    """Share of their patches that the router takes for this class."""
    unseen: tuple[bool, ...] = ()
    """For each case that was left out, True if the router takes it for this class."""


def train_router(
    dataset: Path,
    settings: RouterTraining,
    device: torch.device,
    progress: Progress[Any] = silent,
    *,
    left_out: Collection[str] = (),
) -> tuple[DenseNetRouter, dict[str, ClassResult]]:
    """A router trained on the first channel of a dataset's training images, and its result for each class.

    Args:
        dataset: folder of a dataset in `nnUNet_raw`.
        settings: classes, patch size and length of the training.
        device: device to train on.
        progress: shows reading, training and testing.
        left_out: cases to test the router on, not to train it on.

    Raises:
        SelmaError: no images, a class without a case, fewer than two classes, an image that cannot be read, or MONAI is missing.
    """
    images = _images(dataset)
    members = cases_of_classes([case for case in images if case not in left_out], settings.classes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        architecture = LARGE if settings.large else SMALL
        router = DenseNetRouter(list(members), [settings.patch] * 3, architecture, device)
    rng = np.random.default_rng(settings.seed)
    kept = _read(members, images, settings.patch, rng, progress)
    _train(router, list(kept.values()), settings, rng, progress)
    unseen = _unseen(router, [case for case in images if case in left_out], images, progress)
    return router, {
        name: ClassResult(len(members[name]), _recognised(router, number, kept[name]), tuple(unseen[name]))
        for number, name in enumerate(kept)
    }


def class_of(case: str, classes: Collection[str]) -> str | None:
    """The class of a case `<structure>_<id>`: its structure, or else `other`; None if neither is among the classes."""
    structure = of_case(case)
    return next((name for name in (structure.prefix if structure else OTHER, OTHER) if name in classes), None)


def cases_of_classes(cases: Sequence[str], classes: Sequence[str] = ()) -> dict[str, list[str]]:
    """The cases of each class, in the order of the classes; cases of no class are left out.

    Args:
        cases: names, `<structure>_<id>`.
        classes: prefixes and `other`; empty: each structure among the cases, in the order of the structure table.

    Raises:
        SelmaError: a class without a case, or fewer than two classes.
    """
    structures = [prefix for prefix in PREFIXES if any(class_of(case, [prefix]) for case in cases)]
    members = {
        name: [case for case in cases if class_of(case, classes or structures) == name]
        for name in classes or structures
    }
    known = f"the cases are named after {', '.join(structures) or 'no known structure'}"
    lacking = [name for name, of_class in members.items() if not of_class]
    if lacking:
        raise SelmaError(f"there is no case to train on for {', '.join(lacking)}: {known}")
    if len(members) < 2:
        raise SelmaError(f"a router needs cases of at least two classes, and {known}")
    return members


def _images(dataset: Path) -> dict[str, Path]:
    """Name of each case, and the file of its first channel."""
    description = dataset / "dataset.json"
    if not description.is_file():
        raise SelmaError(f"{description}: is missing; convert the dataset first")
    ending = f"_0000{read_json(description)['file_ending']}"
    files = sorted((dataset / "imagesTr").glob(f"*{ending}"))
    if not files:
        raise SelmaError(f"{dataset / 'imagesTr'}: holds no images *{ending}; convert the dataset first")
    return {path.name.removesuffix(ending): path for path in files}


def _read(
    members: Mapping[str, Sequence[str]],
    images: Mapping[str, Path],
    edge: int,
    rng: np.random.Generator,
    progress: Progress[Any],
) -> dict[str, Tensor]:
    """Standardised patches (patch, channel, z, y, x) of each class, in half precision."""
    tasks = [(name, case) for name, cases in members.items() for case in cases]
    count = min(_MOST_OF_A_CASE, max(1, _MOST_VOXELS // (len(tasks) * edge**3)))
    kept: dict[str, list[Tensor]] = {name: [] for name in members}
    for name, case in progress(tasks, "reading"):
        volume = open_volume(images[case])
        corners = random_corners(volume.shape, edge, count, rng)
        patches = read_patches(volume, (edge, edge, edge), corners).astype(np.float32)
        kept[name].append(standardise(torch.from_numpy(patches)[:, None]).half())
    return {name: torch.cat(parts) for name, parts in kept.items()}


def random_corners(shape: ShapeZYX, edge: int, count: int, rng: np.random.Generator) -> list[ShapeZYX]:
    """First corners of patches at random places of a volume; groups of four share their planes, which are then read once."""
    last = [max(0, length - edge) for length in shape]
    slabs = rng.integers(0, last[0], math.ceil(count / _OF_A_SLAB), endpoint=True)
    z = np.repeat(slabs, _OF_A_SLAB)[:count]
    y, x = (rng.integers(0, highest, count, endpoint=True) for highest in last[1:])
    return [(int(a), int(b), int(c)) for a, b, c in zip(z, y, x, strict=True)]


def _train(
    router: DenseNetRouter,
    kept: Sequence[Tensor],
    settings: RouterTraining,
    rng: np.random.Generator,
    progress: Progress[Any],
) -> None:
    router.network.train()
    optimizer = torch.optim.Adam(router.network.parameters(), _LEARNING_RATE)
    # a decay to zero lets the statistics of batch norm, which prediction uses, come to rest
    decay = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / settings.steps)
    for _ in progress(range(settings.steps), "training"):
        # each class in turn, from a random first, so that all come equally often
        classes = (rng.integers(len(kept)) + np.arange(settings.batch)) % len(kept)
        patches = torch.stack([mirrored(kept[c][rng.integers(len(kept[c]))], rng) for c in classes])
        scores = router.network(standardise(patches.to(router.device)))
        loss = functional.cross_entropy(scores, torch.from_numpy(classes).to(router.device))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        decay.step()


def mirrored(patch: Tensor, rng: np.random.Generator) -> Tensor:
    """A patch (channel, z, y, x) mirrored along random axes."""
    return patch.flip([1 + axis for axis in range(3) if rng.random() < 0.5])


def _recognised(router: DenseNetRouter, number: int, patches: Tensor) -> float:
    """Share of some patches of a class that the router takes for it."""
    probabilities = in_batches(router, patches[:: math.ceil(len(patches) / _JUDGED)])
    return float((probabilities.argmax(1) == number).float().mean())


def _unseen(
    router: DenseNetRouter, cases: Sequence[str], images: Mapping[str, Path], progress: Progress[Any]
) -> dict[str, list[bool]]:
    """For each class, True or False for each of its left-out cases: the router takes the case for this class, or not."""
    recognised: dict[str, list[bool]] = {name: [] for name in router.classes}
    for case in progress(cases, "judging") if cases else ():
        name = class_of(case, router.classes)
        if name is not None:
            recognised[name].append(most_probable(class_probabilities(router, [open_volume(images[case])])) == name)
    return recognised
