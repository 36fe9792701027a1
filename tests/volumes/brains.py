"""The same brain, channel by channel, in each format in which microscopes leave it."""

from pathlib import Path
from unittest.mock import patch

import numpy as np
import tifffile

from nnunet_selma.volumes import pyramids
from nnunet_selma.volumes.ome_zarr_writing import ImageLayout, create_image, fill_pyramid, write_box
from tests.volumes.czi_files import write_czi
from tests.volumes.microscope_files import write_bdv, write_imaris

LEVELS = 3


def _ome_tiff(path, channels, spacing, names):
    """An OME-TIFF whose coarser levels are in sub-directories of each page."""
    metadata = {
        "axes": "CZYX",
        "Channel": {"Name": list(names)},
        **{f"PhysicalSize{axis}": edge for axis, edge in zip("ZYX", spacing, strict=True)},
    }
    image = np.stack(channels)
    with tifffile.TiffWriter(path, ome=True) as tif:
        tif.write(image, metadata=metadata, subifds=LEVELS - 1, compression="zlib")
        for level in range(1, LEVELS):
            tif.write(image[..., :: 2**level, :: 2**level], subfiletype=1, compression="zlib")
    return path


def _ome_zarr(path, channels, spacing, names):
    layout = ImageLayout(
        shape=channels[0].shape,
        dtype=channels[0].dtype,
        spacing_um_zyx=spacing,
        shard_zyx=(32, 64, 64),
        chunk_zyx=(16, 32, 32),
        reduction="mean",
        name="brain",
        channels=tuple(names),
    )
    with patch.object(pyramids, "_SMALL", 48):
        create_image(path, layout)
        write_box(path, (0, 0, 0), np.stack(channels))
        fill_pyramid(path)
    return path


_CHUNKS = (16, 32, 32)
BRAINS = {
    "OME-Zarr": lambda folder, *brain: _ome_zarr(folder / "brain.ome.zarr", *brain),
    "OME-TIFF": lambda folder, *brain: _ome_tiff(folder / "brain.ome.tif", *brain),
    "Imaris": lambda folder, channels, spacing, names: write_imaris(
        folder / "brain.ims",
        channels,
        spacing_um_zyx=spacing,
        origin_um_zyx=[-edge / 2 for edge in spacing],  # of the outer face, so that the first voxel is at 0
        names=names,
        levels=LEVELS,
        chunks=_CHUNKS,
    ),
    "BigDataViewer": lambda folder, channels, spacing, names: write_bdv(
        folder / "brain.h5", channels, spacing_um_zyx=spacing, names=names, levels=LEVELS, chunks=_CHUNKS
    ),
    "N5": lambda folder, channels, spacing, names: write_bdv(
        folder / "brain.n5", channels, spacing_um_zyx=spacing, names=names, levels=LEVELS, chunks=_CHUNKS
    ),
    "CZI": lambda folder, channels, spacing, names: write_czi(
        folder / "brain.czi", channels, spacing_um_zyx=spacing, names=names
    ),
}
"""Format to the function that writes a brain into a folder, from its channels, voxel size (µm, zyx) and the names of its channels."""


def write_brain(kind: str, folder: Path, channels, spacing_um_zyx, names) -> Path:
    """Write a brain into a new folder; returns the path to open."""
    folder.mkdir(parents=True)
    written = BRAINS[kind](folder, channels, spacing_um_zyx, names)
    return written or next(folder.glob("brain.*"))
