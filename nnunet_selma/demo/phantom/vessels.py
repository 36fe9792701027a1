"""Blood vessels: trees of tortuous tubes that taper where they branch, with a known number of closed loops.

A few trunks cross the volume. Then points are drawn in the empty space and joined to the nearest vessel by a curved
branch (constructive optimisation in the spirit of Schreiner and Buxbaum 1993, without the haemodynamics), or to two
vessels on both sides, which closes a loop as capillaries do. A branch is thinner than its parent after Murray's law.
A piece that would touch anything else is not drawn, so the number of trees is b0 and the number of loops is b1.
"""

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from nnunet_selma.demo.phantom.canvas import Canvas, Joint
from nnunet_selma.demo.phantom.shapes import tube

SHARE = (0.10, 0.18)
"""Least and greatest share of the volume that is vessel."""

CAPILLARY_RADIUS = (1.5, 2.3)
"""Radii of the thinnest vessels, voxels."""

REACH = (25.0, 100.0)
"""Least and greatest length of a branch with nothing in its way, voxels."""

SHORTEST = 3.0
"""Least length of a branch beyond its joint, voxels."""

SECTION = 80
"""Points of a path drawn at once."""

STEPS_PER_VOXEL = 2.5
"""Points of a path per voxel of its length."""

LOOP_PROBABILITY = 0.25
"""Probability that the next piece is to close a loop, as long as loops are missing."""

ATTEMPTS = 300
"""Number of consecutive pieces without room after which the volume counts as full."""


class _Network:
    """Points of the centrelines drawn so far, with their radii, and a search for the nearest ones."""

    def __init__(self) -> None:
        self._points: list[NDArray[np.float64]] = []
        self._radii: list[NDArray[np.float64]] = []
        self._searchable = 0

    def append(self, path: NDArray[np.float64], radii: NDArray[np.float64]) -> None:
        """Add every second point of a path."""
        self._points.append(path[::2])
        self._radii.append(radii[::2])
        # rebuilding after every branch would cost more than drawing it; a search may miss the latest 5 %, because
        # the canvas checks every piece
        if len(self._points) > 1.05 * self._searchable:
            self._searchable = len(self._points)
            self.points, self.radii = np.concatenate(self._points), np.concatenate(self._radii)
            self._tree = cKDTree(self.points)

    def nearest(self, point: NDArray[np.float64], count: int) -> NDArray[np.intp]:
        """Numbers of the `count` points nearest to `point`, nearest first."""
        return np.atleast_1d(self._tree.query(point, k=min(count, len(self.points)))[1])


def draw_vessels(
    room: NDArray[np.bool_], rng: np.random.Generator, *, loops: int | None = None, share: float | None = None
) -> Canvas:
    """Draw a vessel network.

    Args:
        room: bool (z, y, x), True where vessels may be drawn.
        rng: source of all random numbers.
        loops: number of closed loops, by default about one per 28³ voxels of room; fewer are drawn if there is no room for more.
        share: share of the room at which drawing ends, by default 0.10 to 0.18; less if nothing more fits.

    Returns:
        A canvas, which has the number of loops drawn.
    """
    canvas, network = Canvas(room), _Network()
    share = float(rng.uniform(*SHARE)) if share is None else share
    goal = round(np.count_nonzero(room) / 27**3 * rng.uniform(0.6, 1.2)) if loops is None else loops
    _draw_trunks(canvas, network, room, share, rng)
    refused = 0 if canvas.betti.b0 else ATTEMPTS
    while refused < ATTEMPTS and (canvas.share < share or canvas.betti.b1 < goal):
        target = rng.uniform(-0.5, np.array(room.shape) - 0.5)
        closing = canvas.betti.b1 < goal and (canvas.share >= share or rng.random() < LOOP_PROBABILITY)
        if not canvas.is_free(np.clip(target, 0, np.array(room.shape) - 1)):
            refused += 1
            continue
        drawn = _close_loop(canvas, network, target, rng) if closing else _branch(canvas, network, target, rng)
        refused = 0 if drawn else refused + 1
    return canvas


def _draw_trunks(
    canvas: Canvas, network: _Network, room: NDArray[np.bool_], share: float, rng: np.random.Generator
) -> None:
    """Draw the major vessels through the volume until they take a quarter of the share of all vessels."""
    shape = np.array(room.shape, dtype=float)
    thickest = float(np.clip(shape.min() / 8, 2.0, 8.0))
    for attempt in range(ATTEMPTS):
        if canvas.betti.b0 and (canvas.share > 0.25 * share or attempt > 30):
            return
        through = rng.uniform(0.1, 0.9, 3) * (shape - 1)
        if not canvas.is_free(through):
            continue
        heading = rng.normal(size=3) * np.array([0.6, 1, 1])
        # the first vessel becomes shorter with every attempt, so that it fits into any room; later ones go from border to border
        heading *= shape.max() * (1.0 if canvas.betti.b0 else 0.97**attempt) / np.linalg.norm(heading)
        radius = float(rng.uniform(0.4, 1)) * thickest
        path = _curve(through - heading, through, through + heading, bend=0.5, rng=rng)
        path = path[((path > -radius) & (path < shape + radius)).all(axis=1)]
        if len(path) < 4:
            continue
        radii = _taper(radius, 0.65 * radius, path, rng)
        _lay(canvas, network, path, radii, None)


def _branch(canvas: Canvas, network: _Network, target: NDArray[np.float64], rng: np.random.Generator) -> bool:
    """Draw a branch from the nearest vessel towards `target`; return True if there was room for it."""
    near = network.nearest(target, 1)[0]
    start, parent = network.points[near], network.radii[near]
    radius = _daughter(parent, rng)
    joint = Joint(start, parent + radius + 2)
    # the branch goes on past the target until something is in its way
    ahead = (target - start) / max(float(np.linalg.norm(target - start)), 1.0) * rng.uniform(*REACH)
    path = _curve(start, start + ahead / 2, start + ahead, bend=0.4, rng=rng)
    blocked = canvas.is_blocked(path) & (np.linalg.norm(path - start, axis=1) > joint.radius)
    if blocked.any():
        path = path[: max(int(blocked.argmax() - STEPS_PER_VOXEL * (radius + 2)), 0)]
    if not len(path) or np.linalg.norm(path[-1] - start) < joint.radius + SHORTEST:
        return False
    radii = _taper(radius, 0.75 * radius, path, rng)
    return _lay(canvas, network, path, radii, joint)


def _lay(
    canvas: Canvas, network: _Network, path: NDArray[np.float64], radii: NDArray[np.float64], joint: Joint | None
) -> bool:
    """Draw a tube section by section until one does not fit; return True if any was drawn.

    The tube begins at `joint`, or anywhere in the room if that is None. Sections have small boxes, which the canvas checks fast; a whole
    diagonal vessel has a box as large as the volume.
    """
    begin = end = 0
    for first in range(0, len(path), SECTION):
        joints = [] if joint is None else [joint]
        section = slice(max(first - 1, 0), first + SECTION)
        if canvas.add(tube(path[section], radii[section]), joints, calibre=float(radii[0]), continues=end > 0):
            begin, end = begin if end else first, min(first + SECTION, len(path))
            joint = Joint(path[end - 1], float(radii[end - 1]) + 2)
        elif end or joint is not None:
            break
    if end:
        network.append(path[begin:end], radii[begin:end])
    return end > 0


def _close_loop(canvas: Canvas, network: _Network, target: NDArray[np.float64], rng: np.random.Generator) -> bool:
    """Join two vessels on either side of `target` by a thin one; return True if that closed exactly one loop."""
    near = network.nearest(target, 80)
    offsets = network.points[near] - target
    opposite = near[(offsets @ offsets[0]) < -0.5 * np.linalg.norm(offsets, axis=1) * np.linalg.norm(offsets[0])]
    if not opposite.size:
        return False
    ends = near[0], opposite[0]
    first, last = network.points[ends[0]], network.points[ends[1]]
    radius = min(_daughter(min(network.radii[end] for end in ends), rng), 2.5)
    path = _curve(first, target, last, bend=0.1, rng=rng)
    joints = [Joint(network.points[end], network.radii[end] + radius + 2) for end in ends]
    away = [np.linalg.norm(path - joint.centre, axis=1) > joint.radius for joint in joints]
    if canvas.is_blocked(path[away[0] & away[1]]).any():
        return False
    radii = _taper(radius, radius, path, rng)
    if not canvas.add(tube(path, radii), joints, calibre=radius):
        return False
    network.append(path, radii)
    return True


def _daughter(parent_radius: float, rng: np.random.Generator) -> float:
    """Radius of a branch, voxels, by Murray's law r1³ + r2³ = r³ with the smaller part for the branch."""
    radius = parent_radius * rng.uniform(0.15, 0.5) ** (1 / 3)
    return float(max(radius, rng.uniform(*CAPILLARY_RADIUS)) if radius < CAPILLARY_RADIUS[1] else radius)


def _taper(first: float, last: float, path: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    """Radii along `path` from `first` to `last`, with small random waves."""
    t = np.linspace(0, 1, len(path))
    waves = np.sin(2 * np.pi * (np.outer(t, rng.uniform(1, 4, 2)) + rng.random(2)))
    radii = (first + (last - first) * t) * (1 + waves @ rng.normal(0, 0.07, 2))
    return np.maximum(radii, min(first, CAPILLARY_RADIUS[0]))


def _curve(
    first: NDArray[np.float64],
    middle: NDArray[np.float64],
    last: NDArray[np.float64],
    *,
    bend: float,
    rng: np.random.Generator,
) -> NDArray[np.float64]:
    """A path (m, 3) from `first` past `middle` to `last` in steps below a voxel, with random curves of `bend` times its length."""
    length = float(np.linalg.norm(middle - first) + np.linalg.norm(last - middle))
    steps = max(int(STEPS_PER_VOXEL * length), 4)
    t = np.linspace(0, 1, steps)[:, None]
    control = 2 * middle - (first + last) / 2
    path = (1 - t) ** 2 * first + 2 * t * (1 - t) * control + t**2 * last
    sway = rng.normal(0, bend * min(length, 60) / 4, (3, 3))
    waves = np.concatenate([np.sin(np.pi * k * t) / k for k in (1, 2, 3)], axis=1)
    return np.asarray(path + waves @ sway)
