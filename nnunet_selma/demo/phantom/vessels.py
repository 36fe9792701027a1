"""Blood vessels: trees of tortuous tubes that taper where they branch, with a known number of closed loops.

A few trunks cross the volume. Then points are drawn in the empty space and joined to the nearest vessel by a curved
branch (constructive optimisation in the spirit of Schreiner and Buxbaum 1993, without the haemodynamics), or to two
vessels on both sides, which closes a loop as capillaries do. A branch is thinner than its parent after Murray's law.
The canvas refuses what would touch anything else, so the number of trees is b0 and the number of loops b1.
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
"""Least and greatest length of a branch that nothing stops, voxels."""

SHORTEST = 3.0
"""Length below which a branch is not worth drawing, voxels beyond its joint."""

SECTION = 80
"""Points of a path drawn at once."""

STEPS_PER_VOXEL = 2.5
"""Points of a path per voxel of its length."""

LOOP_PROBABILITY = 0.25
"""Chance that the next piece tries to close a loop while loops are wanted."""

ATTEMPTS = 300
"""Pieces refused in a row after which the volume counts as full."""


class _Network:
    """Points of the centrelines drawn so far, with radius and direction, searchable by place."""

    def __init__(self) -> None:
        self._points: list[NDArray[np.float64]] = []
        self._radii: list[NDArray[np.float64]] = []
        self._searchable = 0

    def append(self, path: NDArray[np.float64], radii: NDArray[np.float64]) -> None:
        self._points.append(path[::2])
        self._radii.append(radii[::2])
        # Rebuilding after every branch would cost more than drawing it; a search that misses the latest 5 % is
        # harmless, because the canvas has the last word.
        if len(self._points) > 1.05 * self._searchable:
            self._searchable = len(self._points)
            self.points, self.radii = np.concatenate(self._points), np.concatenate(self._radii)
            self._tree = cKDTree(self.points)

    def nearest(self, point: NDArray[np.float64], count: int) -> NDArray[np.intp]:
        """Return the numbers of the `count` points nearest to `point`, nearest first."""
        return np.atleast_1d(self._tree.query(point, k=min(count, len(self.points)))[1])


def draw_vessels(
    room: NDArray[np.bool_], rng: np.random.Generator, *, loops: int | None = None, share: float | None = None
) -> Canvas:
    """Return a canvas with a vessel network drawn in `room`, (z, y, x) bool.

    `loops` closed loops are drawn, by default about one per 30^3 voxels; a small volume may have room for fewer: the
    canvas tells the number drawn. Branches are added until vessels take the share `share` of the room, by default 0.10
    to 0.18, or nothing more fits.
    """
    canvas, network = Canvas(room), _Network()
    share = float(rng.uniform(*SHARE)) if share is None else share
    wanted = round(np.count_nonzero(room) / 27**3 * rng.uniform(0.6, 1.2)) if loops is None else loops
    _draw_trunks(canvas, network, room, share, rng)
    refused = 0 if canvas.betti[0] else ATTEMPTS
    while refused < ATTEMPTS and (canvas.share < share or canvas.betti[1] < wanted):
        target = rng.uniform(-0.5, np.array(room.shape) - 0.5)
        closing = canvas.betti[1] < wanted and (canvas.share >= share or rng.random() < LOOP_PROBABILITY)
        if not canvas.is_free(np.clip(target, 0, np.array(room.shape) - 1)):
            refused += 1
            continue
        drawn = _close_loop(canvas, network, target, rng) if closing else _branch(canvas, network, target, rng)
        refused = 0 if drawn else refused + 1
    return canvas


def _draw_trunks(
    canvas: Canvas, network: _Network, room: NDArray[np.bool_], share: float, rng: np.random.Generator
) -> None:
    """Draw the major vessels, straight through the volume, until they take a quarter of the share wanted."""
    shape = np.array(room.shape, dtype=float)
    thickest = float(np.clip(shape.min() / 8, 2.0, 8.0))
    for attempt in range(ATTEMPTS):
        if canvas.betti[0] and (canvas.share > 0.25 * share or attempt > 30):
            return
        through = rng.uniform(0.1, 0.9, 3) * (shape - 1)
        if not canvas.is_free(through):
            continue
        heading = rng.normal(size=3) * np.array([0.6, 1, 1])
        # From border to border; until there is one, shorter with every refusal, so that any room gets its first vessel.
        heading *= shape.max() * (1.0 if canvas.betti[0] else 0.97**attempt) / np.linalg.norm(heading)
        radius = float(rng.uniform(0.4, 1)) * thickest
        path = _curve(through - heading, through, through + heading, bend=0.5, rng=rng)
        path = path[((path > -radius) & (path < shape + radius)).all(axis=1)]
        if len(path) < 4:
            continue
        radii = _taper(radius, 0.65 * radius, path, rng)
        _lay(canvas, network, path, radii, None)


def _branch(canvas: Canvas, network: _Network, target: NDArray[np.float64], rng: np.random.Generator) -> bool:
    """Join `target` to the nearest vessel; return whether it fitted."""
    near = network.nearest(target, 1)[0]
    start, parent = network.points[near], network.radii[near]
    radius = _daughter(parent, rng)
    joint = Joint(start, parent + radius + 2)
    # Vessels run on past the target until something is in the way.
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
    """Draw a tube section by section until one is refused; return whether any was drawn.

    It begins at `joint`, or anywhere in the room if that is None. Sections keep the boxes that the canvas looks at small:
    a whole diagonal vessel has a box as large as the volume.
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
    """Join two vessels on either side of `target` by a thin one; return whether that closed exactly one loop."""
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
    """Return the radius of a branch: Murray's law r1^3 + r2^3 = r^3, with the smaller share for the branch."""
    radius = parent_radius * rng.uniform(0.15, 0.5) ** (1 / 3)
    return float(max(radius, rng.uniform(*CAPILLARY_RADIUS)) if radius < CAPILLARY_RADIUS[1] else radius)


def _taper(first: float, last: float, path: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    """Return radii along `path` that go from `first` to `last` and swell and narrow a little on the way."""
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
    """Return a path (m, 3) from `first` past `middle` to `last` in steps below a voxel, wandering by `bend` of its length."""
    length = float(np.linalg.norm(middle - first) + np.linalg.norm(last - middle))
    steps = max(int(STEPS_PER_VOXEL * length), 4)
    t = np.linspace(0, 1, steps)[:, None]
    control = 2 * middle - (first + last) / 2
    path = (1 - t) ** 2 * first + 2 * t * (1 - t) * control + t**2 * last
    sway = rng.normal(0, bend * min(length, 60) / 4, (3, 3))
    waves = np.concatenate([np.sin(np.pi * k * t) / k for k in (1, 2, 3)], axis=1)
    return np.asarray(path + waves @ sway)
