"""The canvas refuses what would change the topology in another way than announced."""

import numpy as np
import pytest
from numpy.typing import NDArray

from nnunet_selma.demo.phantom.canvas import Canvas, Joint


def voxels(*where: slice | int) -> NDArray[np.intp]:
    box = np.zeros((20, 20, 20), dtype=bool)
    box[where] = True
    return np.argwhere(box)


def joint(*centre: float, radius: float = 2.0) -> Joint:
    return Joint(np.array(centre), radius)


@pytest.fixture
def canvas() -> Canvas:
    """A bar along x."""
    canvas = Canvas(np.ones((20, 20, 20), dtype=bool))
    assert canvas.add(voxels(10, 10, slice(2, 18)))
    return canvas


def test_new_object_needs_a_gap(canvas: Canvas) -> None:
    assert not canvas.add(voxels(11, 11, slice(0, 2)))  # touches by a corner
    assert not canvas.add(voxels(10, 11, 5))
    assert canvas.add(voxels(12, 10, slice(2, 18)))
    assert canvas.betti == (2, 0, 0)


def test_branch_joins_one_object_at_its_joint(canvas: Canvas) -> None:
    branch = voxels(10, slice(11, 16), 9)
    assert not canvas.add(branch)
    assert canvas.add(branch, [joint(10, 10, 9)])
    assert canvas.betti == (1, 0, 0)
    assert canvas.add(voxels(10, 0, slice(0, 20)))
    bridge = voxels(10, slice(1, 10), 5)
    assert not canvas.add(bridge, [joint(10, 10, 5)])  # would touch the second bar away from its joint
    assert not canvas.add(bridge, [joint(10, 10, 5), joint(10, 0, 5)])  # would join two objects
    assert canvas.betti == (2, 0, 0)


def test_loop_closes_exactly_once(canvas: Canvas) -> None:
    arch = np.concatenate([voxels(10, slice(11, 15), 4), voxels(10, 15, slice(4, 13)), voxels(10, slice(11, 15), 12)])
    joints = [joint(10, 10, 4), joint(10, 10, 12)]
    assert not canvas.add(arch, joints[:1])
    assert not canvas.add(voxels(10, slice(11, 15), 4), joints)  # reaches one of its ends only
    assert canvas.add(arch, joints)
    assert canvas.betti == (1, 1, 0)


def test_hollow_ring_shaped_and_broken_pieces_are_refused() -> None:
    canvas = Canvas(np.ones((20, 20, 20), dtype=bool))
    shell = voxels(slice(2, 7), slice(2, 7), slice(2, 7))
    assert not canvas.add(shell[(shell != 4).any(axis=1)])
    ring = voxels(3, slice(2, 5), slice(2, 5))
    assert not canvas.add(ring[(ring != 3).any(axis=1)])
    assert not canvas.add(np.array([[3, 3, 3], [3, 3, 5]]))
    assert not canvas.add(np.array([[30, 3, 3]]))
    assert canvas.betti == (0, 0, 0)
    assert not canvas.pieces.any()


def test_room_cuts_pieces() -> None:
    room = np.ones((20, 20, 20), dtype=bool)
    room[:, :, 8:10] = False
    canvas = Canvas(room)
    assert not canvas.add(voxels(5, 5, slice(2, 18)))  # falls into two
    assert canvas.add(voxels(5, 5, slice(2, 10)))
    assert int(canvas.pieces.sum()) == 6
