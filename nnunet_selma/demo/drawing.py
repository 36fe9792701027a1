"""Synthetic data: a SELMA3D download, and unseen test patches."""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from nnunet_selma.conversion.raw_dataset import write_nifti
from nnunet_selma.demo.phantom import draw
from nnunet_selma.demo.phantom.download import write_annotated, write_unannotated
from nnunet_selma.running.json_files import read_json, write_json


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """Numbers and sizes of the volumes that are drawn."""

    annotated: Mapping[str, int]
    """Structure to its number of annotated patches; of each structure one unannotated brain is drawn too."""
    tested: Sequence[str]
    """Structures of the test patches."""
    patch_edge: int = 64
    """Edge of a patch, voxels."""
    brain_shape: tuple[int, int, int] = (96, 192, 192)
    """Shape of a brain, (z, y, x)."""
    test_patches: int = 2
    """Test patches of each structure."""


def draw_data(annotated: Path, unannotated: Path, test: Path, drawing: Drawing, seed: int) -> None:
    """Draw a download and test patches, unless the same are there.

    Args:
        annotated: folder of the annotated patches.
        unannotated: folder of the brains; it may be the same one.
        test: folder of test patches, `images/<case>_0000.nii.gz` and `references/<case>.nii.gz`.
        drawing: numbers and sizes.
        seed: seed of all random numbers.
    """
    done = test / "drawn.json"
    facts = json.loads(json.dumps({"seed": seed, **asdict(drawing)}))
    if done.is_file() and read_json(done) == facts:
        return
    for folder in (annotated, unannotated, test):
        shutil.rmtree(folder, ignore_errors=True)
    rng = np.random.default_rng(seed)
    shape = (drawing.patch_edge,) * 3
    write_annotated(annotated, dict(drawing.annotated), rng, shape_zyx=shape)
    write_unannotated(unannotated, dict.fromkeys(drawing.annotated, 1), rng, shape_zyx=drawing.brain_shape)
    for name in ("images", "references"):
        (test / name).mkdir(parents=True)
    for structure in drawing.tested:
        for number in range(drawing.test_patches):
            phantom, case = draw(structure, shape, rng), f"{structure}_{900 + number}"
            write_nifti(test / "images" / f"{case}_0000.nii.gz", phantom.image, (1.0, 1.0, 1.0))
            write_nifti(test / "references" / f"{case}.nii.gz", phantom.label, (1.0, 1.0, 1.0))
    write_json(done, facts)
