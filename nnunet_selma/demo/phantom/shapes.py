"""Shapes of isolated structures, and tubes; every piece is checked when it is drawn on the canvas, so that the Betti numbers are known.

Isolated structures are irregular blobs; microglia also get a tree of processes; vessels are in vessels.py. Sizes follow the annotated
patches of SELMA3D and DELiVR: lengths are in voxels, and blobs are flat along z where slices are farther apart than pixels.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from nnunet_selma.demo.phantom.canvas import Canvas, Joint

ATTEMPTS_PER_PIECE = 40
"""Redraws of one piece before the volume counts as full."""


@dataclass(frozen=True, kw_only=True)
class Blob:
    """Size, spread and abundance of a compact object."""

    semi_axes_zyx: tuple[float, float, float]
    """Semi-axes of the median object, voxels."""
    size_spread: float
    """Standard deviation of the logarithm of the size, for all three axes together."""
    share: tuple[float, float]
    """Least and greatest share of the volume that is foreground; the share of a volume is drawn log-uniformly between them."""
    clustered: float
    """Share of the objects that lie around common centres; the others lie anywhere."""


BLOBS = {
    "cfos_neuron": Blob(semi_axes_zyx=(1.5, 2.3, 2.2), size_spread=0.25, share=(0.0008, 0.006), clustered=0.5),
    "cell_nuclei": Blob(semi_axes_zyx=(2.0, 3.2, 3.0), size_spread=0.2, share=(0.024, 0.031), clustered=0.1),
    "AD_plaques": Blob(semi_axes_zyx=(2.9, 2.6, 2.6), size_spread=0.35, share=(0.0001, 0.0024), clustered=0.3),
    "microglia": Blob(semi_axes_zyx=(2.2, 5.0, 4.4), size_spread=0.17, share=(0.003, 0.028), clustered=0.2),
}


def draw_spots(structure: str, room: NDArray[np.bool_], rng: np.random.Generator) -> Canvas:
    """Draw separate objects without holes in `room`, bool (z, y, x).

    b0 is the number of objects, b1 = b2 = 0. At least one object is drawn where there is room for one.
    """
    blob = BLOBS[structure]
    canvas = Canvas(room)
    share = float(np.exp(rng.uniform(*np.log(blob.share))))
    places = _places(room, blob.clustered, rng)
    failures = 0
    while (canvas.share < share or not canvas.betti[0]) and failures < ATTEMPTS_PER_PIECE:
        centre = places()
        scale = float(np.exp(rng.normal(0, blob.size_spread)))
        semi_axes = np.array(blob.semi_axes_zyx) * scale * rng.uniform(0.78, 1.25, 3)
        if not canvas.is_free(centre) or not canvas.add(irregular_ellipsoid(centre, semi_axes, rng), calibre=scale):
            failures += 1
            continue
        failures = 0
        if structure == "microglia":
            _grow_processes(canvas, centre, semi_axes, rng)
    return canvas


def _places(room: NDArray[np.bool_], clustered: float, rng: np.random.Generator) -> Callable[[], NDArray[np.float64]]:
    """Return a function that proposes centres of objects in the room, (z, y, x) in voxels."""
    flat = np.flatnonzero(room)
    if not flat.size:
        raise ValueError(f"no voxel of the volume {room.shape} is tissue: nothing can be drawn, lower `outside`")
    highest = np.array(room.shape) - 1

    def anywhere() -> NDArray[np.float64]:
        voxel = np.array(np.unravel_index(flat[rng.integers(flat.size)], room.shape), dtype=float)
        return np.clip(voxel + rng.uniform(-0.5, 0.5, 3), 0, highest)

    # One centre per 50^3 voxels: c-Fos+ cells and nuclei come in layers and groups of about that size.
    centres = np.array([anywhere() for _ in range(1 + flat.size // 50**3)])

    def place() -> NDArray[np.float64]:
        if rng.random() > clustered:
            return anywhere()
        near = centres[rng.integers(len(centres))] + rng.normal(0, 12, 3)
        return near if ((near >= 0) & (near <= highest)).all() else anywhere()

    return place


def irregular_ellipsoid(
    centre: NDArray[np.float64], semi_axes: NDArray[np.float64], rng: np.random.Generator
) -> NDArray[np.intp]:
    """Voxels (n, 3) of an ellipsoid with an uneven surface, turned at random around z; `centre` and `semi_axes` are (z, y, x) in voxels."""
    reach = np.ceil(semi_axes.max() * 1.3).astype(int) + 1
    lowest = np.rint(centre).astype(int) - reach
    grid = np.indices((2 * reach + 1,) * 3).reshape(3, -1).T + lowest
    z, y, x = (grid - centre).T
    turn = rng.uniform(0, np.pi)
    along, across = np.cos(turn) * y + np.sin(turn) * x, np.cos(turn) * x - np.sin(turn) * y
    scaled = np.stack([z, along, across]) / semi_axes[:, None]
    radius = np.sqrt((scaled**2).sum(axis=0))
    bumps = rng.normal(0, 0.12, (3, 3))
    # A quadratic form in the direction: one bulge and one dent, enough to leave no two objects alike.
    surface = 1 + np.einsum("in,ij,jn->n", scaled, bumps, scaled) / np.maximum(radius, 1e-6) ** 2
    inside = radius <= np.clip(surface, 0.7, 1.3)
    inside |= (grid == np.rint(centre).astype(int)).all(axis=1)
    return np.asarray(grid[inside])


@cache
def _ball(radius_quarters: int) -> NDArray[np.intp]:
    """Offsets (n, 3) of the voxels of a ball; the radius is in quarters of a voxel."""
    radius = radius_quarters / 4
    reach = int(radius)
    offsets = np.indices((2 * reach + 1,) * 3).reshape(3, -1).T - reach
    return np.asarray(offsets[(offsets**2).sum(axis=1) <= radius**2])


def tube(path: NDArray[np.float64], radii: NDArray[np.float64]) -> NDArray[np.intp]:
    """Voxels (n, 3), with repetitions, of a tube: balls of `radii` (m,) along `path` (m, 3) in (z, y, x), both in voxels.

    Consecutive points must be no farther apart than one voxel and the radius; otherwise the tube has gaps.
    """
    centres = np.rint(path).astype(np.intp)
    quarters = np.rint(radii * 4).astype(int)
    moved = np.diff(np.column_stack([centres, quarters]), axis=0, prepend=np.iinfo(np.intp).min).any(axis=1)
    centres, quarters = centres[moved], quarters[moved]
    return np.concatenate(
        [(centres[quarters == q][:, None] + _ball(int(q))).reshape(-1, 3) for q in np.unique(quarters)]
    )


def _grow_processes(
    canvas: Canvas, centre: NDArray[np.float64], semi_axes: NDArray[np.float64], rng: np.random.Generator
) -> None:
    """Draw tortuous processes on the soma at `centre`; each may fork once."""
    for _ in range(rng.integers(0, 5)):
        heading = rng.normal(size=3)
        heading /= np.linalg.norm(heading)
        length = float(rng.uniform(5, 18))
        start = centre + 0.6 * heading * semi_axes
        path = _crawl(start, heading, length, rng)
        radii = np.linspace(2.0, 1.0, len(path)).astype(np.float64)
        joint = Joint(centre, float(semi_axes.max()) + 2.5)
        if canvas.add(tube(path, radii), [joint], calibre=0.6) and rng.random() < 0.4:
            fork = len(path) * 2 // 3
            side = _crawl(path[fork], heading + rng.normal(0, 1, 3), length / 2, rng)
            canvas.add(tube(side, np.full(len(side), 1.0)), [Joint(path[fork], 3.5)], calibre=0.6)


def _crawl(
    start: NDArray[np.float64], heading: NDArray[np.float64], length: float, rng: np.random.Generator
) -> NDArray[np.float64]:
    """A winding path (m, 3) from `start` in steps of half a voxel; steps along z are about a third as long, because slices are thick."""
    steps = max(int(length * 2), 2)
    turns = np.cumsum(rng.normal(0, 0.12, (steps, 3)), axis=0)
    directions = heading / np.linalg.norm(heading) + turns
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    return np.asarray(start + np.cumsum(0.5 * directions * np.array([0.35, 1, 1]), axis=0))
