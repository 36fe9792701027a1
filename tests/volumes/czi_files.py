"""CZI files for tests, written with pylibCZIrw."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

COMPRESSED = "zstd1:ExplicitLevel=1;PreProcess=HiLoByteUnpack"


def write_czi(
    path: Path,
    channels: Sequence[np.ndarray],
    *,
    spacing_um_zyx: Sequence[float] | None = None,
    names: Sequence[str] | None = None,
    scene: int = 0,
    compression: str | None = None,
) -> Path:
    """Write channels, each (z, y, x), or (t, z, y, x) with time points, as one scene."""
    tiles = {
        (t, z, c): plane
        for c, channel in enumerate(channels)
        for t, stack in enumerate(channel if channel.ndim == 4 else channel[None])
        for z, plane in enumerate(stack)
    }
    write_tiles(
        path,
        [({"T": t, "Z": z, "C": c, "S": scene}, (0, 0), plane) for (t, z, c), plane in tiles.items()],
        spacing_um_zyx=spacing_um_zyx,
        names=names,
        compression=compression,
    )
    return path


def write_tiles(
    path: Path,
    tiles: Sequence[tuple[Mapping[str, int], tuple[int, int], np.ndarray]],
    *,
    spacing_um_zyx: Sequence[float] | None = None,
    names: Sequence[str] | None = None,
    compression: str | None = None,
) -> Path:
    """Write tiles: the entry along each axis of CZI, the place of the corner (x, y), and the voxels (y, x), or (y, x, 3) in colour."""
    from pylibCZIrw import czi

    z, y, x = (0.0, 0.0, 0.0) if spacing_um_zyx is None else (size * 1e-6 for size in spacing_um_zyx)
    written: dict[str, int] = {}
    with czi.create_czi(str(path), exist_ok=True, compression_options=compression) as file:
        for place, (left, top), voxels in tiles:
            entries = " ".join(f"{axis}{entry}" for axis, entry in place.items())
            number = written[entries] = written.get(entries, -1) + 1
            # CziWriter.write leaves out the axes of views and illuminations
            pixels = file._format_data(np.ascontiguousarray(voxels if voxels.ndim == 3 else voxels[..., None]))
            assert file._czi_writer.AddTile(entries, pixels, left, top, number, "")
        stated = dict(enumerate(names)) if names else None
        file.write_metadata(document_name=path.stem, channel_names=stated, scale_x=x, scale_y=y, scale_z=z)
    return path
