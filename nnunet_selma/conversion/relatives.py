"""Patches that show the same tissue: copies, overlaps and neighbours, which must share a fold.

Small signatures of the patches are compared in pairs, so that no two patches are in memory together. Patches that are displaced along one
axis, and overlap, share whole planes (SELMA3D's patches are cut with an overlap of 10 voxels). Neighbours without overlap have two faces that
correlate.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from nnunet_selma.volumes.base import Array

NEIGHBOUR_CORRELATION = 0.55
"""Least correlation of faces that touch: 95 % of DELiVR's touching octants are above 0.78, unrelated patches at most at 0.30."""
_NOISE_SIGMA, _SHADING_SIGMA = 1.5, 4.0
_LEAST_FACE = 48  # voxels
_FIELDS = 3  # a face is compared in 3 × 3 fields; an edge of tissue at the same place makes few of them alike


@dataclass(frozen=True)
class Signature:
    """Fingerprint of a patch: a hash of each plane along each axis, and the fields of its six faces."""

    name: str
    shape: tuple[int, int, int]
    planes: tuple[frozenset[bytes], frozenset[bytes], frozenset[bytes]]
    first_faces: tuple[list[NDArray[np.float32]], ...]
    last_faces: tuple[list[NDArray[np.float32]], ...]


@dataclass(frozen=True)
class Relation:
    """Two patches that must share a fold, and the reason."""

    first: str
    second: str
    reason: str


def signature(name: str, image: Array) -> Signature:
    """The signature of one image, (z, y, x)."""
    planes = []
    for axis in range(3):
        rows = np.moveaxis(image, axis, 0)
        # constant planes (padding, camera background) of unrelated patches are alike
        planes.append(
            frozenset(hashlib.blake2b(row.tobytes(), digest_size=12).digest() for row in rows if row.min() != row.max())
        )
    first = tuple(_face(np.take(image, 0, axis)) for axis in range(3))
    last = tuple(_face(np.take(image, -1, axis)) for axis in range(3))
    z, y, x = image.shape
    return Signature(name, (z, y, x), (planes[0], planes[1], planes[2]), first, last)


def _face(face: Array) -> list[NDArray[np.float32]]:
    """The fields of a face, each a vector of unit length and mean 0, or zeros; none for a face that is too small to prove anything.

    The log intensity is band-passed between noise and shading.
    """
    if min(face.shape) < _LEAST_FACE:
        return []
    logged = np.log1p(np.maximum(face.astype(np.float32), 0))
    band = gaussian_filter(logged, _NOISE_SIGMA) - gaussian_filter(logged, _SHADING_SIGMA)
    fields = []
    for rows in np.array_split(band, _FIELDS, axis=0):
        for field in np.array_split(rows, _FIELDS, axis=1):
            flat = (field - field.mean()).ravel()
            norm = float(np.linalg.norm(flat))
            fields.append(np.asarray(flat / norm if norm > 1e-6 else flat * 0, np.float32))
    return fields


def find_relations(signatures: Sequence[Signature]) -> list[Relation]:
    """All pairs that are copies, overlaps or neighbours."""
    relations = []
    for a, b in combinations(signatures, 2):
        if a.shape == b.shape and a.planes == b.planes and a.planes[0]:
            relations.append(Relation(a.name, b.name, "identical images"))
        elif any(p & q for p, q in zip(a.planes, b.planes, strict=True)):
            relations.append(Relation(a.name, b.name, "they overlap"))
        elif _touching(a, b) >= NEIGHBOUR_CORRELATION:
            relations.append(Relation(a.name, b.name, f"they touch (faces correlate {_touching(a, b):.2f})"))
    return relations


def _touching(a: Signature, b: Signature) -> float:
    """The largest correlation (median over fields) of a last face of one patch with a first face of the other."""
    faces = [
        (ending.last_faces[axis], beginning.first_faces[axis])
        for ending, beginning in ((a, b), (b, a))
        for axis in range(3)
        if _across(a.shape, axis) == _across(b.shape, axis) and ending.last_faces[axis]
    ]
    return max(
        (float(np.median([a @ b for a, b in zip(end, start, strict=True)])) for end, start in faces), default=0.0
    )


def _across(shape: tuple[int, int, int], axis: int) -> tuple[int, ...]:
    return shape[:axis] + shape[axis + 1 :]
