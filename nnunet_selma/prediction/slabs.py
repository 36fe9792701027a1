"""Slabs in which a volume is read, and chunks in which its image is copied, so that every stored chunk is decoded once if memory allows.

Arithmetic only. A volume in planes, or in other chunks that blocks would decode again and again, is copied into chunks near cubes first.
"""

from collections.abc import Sequence
from math import ceil, lcm, prod

from nnunet_selma.errors import SelmaError
from nnunet_selma.morphology.tissue import GRID_BOX
from nnunet_selma.prediction.memory import BASE_BYTES, GB
from nnunet_selma.volumes.base import ShapeZYX, Volume

_SLAB = 64
"""Slices that are read together, where the memory allows and chunks do not ask for another number."""
_SLAB_COPIES = 6
"""Arrays as large as a slab that are in memory at once while it is read: decoded, converted, measured and compressed."""
_MOST_DECODED = 2.0
"""Most decodings of a voxel by blocks, for one decoding from the chunks of a copy, with which the image is not copied."""
_SHARD = 1024
"""Longest edge of a shard of the image, voxels."""
_DEEP = 16
"""Most slices in a chunk of the image: those that reach from one block of a column into the next are decoded twice."""
_FLAT = 128
"""Longest edge of a chunk of the image within a slice, voxels."""


def decodings(shape: ShapeZYX, chunk: ShapeZYX, box: ShapeZYX, halo: ShapeZYX = (0, 0, 0)) -> float:
    """Mean number of times that a voxel is decoded when a volume in chunks is read in boxes side by side; all lengths in voxels.

    Args:
        shape: shape of the volume.
        chunk: shape of a chunk, which is decoded whole.
        box: shape of the boxes, which begin at 0.
        halo: voxels that are read around each box.
    """
    return prod(map(_decodings_along, shape, chunk, box, halo))


def _decodings_along(length: int, chunk: int, edge: int, halo: int) -> float:
    boxes = ((max(0, a - halo), min(a + edge + halo, length)) for a in range(0, length, edge))
    return sum(min(ceil(stop / chunk) * chunk, length) - start // chunk * chunk for start, stop in boxes) / length


def is_ill_chunked(volumes: Sequence[Volume], block: ShapeZYX, halo: ShapeZYX, chunk: int) -> bool:
    """True if blocks would decode some channel more than twice as often from its own chunks as from cubes.

    Args:
        volumes: the channels.
        block: shape of a block, voxels.
        halo: voxels that are read around a block.
        chunk: edge of the cubes, voxels.
    """
    return any(
        decodings(volume.shape, volume.chunk_zyx, block, halo)
        > _MOST_DECODED * decodings(volume.shape, (chunk,) * 3, block, halo)
        for volume in volumes
        if volume.chunk_zyx is not None
    )


def choose_slab(volumes: Sequence[Volume], voxel_bytes: int, max_memory: float, *, copied: bool) -> tuple[int, int]:
    """Slices, and lines of a slice, that are read together: those with which the fewest voxels are decoded again.

    Args:
        volumes: the channels.
        voxel_bytes: bytes of a voxel of one channel, as it is kept.
        max_memory: GB.
        copied: the image is written in chunks.

    Raises:
        SelmaError: a file that is read whole, or one slice, does not fit into the memory.
    """
    shape = volumes[0].shape
    line = shape[2] * voxel_bytes * len(volumes) * _SLAB_COPIES
    room = max(max_memory * GB - BASE_BYTES, BASE_BYTES / 4)
    whole = [volume for volume in volumes if volume.read_whole]
    if whole and (taken := sum(prod(volume.shape) * volume.dtype.itemsize for volume in whole)) > room / 2:
        raise SelmaError(
            f"{whole[0].path}: files of this kind cannot be read in part, and with --max-memory {max_memory:g} it is too large to be read "
            f"whole ({taken / GB:.1f} GB); save it as OME-Zarr, TIFF slices or NIfTI, or give more memory"
        )
    chunks = [volume.chunk_zyx for volume in volumes if volume.chunk_zyx is not None]
    sizes = _slab_sizes(shape, chunks, whole_planes=any(volume.plane_wise for volume in volumes), copied=copied)
    fitting = [(slices, rows) for slices, rows in sizes if slices * rows * line <= room]
    if not fitting:
        slices, rows = min(sizes, key=prod)
        if slices * rows * line > max(room, max_memory * GB):
            raise SelmaError(
                f"--max-memory {max_memory:g}: reading one slice of all channels takes about "
                f"{(slices * rows * line + BASE_BYTES) / GB:.1f} GB; give at least that"
            )
        return slices, rows

    def cost(size: tuple[int, int]) -> tuple[float, int, int]:
        decoded = [decodings(shape, chunk, (*size, shape[2])) for chunk in chunks]
        return round(max(decoded, default=1), 1), abs(min(size[0], shape[0]) - _SLAB), -size[1]

    return min(fitting, key=cost)


def _slab_sizes(
    shape: ShapeZYX, chunks: Sequence[ShapeZYX], *, whole_planes: bool, copied: bool
) -> list[tuple[int, int]]:
    """Numbers of slices and lines that come into question; lines are whole grid boxes, and whole shards of a copy."""
    depth, height, _ = shape
    powers = [2**n for n in range(4, 11)]
    slices = {2**n for n in range(7)}
    rows = {height}
    for z, y, _ in chunks:
        slices |= {z, *(z * count for count in (_SLAB // z, _SLAB // z + 1) if count)}
        if y < height and not copied:
            rows |= {lcm(y, GRID_BOX[1]) * power for power in (1, *powers)}
    if not whole_planes:
        rows |= set(powers)
    return [(min(z, max(depth, _SLAB)), min(y, height)) for z in slices for y in rows]


def copy_layout(shape: ShapeZYX, slab: int, rows: int, chunk: int) -> tuple[ShapeZYX, ShapeZYX]:
    """Shapes of a shard and of a chunk of the image, (z, y, x), voxels: every slab or strip of rows is written in whole shards.

    Args:
        shape: shape of the image.
        slab: slices that are written together.
        rows: lines that are written together.
        chunk: edge of a chunk of the labels.
    """
    depth, height, width = shape
    flat = min(chunk, _FLAT)
    across = max(flat, min(_SHARD, -(-max(height, width) // flat) * flat))
    deep = min(slab, chunk, _DEEP) if slab >= depth else largest_divisor(slab, min(chunk, _DEEP))
    shard_z = -(-slab // deep) * deep
    if rows >= height:
        return (shard_z, across, across), (deep, flat, flat)
    return (shard_z, rows, across), (deep, min(rows, flat), flat)


def largest_divisor(number: int, most: int) -> int:
    """Largest divisor of a number that is no larger than another."""
    return next(divisor for divisor in range(min(number, most), 0, -1) if number % divisor == 0)
