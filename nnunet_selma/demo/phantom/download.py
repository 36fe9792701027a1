"""Folder trees of phantoms, with the names, formats and oddities of the public downloads.

Annotated patches: BioImage Archive S-BIAD1196, the zips of the SELMA3D challenge page (raw and gt under different
tops), DELiVR (octants of cubes). Unannotated brains: one 2D TIFF per slice, numbers without leading zeros, hidden files
that macOS left behind. NIfTI headers tell spacing 1, as the real ones do. One volume is in memory at a time.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import SimpleITK
import tifffile
from numpy.typing import NDArray

from nnunet_selma.demo.phantom import Phantom, draw
from nnunet_selma.morphology.topology import Betti
from nnunet_selma.structures import STRUCTURES
from nnunet_selma.volumes.base import ShapeZYX

DownloadLayout = Literal["bioimage_archive", "challenge_zip", "delivr"]
Shapes = ShapeZYX | Mapping[str, ShapeZYX] | None
"""A shape for all structures, or for each; None for the real shapes."""

ANNOTATED_FOLDER = {s.prefix: s.annotated_folder for s in STRUCTURES if s.annotated_folder}
"""Folder of each structure in the annotated download of SELMA3D."""

CHALLENGE_ZIPS = {
    "blood_vessel": ("brain_vessels_patches", "annotation_brain_vessels"),
    "cfos_neuron": ("brain_c_fos_positive_patches", "annotation_brain_c_fos_positive"),
    "cell_nuclei": ("brain_cell_nucleus_patches", "annotation_brain_cell_nucleus"),
    "AD_plaques": ("brain_amyloid_plaque_patches", "annotation_brain_amyloid_plaque"),
}
"""Top folders of raw and of gt when the zips of the challenge page are unpacked."""

DELIVR_FOLDER = {s.prefix: s.delivr_folder for s in STRUCTURES if s.delivr_folder}
"""Folder of each structure in the data of DELiVR."""

UNANNOTATED_FOLDER = {s.prefix: s.unannotated_folder for s in STRUCTURES if s.unannotated_folder}
"""Folder of each structure among the whole brains."""

PATCH_SHAPE_ZYX: dict[str, ShapeZYX] = {
    "blood_vessel": (50, 500, 500),
    "cfos_neuron": (100, 100, 100),
    "cell_nuclei": (200, 200, 200),
    "AD_plaques": (300, 300, 300),
}
"""Shapes of the annotated patches of SELMA3D."""

CUBE_SHAPE_ZYX: ShapeZYX = (200, 200, 200)
"""Shape of the cubes of DELiVR, each of which is cut into eight octants."""


@dataclass(frozen=True, kw_only=True)
class AnnotatedPatch:
    """Files and Betti numbers of one annotated patch."""

    structure: str
    """Prefix of the structure."""
    number: str
    """Part of the file name after `patchvolume_`: `007`, or `<cube>_<octant>`."""
    raw: tuple[Path, ...]
    """One file per channel."""
    label: Path
    """File of the annotation."""
    betti: Betti | None
    """Betti numbers of the label; None for an octant, because cutting the cube changes them."""


def write_annotated(
    root: Path,
    counts: Mapping[str, int],
    rng: np.random.Generator,
    *,
    shape_zyx: Shapes = None,
    layout: DownloadLayout = "bioimage_archive",
    oddities: bool = False,
) -> list[AnnotatedPatch]:
    """Write annotated patches below `root`.

    Args:
        root: top folder of the download.
        counts: structure to its number of patches, or of cubes for the layout `delivr`.
        rng: source of all random numbers.
        shape_zyx: shape of the patches, or of the cubes, whose lengths must be even.
        layout: download whose folders and names are used.
        oddities: as in the real download, the first five vessel patches get labels 0 and 255, and the first one a trailing axis of length 1.

    Raises:
        ValueError: the layout is unknown, or has no folder for a structure.
    """
    folders = {"bioimage_archive": ANNOTATED_FOLDER, "challenge_zip": ANNOTATED_FOLDER, "delivr": DELIVR_FOLDER}
    if layout not in folders:
        raise ValueError(f"unknown layout {layout!r}: choose one of {', '.join(folders)}")
    _check_known(counts, folders[layout], f"annotated data in layout {layout}")
    written = []
    for structure, count in counts.items():
        folder = folders[layout][structure]
        for number in range(count):
            shape = _shape(structure, shape_zyx, CUBE_SHAPE_ZYX if layout == "delivr" else PATCH_SHAPE_ZYX[structure])
            phantom = draw(structure, shape, rng)
            if layout == "delivr":
                written += _write_octants(root / folder, number, phantom)
                continue
            tops = CHALLENGE_ZIPS[structure] if layout == "challenge_zip" else ("SELMA3D_training_annotated",) * 2
            raw, gt = root / tops[0] / folder / "raw", root / tops[1] / folder / "gt"
            odd = oddities and structure == "blood_vessel"
            written.append(
                _write_patch(
                    raw, gt, number, phantom, full=255 if odd and number < 5 else 1, singleton=odd and number == 0
                )
            )
    return written


def write_unannotated(
    root: Path,
    volumes: Mapping[str, int],
    rng: np.random.Generator,
    *,
    shape_zyx: Shapes = (60, 160, 200),
    outside: float = 0.4,
    compression: str | None = None,
) -> list[Path]:
    """Write whole brains as TIFF slices below `root`; return the slices, brain by brain.

    Vessels have the channels C00 (wheat germ agglutinin) and C01 (Evans blue), other structures C01 only.

    Args:
        root: top folder of the download.
        volumes: structure to its number of brains.
        rng: source of all random numbers.
        shape_zyx: shape of the volumes.
        outside: share of a volume around the brain that is camera background.
        compression: compression of the slices, as tifffile names it.

    Raises:
        ValueError: the download has no whole brains of a structure.
    """
    _check_known(volumes, UNANNOTATED_FOLDER, "whole brains")
    top = root / "brain_microscopy_image" / "brain_microscopy_image"  # unzipping doubles it
    written = []
    for structure, count in volumes.items():
        for sample in range(1, count + 1):
            phantom = draw(structure, _shape(structure, shape_zyx, (60, 160, 200)), rng, outside=outside, whole=True)
            channels = {"C01": phantom.image}
            if phantom.second_channel is not None:
                channels = {"C00": phantom.image, "C01": phantom.second_channel}
            for channel, image in channels.items():
                folder = top / UNANNOTATED_FOLDER[structure] / f"sample{sample}" / channel
                written += _write_slices(folder, f"sample{sample}_{channel}", image, compression)
    return written


def octant_slices(shape_zyx: ShapeZYX, octant: int) -> tuple[slice, slice, slice]:
    """Place (z, y, x) of an octant in a cube of DELiVR; its number, 0 to 7, is 4 * axis1 + 2 * axis0 + axis2 of the NIfTI axes x, y, z."""
    y, x, z = octant >> 2 & 1, octant >> 1 & 1, octant & 1
    halves = (length // 2 for length in shape_zyx)
    begin, middle, end = (
        slice(half * upper, half * (upper + 1)) for upper, half in zip((z, y, x), halves, strict=True)
    )
    return begin, middle, end


def _write_patch(raw: Path, gt: Path, number: int, phantom: Phantom, *, full: int, singleton: bool) -> AnnotatedPatch:
    channels = [phantom.image] if phantom.second_channel is None else [phantom.image, phantom.second_channel]
    name = f"patchvolume_{number:03d}"
    files = [raw / f"{name}_{channel:04d}.nii.gz" for channel in range(len(channels))]
    for file, image in zip(files, channels, strict=True):
        _write_nifti(file, image, singleton=singleton)
    label = gt / f"{name}.nii.gz"
    _write_nifti(label, phantom.label * np.uint8(full), singleton=singleton)
    return AnnotatedPatch(
        structure=phantom.structure, number=f"{number:03d}", raw=tuple(files), label=label, betti=phantom.betti
    )


def _write_octants(folder: Path, cube: int, phantom: Phantom) -> list[AnnotatedPatch]:
    shape: ShapeZYX = phantom.image.shape[0], phantom.image.shape[1], phantom.image.shape[2]
    if any(length % 2 for length in shape):
        raise ValueError(f"cube of shape {shape} cannot be cut into octants: even lengths are needed")
    # The real c-Fos patches hold integers as float64, microglia came as uint16.
    image = phantom.image.astype(np.float64) if phantom.structure == "cfos_neuron" else phantom.image
    written = []
    for octant in range(8):
        name, where = f"patchvolume_{cube}_{octant}.nii.gz", octant_slices(shape, octant)
        raw, label = folder / "raw" / name, folder / "gt" / name
        _write_nifti(raw, image[where])
        _write_nifti(label, phantom.label[where])
        written.append(
            AnnotatedPatch(structure=phantom.structure, number=f"{cube}_{octant}", raw=(raw,), label=label, betti=None)
        )
    return written


def _write_nifti(path: Path, volume: NDArray[np.generic], *, singleton: bool = False) -> None:
    """Write a volume (z, y, x) with spacing 1, origin 0 and identity direction, as in the real downloads."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # SimpleITK reverses the axes, so a leading axis here is the trailing one of the file.
    image = SimpleITK.GetImageFromArray(volume[None] if singleton else volume, isVector=False)
    SimpleITK.WriteImage(image, str(path), useCompression=True)


def _write_slices(folder: Path, stem: str, volume: NDArray[np.uint16], compression: str | None) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"._{stem}_Z0.tif").write_bytes(b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X        ")
    files = [folder / f"{stem}_Z{z}.tif" for z in range(len(volume))]
    for file, plane in zip(files, volume, strict=True):
        tifffile.imwrite(file, plane, compression=compression)
    return files


def _shape(structure: str, shapes: Shapes, default: ShapeZYX) -> ShapeZYX:
    if isinstance(shapes, Mapping):
        return shapes.get(structure, default)
    return shapes or default


def _check_known(counts: Mapping[str, int], folders: Mapping[str, str], what: str) -> None:
    for structure in counts:
        if structure not in folders:
            raise ValueError(f"no {what} of structure {structure!r}: choose among {', '.join(folders)}")
