"""Cubes of DELiVR as small brains: put together from their octants, cut into candidates, and written as a dataset of nnU-Net's.

All candidates have their label in the dataset. A training sees those cubes alone that were chosen for it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
from numpy.typing import NDArray

from nnunet_selma.annotation.brains import open_brains
from nnunet_selma.annotation.candidates import Candidate, candidates_of
from nnunet_selma.annotation.settings import ProposalSettings
from nnunet_selma.conversion.raw_dataset import RawDataset, write_nifti
from nnunet_selma.errors import SelmaError
from nnunet_selma.nnunet.folders import Folders
from nnunet_selma.volumes import open_volume
from nnunet_selma.volumes.base import Array

DATASETS = {"microglia": 520, "cfos_neuron": 521}
"""Structure to the id of the dataset of its candidates."""
SIZE = 40
"""Edge of a candidate, voxels."""
BUDGETS = {"microglia": (2, 4, 8, 16), "cfos_neuron": (2, 4, 8)}
"""Structure to the numbers of annotated cubes; drawn one after another, 9 to 17 cubes that do not touch find room in the one brain of c-Fos, 12 on average."""
_SPACING_UM = (6.0, 1.62, 1.62)
"""True voxel size, (z, y, x), which the files do not state."""
_VOXEL = (1.0, 1.0, 1.0)
"""Voxel size that the files state, which the network is pretrained with."""
BRAINS = {"microglia": ("1874", "4923"), "cfos_neuron": ("695",)}
"""Structure to the cubes of DELiVR that candidates are cut from; pretraining sees their images."""
_FOLDERS = {"microglia": "microglia", "cfos_neuron": "cFos"}
"""Structure to its folder in DELiVR."""


@dataclass(frozen=True, kw_only=True)
class Cube:
    """A candidate of the study, whose label is known."""

    case: str
    """Name in the dataset."""
    candidate: Candidate
    image: Array
    """Voxels as they were acquired, (z, y, x)."""
    normalised: NDArray[np.float32]
    """Voxels in standard deviations of the brain from its mean, as `propose` shows them to a model, (z, y, x)."""
    label: NDArray[np.uint8]
    """(z, y, x), 0 and 1."""


def cubes_of(delivr: Path, folder: Path, structure: str) -> list[Cube]:
    """The candidates that `propose` finds in the brains of a structure; the brains are written once.

    Args:
        delivr: DELiVR's annotated patches, as they are downloaded.
        folder: where the brains are written.
        structure: a key of `BRAINS`.

    Raises:
        SelmaError: an octant is missing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    cubes = []
    for name in BRAINS[structure]:
        image = folder / f"{structure}_{name}.nii.gz"
        truth = whole(delivr / _FOLDERS[structure] / "gt", name) > 0
        if not image.is_file():
            write_nifti(image, whole(delivr / _FOLDERS[structure] / "raw", name).astype(np.uint16), _VOXEL)
        (brain,), _ = open_brains([image], ProposalSettings(size=SIZE, spacing_um_zyx=_SPACING_UM))
        voxels = open_volume(image).read()
        normalised = ((voxels - voxels.mean()) / voxels.std()).astype(np.float32)
        cubes += [
            Cube(
                case=f"{structure}_{name}_{number:03d}",
                candidate=candidate,
                image=voxels[candidate.box],
                normalised=normalised[candidate.box],
                label=truth[candidate.box].astype(np.uint8),
            )
            for number, candidate in enumerate(candidates_of(brain, SIZE))
        ]
    return cubes


def whole(folder: Path, cube: str) -> Array:
    """The eight octants of a cube put together, (z, y, x): octant 4 i + 2 j + k lies at i along y, j along x and k along z.

    Raises:
        SelmaError: an octant is missing.
    """
    octants = {}
    for number in range(8):
        path = folder / f"patchvolume_{cube}_{number}.nii.gz"
        if not path.is_file():
            raise SelmaError(f"{path}: is missing; give DELiVR's annotated patches as they are downloaded")
        octants[number] = np.asarray(nibabel.load(path).dataobj).T
    return np.block([[[octants[4 * y + 2 * x + z] for x in (0, 1)] for y in (0, 1)] for z in (0, 1)])


def write_dataset(folders: Folders, structure: str, cubes: Sequence[Cube]) -> None:
    """Write every cube with its label as a case of a dataset in nnU-Net's raw format, once."""
    folders.raw.mkdir(parents=True, exist_ok=True)
    name = f"Dataset{DATASETS[structure]:03d}_{structure}"
    dataset = RawDataset(folders.raw, name, {"structure": structure, "size": SIZE})
    if dataset.staged.complete:
        return
    for cube in cubes:
        dataset.write(cube.case, [cube.image], cube.label, _VOXEL, {"start_zyx": list(cube.candidate.start)})
    dataset.finish(channels=["image"], foreground=structure, description="candidates of a study", facts={})
