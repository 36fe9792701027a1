"""A cube as it is handed over: its image, a label to fill, its surroundings, and the file that says where it comes from.

A folder `cube_0001` appears whole, by a rename, and nothing in it is written by a proposal after that: labels that a person has begun are
never touched.
"""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from nibabel.affines import voxel_sizes
from numpy.typing import NDArray

from nnunet_selma.annotation.brains import Brain
from nnunet_selma.annotation.layout import CONTEXT, CUBE, IMAGE, LABEL, label_hash
from nnunet_selma.annotation.uncertainty import Answer
from nnunet_selma.conversion.walk import is_cube
from nnunet_selma.errors import SelmaError
from nnunet_selma.morphology.blocks import Box
from nnunet_selma.running.json_files import read_json, write_json
from nnunet_selma.structures import SpacingUm
from nnunet_selma.volumes.base import Array, ShapeZYX, Volume, origin_in_voxels
from nnunet_selma.volumes.nifti_writing import write_image_nifti, write_label_nifti
from nnunet_selma.volumes.ome_zarr_writing import ImageLayout, create_image, fill_pyramid, place_like, write_box
from nnunet_selma.volumes.pyramids import level_array, open_zarr_group

NOT_FOR_ANNOTATION = "nnunet_selma_context"
"""Attribute of the surroundings of a cube, which says that they are not to be annotated."""
PARTIAL = ".partial"
"""Folder beside the cubes in which the next is made; nothing that looks for `*/cube.json` sees it."""
_CHUNK = 64
"""Edge of a chunk, voxels."""


class Cut(Volume):
    """A box of a brain in memory, with its place in the brain.

    Args:
        voxels: (z, y, x).
        start: first voxel of the box in the brain.
        brain: the brain.
        path: name for errors.
    """

    def __init__(self, voxels: Array, start: ShapeZYX, brain: Brain, path: Path) -> None:
        z, y, x = voxels.shape
        self.path, self.shape, self.dtype = path, (z, y, x), voxels.dtype
        self.plane_wise = False
        self._voxels = voxels
        self.spacing_um_zyx = brain.spacing_um_zyx
        affine, origin = brain.first.affine, brain.first.origin_voxels_zyx or (0.0, 0.0, 0.0)
        if affine is not None and not brain.placed_by_spacing:
            shift = np.eye(4)
            shift[:3, 3] = start[::-1]
            self.affine = _in_mm(affine, brain.spacing_um_zyx) @ shift
            self.origin_voxels_zyx = origin_in_voxels(self.affine)
        else:
            a, b, c = (o + s for o, s in zip(origin, start, strict=True))
            self.origin_voxels_zyx = a, b, c

    def _read(self, z: slice, y: slice, x: slice) -> Array:
        return self._voxels[z, y, x]


def _in_mm(affine: NDArray[np.float64], spacing_um_zyx: SpacingUm) -> NDArray[np.float64]:
    """A matrix from the index (x, y, z) to a place in mm, from that of a file, which may count in µm or m."""
    x, y, z = origin_in_voxels(affine)[::-1]
    scaled = affine.copy()
    scaled[:3, :3] *= np.array(spacing_um_zyx)[::-1] / 1000 / voxel_sizes(affine)
    scaled[:3, 3] = scaled[:3, :3] @ (x, y, z)
    return scaled


def surroundings(start: ShapeZYX, shape: ShapeZYX, whole: ShapeZYX) -> Box:
    """The box with half a cube more on every side, as far as the brain goes."""
    z, y, x = (
        slice(max(0, s - n // 2), min(length, s + n + n // 2)) for s, n, length in zip(start, shape, whole, strict=True)
    )
    return z, y, x


def image_names(channels: int) -> list[str]:
    """Names of the NIfTI files of a cube, one for each channel: the first is `image.nii.gz`, the second `image_channel_1.nii.gz`."""
    return ["image.nii.gz", *(f"image_channel_{number}.nii.gz" for number in range(1, channels))]


def write_cube(folder: Path, brain: Brain, content: Mapping[str, Any], suggestion: Answer | None) -> dict[str, Any]:
    """Write the folder of a cube, whole or not at all, unless it is there; returns the content of its `cube.json`.

    Args:
        folder: the folder.
        brain: the brain, open.
        content: what `cube.json` says of the brain, the place and the reason.
        suggestion: the model's prediction of the cube; None for an empty label.

    Raises:
        SelmaError: the brain cannot be read, or the folder exists and is no cube.
    """
    if folder.exists():
        return read_cube(folder)
    start, shape = tuple(content["start_zyx"]), tuple(content["shape_zyx"])
    cube: Box = tuple(slice(s, s + n) for s, n in zip(start, shape, strict=True))  # type: ignore[assignment]
    around = surroundings(start, shape, brain.shape)
    voxels = brain.read(around)
    inside = tuple(slice(c.start - a.start, c.stop - a.start) for c, a in zip(cube, around, strict=True))
    image = np.ascontiguousarray(voxels[(slice(None), *inside)])
    labels = np.zeros(shape, np.uint8) if suggestion is None else suggestion.labels
    partial = folder.parent / PARTIAL / folder.name
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for name, channel in zip(image_names(len(image)), image, strict=True):
        write_image_nifti(partial / name, Cut(channel, start, brain, partial / name))
    label = Cut(labels, start, brain, partial / LABEL)
    write_label_nifti(partial / LABEL, label, partial / IMAGE)
    _write_zarr(partial / IMAGE, image, start, brain)
    _write_zarr(partial / CONTEXT, voxels, tuple(a.start for a in around), brain)  # type: ignore[arg-type]
    open_zarr_group(partial / CONTEXT).attrs[NOT_FOR_ANNOTATION] = {
        "not_to_be_annotated": True,
        "cube_start_zyx": [b.start for b in inside],
        "cube_shape_zyx": list(shape),
        "note": "surroundings of the cube for the eye; only the cube itself, label.nii.gz, is annotated",
    }
    origin = Cut(labels, start, brain, folder).origin_um_zyx
    whole = {
        **content,
        "origin_um_zyx": None if origin is None else [edge + 0.0 for edge in origin],  # no -0.0
        "dtype": str(image.dtype),
        "images": image_names(len(image)),
        "suggestion": "empty" if suggestion is None else "model",
        "label_sha256": label_hash(partial / LABEL),
    }
    write_json(partial / CUBE, whole)
    try:
        os.rename(partial, folder)
    except OSError as error:
        raise SelmaError(f"{folder}: appeared meanwhile ({error.strerror}); is another proposal running?") from error
    level_array.cache_clear()
    return whole


def read_cube(folder: Path) -> dict[str, Any]:
    """The content of the `cube.json` of a folder; raises `SelmaError` if the folder is no cube."""
    if not (folder / CUBE).is_file():
        raise SelmaError(
            f"{folder}: is no cube of nnunet-selma propose, without {CUBE}; move it elsewhere, or restore the file"
        )
    if not is_cube(folder):
        read_json(folder / CUBE)  # names damage
        raise SelmaError(
            f"{folder / CUBE}: comes from another program, not from nnunet-selma propose; move it elsewhere, or restore the file"
        )
    return read_json(folder / CUBE)


def _write_zarr(path: Path, voxels: Array, start: ShapeZYX, brain: Brain) -> None:
    """Write voxels (c, z, y, x) as an OME-Zarr with their place in the brain."""
    cut = Cut(voxels[0], start, brain, path)
    z, y, x = (-(-length // _CHUNK) * _CHUNK for length in cut.shape)
    several = len(voxels) > 1
    low, high = np.percentile(voxels, (0.5, 99.8))
    layout = ImageLayout(
        shape=cut.shape,
        dtype=cut.dtype,
        spacing_um_zyx=cut.spacing_um_zyx,
        **place_like(cut),
        shard_zyx=(z, y, x),
        chunk_zyx=(_CHUNK, _CHUNK, _CHUNK),
        reduction="mean",
        name=f"{brain.name}, {path.name.partition('.')[0]}",
        channels=tuple(f"channel {number}" for number in range(len(voxels))) if several else (),
        window=(float(low), float(high if high > low else low + 1)),
    )
    create_image(path, layout)
    write_box(path, (0, 0, 0), voxels if several else voxels[0])
    fill_pyramid(path)
