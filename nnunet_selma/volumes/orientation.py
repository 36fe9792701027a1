"""Volumes that belong together, laid alike: an image and its label may have their axes in another order or direction on disk.

Axes are only turned where the headers then put both volumes at the same place. Programs count x and y from different sides and write the
origin 0 where they know none, so a direction alone proves nothing.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from nibabel.affines import voxel_sizes
from nibabel.orientations import inv_ornt_aff, io_orientation
from numpy.typing import NDArray

from nnunet_selma.errors import SelmaError
from nnunet_selma.volumes.base import Array, ShapeZYX, Volume

Affine = NDArray[np.float64]

_SAME_SIZE = 0.01
"""Greatest relative difference between edges of voxels that are taken as equal; headers are rounded."""
_SAME_DEGREES = 0.1
"""Greatest angle between axes that are taken as parallel."""
_SAME_PLACE = 0.5
"""Greatest distance of places that are taken as equal, voxels."""
_SAME_FIELD = 0.1
"""Greatest difference of fields of view that are taken as equal, as a share of their lengths; coarse voxels do not end where fine ones do."""
_UNITS = (1.0, 1e3, 1e-3)
"""Factors between headers in the same unit, and between headers in mm and in µm."""


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Turns after which the array of a volume lies as that of another volume, and a difference of the headers that no turn undoes."""

    path: Path
    """Path of the volume."""
    like: Path
    """Path of the other volume."""
    shape: ShapeZYX
    """Shape of the array after the turns, (z, y, x)."""
    axes: ShapeZYX = (0, 1, 2)
    """For each axis (z, y, x) after the turns, the number of the axis of the file."""
    flips: tuple[bool, bool, bool] = (False, False, False)
    """For each axis (z, y, x) after the turns, True if it is reversed."""
    difference: str | None = None
    """Words for what differs between the headers though nothing was turned; None if they agree, or if one states no place."""

    @property
    def turns(self) -> str | None:
        """Words for the turns; None if there are none."""
        words = []
        if self.axes != (0, 1, 2):
            words.append(f"the axes {', '.join('zyx'[axis] for axis in self.axes)} of the file became z, y, x")
        if any(self.flips):
            words.append(
                f"reversed along {', '.join(name for name, flip in zip('zyx', self.flips, strict=True) if flip)}"
            )
        return ", ".join(words) or None

    @property
    def warning(self) -> str | None:
        """Words about turns or a difference, to stand behind the name of the file; None if there is nothing to say."""
        if self.turns:
            return f"lies in another orientation than {self.like}, as their headers say, and was turned to it ({self.turns})"
        if self.difference:
            return f"the header differs from that of {self.like}: {self.difference}; the voxels are taken as they lie"
        return None

    def apply(self, array: Array) -> Array:
        """Turn the whole array of the volume, (z, y, x)."""
        turned = array.transpose(self.axes)[tuple(slice(None, None, -1 if flip else 1) for flip in self.flips)]
        return np.ascontiguousarray(turned)


class Turn(NamedTuple):
    """Turns of an array: its axes in another order, then some of them reversed."""

    axes: ShapeZYX = (0, 1, 2)
    """For each axis after the turns, the number of the axis before them."""
    flips: tuple[bool, bool, bool] = (False, False, False)
    """For each axis after the turns, True if it is reversed."""


IN_PLACE = Turn()


def turn_between(source: str, target: str) -> Turn:
    """The turns after which an array of one orientation lies as one of another orientation.

    Args:
        source: three letters that say, for each axis, from which side of the body the first voxel is: a or p (anterior, posterior), s or i
            (superior, inferior), l or r (left, right), as in BrainGlobe.
        target: three letters of the same kind.

    Raises:
        SelmaError: these are no three letters of that kind.
    """
    directions = {letter: axis for axis, letters in enumerate(("ap", "si", "lr")) for letter in letters}
    for letters in (source, target):
        if sorted(directions.get(letter, -1) for letter in letters.lower()) != [0, 1, 2]:
            raise SelmaError(
                f"orientation {letters}: is no orientation; give three letters, one of a and p, one of s and i, one of l and r, for the side from "
                "which the first voxel of each axis is, as in psl"
            )
    along = [directions[letter] for letter in source.lower()]
    z, y, x = (along.index(directions[letter]) for letter in target.lower())
    back, down, across = (
        source.lower()[axis] != letter for axis, letter in zip((z, y, x), target.lower(), strict=True)
    )
    return Turn((z, y, x), (back, down, across))


def turn_by_headers(affine: Affine, like: Affine) -> Turn | None:
    """The turns after which an array with one affine has its axes along those of another affine; None if the axes are not parallel."""
    relative = _relative(affine, like)
    cosines = np.abs(relative[:3, :3])
    if np.abs(cosines - cosines.round()).max() > np.sin(np.radians(_SAME_DEGREES)):
        return None
    return _turn(io_orientation(relative))


def placement(volume: Volume, like: Volume) -> Placement:
    """Compare the headers of two volumes; reads no voxels.

    Axes are exchanged and reversed if both volumes then lie at the same place: first voxels within half a voxel, edges within 1 %, parallel
    axes. A header in mm agrees with one in µm. Otherwise the volume stays as it is, and `difference` says what differs.
    """
    if volume.affine is None or like.affine is None:
        return Placement(path=volume.path, like=like.path, shape=volume.shape)
    orientation = io_orientation(_relative(volume.affine, like.affine))
    turned = volume.affine @ inv_ornt_aff(orientation, volume.shape[::-1])
    is_turned = not np.array_equal(orientation, [[0, 1], [1, 1], [2, 1]])
    difference = _difference(turned, like.affine, is_turned=is_turned)
    if difference or not is_turned:
        return Placement(path=volume.path, like=like.path, shape=volume.shape, difference=difference)
    axes, flips = _turn(orientation)
    z, y, x = (volume.shape[axis] for axis in axes)
    return Placement(path=volume.path, like=like.path, shape=(z, y, x), axes=axes, flips=flips)


def field_turn(affine: Affine, shape: ShapeZYX, like: Affine, like_shape: ShapeZYX) -> Turn | None:
    """The turn after which a volume covers the field of view of another one, at any resolution; reads no voxels.

    Args:
        affine: matrix of the volume, as `Volume.affine`.
        shape: its voxels (z, y, x).
        like: matrix of the other volume.
        like_shape: its voxels (z, y, x).

    Returns:
        `IN_PLACE` where the axes have the same directions, wherever the volumes lie; None where they have others, and no turn brings both
        to the same place, within a tenth of the lengths.
    """
    orientation = io_orientation(_relative(affine, like))
    turn = _turn(orientation)
    if turn == IN_PLACE:
        return IN_PLACE
    for unit in _UNITS:
        relative = np.linalg.solve(_field(like, like_shape), np.diag([unit, unit, unit, 1]) @ _field(affine, shape))
        if np.abs(relative @ inv_ornt_aff(orientation, (2, 2, 2)) - np.eye(4)).max() < _SAME_FIELD:
            return turn
    return None


def _field(affine: Affine, shape: ShapeZYX) -> Affine:
    """Matrix from shares of the field of view (x, y, z), 0 to 1 from edge to edge, to places."""
    to_voxels = np.diag([*shape[::-1], 1.0])
    to_voxels[:3, 3] = -0.5
    return np.asarray(affine @ to_voxels)


def _relative(affine: Affine, like: Affine) -> Affine:
    """Directions of the axes of one affine along those of another, as a matrix (4, 4)."""
    relative = np.eye(4)
    relative[:3, :3] = np.linalg.inv(directions(like)) @ directions(affine)
    return relative


def _turn(orientation: NDArray[Any]) -> Turn:
    """Turns for nibabel's orientation: for each axis x, y, z of a volume, the axis of the other one, and 1 or -1."""
    z, y, x = (int(np.flatnonzero(orientation[:, 0] == axis)[0]) for axis in (2, 1, 0))
    flip_z, flip_y, flip_x = (bool(orientation[axis, 1] < 0) for axis in (z, y, x))
    return Turn((2 - z, 2 - y, 2 - x), (flip_z, flip_y, flip_x))


def directions(affine: Affine) -> Affine:
    """Directions of the axes x, y, z, one a column, of length 1."""
    return np.asarray(affine[:3, :3] / voxel_sizes(affine))


def _difference(affine: Affine, like: Affine, *, is_turned: bool) -> str | None:
    """Words for the difference between two affines whose axes have been brought into the same order; None if they agree."""
    sizes, others = voxel_sizes(affine), voxel_sizes(like)
    unit = next((factor for factor in _UNITS if np.allclose(sizes * factor, others, rtol=_SAME_SIZE, atol=0)), None)
    if unit is None:
        return f"another spacing (voxels of {_numbers(sizes)} instead of {_numbers(others)}, z, y, x)"
    cosines = np.sum(directions(affine) * directions(like), axis=0)
    if (angle := float(np.degrees(np.arccos(np.clip(cosines.min(), -1, 1))))) > _SAME_DEGREES:
        return f"another direction (axes are {angle:.3g}° apart)"
    away = np.linalg.solve(like[:3, :3], affine[:3, 3] * unit - like[:3, 3])
    if np.abs(away).max() > _SAME_PLACE:
        place = f"first voxels are {_numbers(np.abs(away).round(1))} voxels apart, z, y, x"
        return f"another orientation and place ({place} after turning)" if is_turned else f"another origin ({place})"
    return None


def _numbers(values_xyz: NDArray[Any]) -> str:
    return " × ".join(f"{value:.4g}" for value in values_xyz[::-1])
