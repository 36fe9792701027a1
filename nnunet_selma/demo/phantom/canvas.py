"""A volume on which pieces are drawn; the Betti numbers of the drawing are always known.

A piece (a blob, a tube) is drawn only if it changes the Betti numbers in the way that its number of joints says; otherwise the canvas
stays as it was. The conditions, cheapest first:

1. away from its joints the piece keeps one background voxel to everything drawn before (26-neighbourhood);
2. at its joints it touches exactly one earlier object, without joints none;
3. it is one 26-connected component, and it encloses no background;
4. the Euler characteristic changes by 1 - joints. The change is local, so the box around the piece is enough.

With 2 and 3 the change of b0 and b2 is known, and with 4 that of b1: a piece without joint is a new object, one with one
joint a branch (nothing changes), one with two joints on the same object closes one loop. Memory: 6 bytes per voxel.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from nnunet_selma.morphology.topology import Betti, euler_characteristic

MARGIN = 2
"""Empty voxels around the drawing, so that neighbourhoods and boxes never leave the array."""

EVERY_NEIGHBOUR = np.ones((3, 3, 3), dtype=bool)


class Joint(NamedTuple):
    """Ball in which a piece may touch earlier pieces: centre (z, y, x) and radius, voxels."""

    centre: NDArray[np.float64]
    radius: float


class Canvas:
    """Volume on which objects of known topology are drawn piece by piece."""

    def __init__(self, room: NDArray[np.bool_]) -> None:
        """Start empty; `room`, bool (z, y, x), is True where pieces may be drawn; they are cut at its edge."""
        self._room = np.pad(room, MARGIN)
        self._pieces = np.zeros(self._room.shape, dtype=np.int32)
        self._keep_out = np.zeros(self._room.shape, dtype=bool)
        self._object_of_piece = [0]
        self._calibre = [0.0]
        steps = np.indices((3, 3, 3)).reshape(3, -1).T - 1
        self._neighbours = steps @ np.array(self._room.strides) // self._room.itemsize
        self._room_voxels = max(int(np.count_nonzero(room)), 1)
        self._drawn_voxels = 0
        self._objects = 0
        self._loops = 0

    @property
    def share(self) -> float:
        """Foreground as a share of the room, 0 to 1."""
        return self._drawn_voxels / self._room_voxels

    @property
    def betti(self) -> Betti:
        """Objects, loops and cavities drawn so far."""
        return Betti(self._objects, self._loops, 0)

    @property
    def pieces(self) -> NDArray[np.int32]:
        """Number of the piece of each voxel, (z, y, x); 0 where nothing is drawn."""
        return self._pieces[(slice(MARGIN, -MARGIN),) * 3]

    @property
    def calibre(self) -> NDArray[np.float32]:
        """Calibre given to each piece, by piece number; entry 0 stands for the background."""
        return np.asarray(self._calibre, dtype=np.float32)

    def is_free(self, point: NDArray[np.float64]) -> bool:
        """Return True if the voxel at `point` (z, y, x) is in the room and touches no piece."""
        voxel = tuple(np.rint(point).astype(int) + MARGIN)
        return bool(self._room[voxel] and not self._keep_out[voxel])

    def is_blocked(self, points: NDArray[np.float64]) -> NDArray[np.bool_]:
        """For each of `points`, (n, 3) in (z, y, x), True if its voxel touches a piece; False outside the volume."""
        voxels = np.rint(points).astype(int) + MARGIN
        inside = ((voxels >= 0) & (voxels < self._room.shape)).all(axis=1)
        blocked = np.zeros(len(points), dtype=bool)
        blocked[inside] = self._keep_out[tuple(voxels[inside].T)]
        return blocked

    def add(
        self,
        voxels: NDArray[np.intp],
        joints: Sequence[Joint] = (),
        *,
        calibre: float = 1.0,
        continues: bool = False,
    ) -> bool:
        """Draw a piece if it fits; otherwise leave the canvas as it was.

        Args:
            voxels: (n, 3) in (z, y, x); repetitions and voxels outside the room are left out.
            joints: none for a new object without holes, one for a branch of an object, two for a piece that closes one loop.
            calibre: thickness of the piece, on which the brightness of some stains depends.
            continues: the piece gets the number and the calibre of the piece drawn last.

        Returns:
            True if the piece was drawn.
        """
        voxels = self._inside(voxels)
        if not len(voxels):
            return False
        flat = np.ravel_multi_index(tuple(voxels.T), self._room.shape)
        near = np.zeros(len(voxels), dtype=bool)
        for joint in joints:
            near |= ((voxels - MARGIN - joint.centre) ** 2).sum(axis=1) <= joint.radius**2
        if self._keep_out.ravel()[flat[~near]].any():
            return False
        touched = self._touched(flat[near])
        if len(touched) != min(len(joints), 1) or not self._has_effect_of(voxels, len(joints)):
            return False
        self._draw(flat, touched, calibre, continues)
        self._loops += max(len(joints) - 1, 0)
        return True

    def _inside(self, voxels: NDArray[np.intp]) -> NDArray[np.intp]:
        """The voxels that lie in the room, each once, in coordinates of the padded arrays."""
        shape = np.array(self._room.shape)
        voxels = voxels + MARGIN
        voxels = voxels[((voxels >= MARGIN) & (voxels < shape - MARGIN)).all(axis=1)]
        flat = np.unique(np.ravel_multi_index(tuple(voxels.T), self._room.shape))
        flat = flat[self._room.ravel()[flat]]
        return np.stack(np.unravel_index(flat, self._room.shape), axis=1)

    def _touched(self, flat: NDArray[np.intp]) -> set[int]:
        """Objects in the 26-neighbourhood of voxels, given by their flat indices."""
        if not flat.size:
            return set()
        pieces = np.unique(self._pieces.ravel()[flat[:, None] + self._neighbours])
        return {self._object_of_piece[piece] for piece in pieces if piece}

    def _has_effect_of(self, voxels: NDArray[np.intp], joints: int) -> bool:
        """True if the piece changes the Betti numbers as a piece with so many joints must: conditions 3 and 4."""
        low, high = voxels.min(axis=0) - 1, voxels.max(axis=0) + 2
        before = self._pieces[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] > 0
        piece = np.zeros_like(before)
        piece[tuple((voxels - low).T)] = True
        if ndimage.label(piece, EVERY_NEIGHBOUR)[1] != 1:
            return False
        after = before | piece
        if euler_characteristic(after) - euler_characteristic(before) != 1 - joints:
            return False
        return not _has_cavity(after)

    def _draw(self, flat: NDArray[np.intp], touched: set[int], calibre: float, continues: bool) -> None:
        pieces, keep_out = self._pieces.reshape(-1), self._keep_out.reshape(-1)
        if not touched:
            self._objects += 1
        new = flat[pieces[flat] == 0]
        pieces[new] = len(self._object_of_piece) - continues
        keep_out[new[:, None] + self._neighbours] = True
        self._drawn_voxels += new.size
        if not continues:
            self._object_of_piece.append(next(iter(touched), self._objects))
            self._calibre.append(calibre)


def _has_cavity(mask: NDArray[np.bool_]) -> bool:
    """True if a 6-connected part of the background does not reach the border of the box."""
    background, count = ndimage.label(~mask)
    if count <= 1:
        return False
    sides = [np.take(background, end, axis) for axis in range(3) for end in (0, -1)]
    outer = {int(number) for side in sides for number in np.unique(side)}
    return bool(len(outer - {0}) < count)
