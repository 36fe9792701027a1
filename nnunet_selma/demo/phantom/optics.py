"""The image that a light-sheet microscope takes of a drawing: stain, tissue, sheet of light, objective, camera.

In this order: every object gets a brightness; the objective blurs (narrow core and wide halo, both longer along z);
autofluorescent tissue with fine grain, clouds, unlabelled spots and bands lies under it; illumination falls off along the
sheet and into the depth, and shadows draw stripes along it; photons arrive by Poisson's law; the camera adds offset
and read noise and saturates at 65535. Illumination runs along x. Memory: about six float32 volumes.

The ranges in `STAINS` were set by eye and by percentiles, autocorrelation and contrast at the masks' edges against
annotated patches of SELMA3D and DELiVR.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

FloatVolume = NDArray[np.float32]
Range = tuple[float, float]

CAMERA_FULL = 65535
"""Greatest grey value of the camera."""


@dataclass(frozen=True, kw_only=True)
class Stain:
    """Appearance of one stain; ranges are drawn log-uniformly once per volume."""

    background: Range
    """Grey values of autofluorescent tissue above the camera's offset."""
    contrast: Range
    """Mean brightness of the labelled objects after blurring, over that of the tissue."""
    spread: float
    """Standard deviation of the logarithm of brightness between objects."""
    by_calibre: float = 0.0
    """Exponent with which brightness grows with calibre: Evans blue fills the major vessels."""
    core: float
    """How much brighter the thick middle of an object is than its rim; 0 for an even stain."""
    psf_um: tuple[float, float]
    """Standard deviations of the point spread function along z and in the plane, µm."""
    halo: float
    """Share of an object's light that is scattered into a wide halo."""
    grain: float
    """Standard deviation of the fine tissue texture, over the tissue's mean."""
    clouds: float
    """Standard deviation of the coarse tissue texture, over the tissue's mean."""
    filaments: float = 0.0
    """Brightness of winding unlabelled fibres (neuropil, capillaries), over the tissue's mean."""
    spots_per_megavoxel: float
    """Number of unlabelled spots (dim cells, debris, light from other planes) per million voxels."""
    spot_contrast: float
    """Brightness of a median unlabelled spot, over the tissue's mean."""
    band: float = 0.0
    """Brightness of a wide unlabelled band, like a fibre tract, over the tissue's mean."""
    stripes: float = 0.01
    """Standard deviation of the shadow stripes."""
    read_noise: float = 28.0
    """Standard deviation of the camera's noise, grey values."""
    greys_per_photon: Range = (0.4, 1.2)
    """Grey values per photon; greater ones make the image grainier."""


STAINS = {
    "wheat_germ_agglutinin": Stain(
        background=(350, 4000),
        contrast=(0.9, 2.2),
        spread=0.3,
        by_calibre=0.2,
        core=0.2,
        psf_um=(6.0, 1.4),
        halo=0.35,
        grain=0.05,
        clouds=0.12,
        filaments=0.15,
        spots_per_megavoxel=60,
        spot_contrast=0.9,
    ),
    "evans_blue": Stain(
        background=(400, 3000),
        contrast=(1.2, 2.8),
        spread=0.25,
        by_calibre=1.4,
        core=0.3,
        psf_um=(6.5, 2.8),
        halo=0.4,
        grain=0.03,
        clouds=0.2,
        spots_per_megavoxel=20,
        spot_contrast=0.8,
    ),
    "cfos_neuron": Stain(
        background=(1800, 2900),
        contrast=(0.42, 0.65),
        spread=0.6,
        core=0.6,
        psf_um=(5.4, 1.6),
        halo=0.1,
        grain=0.042,
        clouds=0.08,
        filaments=0.03,
        spots_per_megavoxel=1200,
        spot_contrast=0.1,
        stripes=0.012,
        read_noise=36,
        greys_per_photon=(0.15, 0.5),
    ),
    "cell_nuclei": Stain(
        background=(350, 3000),
        contrast=(5, 9),
        spread=0.55,
        core=0.7,
        psf_um=(2.9, 1.15),
        halo=0.4,
        grain=0.05,
        clouds=0.3,
        spots_per_megavoxel=260,
        spot_contrast=2.5,
        read_noise=25,
    ),
    "AD_plaques": Stain(
        background=(1400, 2600),
        contrast=(0.2, 0.32),
        spread=0.3,
        core=0.8,
        psf_um=(4.0, 2.0),
        halo=0.25,
        grain=0.015,
        clouds=0.035,
        filaments=0.015,
        spots_per_megavoxel=8,
        spot_contrast=0.09,
        band=0.6,
        stripes=0.009,
        read_noise=18,
        greys_per_photon=(0.15, 0.5),
    ),
    "microglia": Stain(
        background=(850, 2300),
        contrast=(2.9, 4.6),
        spread=0.6,
        by_calibre=0.6,
        core=0.7,
        psf_um=(3.8, 2.6),
        halo=0.45,
        grain=0.04,
        clouds=0.15,
        filaments=0.5,
        spots_per_megavoxel=400,
        spot_contrast=0.35,
        read_noise=28,
    ),
}


def light_sheet(
    pieces: NDArray[np.int32],
    calibre: NDArray[np.float32],
    tissue: NDArray[np.bool_],
    spacing_um_zyx: tuple[float, float, float],
    stain: Stain,
    rng: np.random.Generator,
) -> NDArray[np.uint16]:
    """Image of a drawing, uint16 (z, y, x).

    Args:
        pieces: number of the piece of each voxel, (z, y, x); 0 where nothing is drawn.
        calibre: thickness of each piece, by number.
        tissue: bool (z, y, x); elsewhere the image holds only the offset and noise of the camera.
        spacing_um_zyx: voxel size, µm.
        stain: appearance of objects and tissue.
        rng: source of all random numbers.
    """
    shape = pieces.shape
    sigma = [stain.psf_um[min(axis, 1)] / um for axis, um in enumerate(spacing_um_zyx)]
    edge = _blur(tissue.astype(np.float32), sigma)
    scene = _tissue(shape, sigma, stain, rng) * edge
    scene += _objects(pieces, calibre, sigma, stain, rng)
    scene *= _illumination(shape, stain, rng)
    level = _log_uniform(stain.background, rng)
    return _camera(scene * np.float32(level), stain, rng)


def _objects(
    pieces: NDArray[np.int32],
    calibre: NDArray[np.float32],
    sigma: list[float],
    stain: Stain,
    rng: np.random.Generator,
) -> FloatVolume:
    """Blurred light of the labelled objects; its mean over their voxels is the stain's contrast."""
    brightness = rng.lognormal(0, stain.spread, len(calibre)) * calibre**stain.by_calibre
    brightness[0] = 0
    emission = brightness.astype(np.float32)[pieces]
    if stain.core:
        emission *= _blur((pieces > 0).astype(np.float32), [1.3 * s for s in sigma]) ** np.float32(stain.core)
    sharp = _blur(emission, sigma)
    halo = _blur(emission, [3 * s + 0.7 for s in sigma])
    light = (1 - stain.halo) * sharp + stain.halo * halo
    mean = float(light[pieces > 0].mean()) if pieces.any() else 1.0
    return np.asarray(light * np.float32(_log_uniform(stain.contrast, rng) / mean), dtype=np.float32)


def _tissue(shape: tuple[int, ...], sigma: list[float], stain: Stain, rng: np.random.Generator) -> FloatVolume:
    """Unlabelled light of the tissue, with mean about 1."""
    field = 1 + stain.grain * smooth_noise(shape, [0.9 * s for s in sigma], rng)
    field += stain.clouds * (0.5 * smooth_noise(shape, [4 * s for s in sigma], rng))
    field += stain.clouds * smooth_noise(shape, [max(length / 4, 2.0) for length in shape], rng)
    for wider, share, faint in ((1.2, 0.9, 1.0), (3.0, 0.1, 0.5)):
        count = rng.poisson(stain.spots_per_megavoxel * share * np.prod(shape) / 1e6)
        spots = np.zeros(shape, dtype=np.float32)
        places = tuple(rng.integers(0, length, count) for length in shape)
        # a few wide spots are dark: ventricles, bubbles, empty vessels
        signs = np.where(rng.random(count) < 0.1 * wider - 0.1, -1, 1)
        widths = [wider * s + 0.5 for s in sigma]
        # The peak of a blurred point is 1 / ((2 pi)^1.5 * product of the sigmas).
        peak = faint * stain.spot_contrast * (2 * np.pi) ** 1.5 * float(np.prod(widths))
        np.add.at(spots, places, (peak * rng.lognormal(0, 0.6, count) * signs).astype(np.float32))
        field += _blur(spots, widths)
    # smooth noise is zero on winding sheets: one thick sheet makes a band, two thin ones meet in filaments
    if stain.filaments:
        wide = [2.2 * s for s in sigma]
        levels = smooth_noise(shape, wide, rng) ** 2 + smooth_noise(shape, wide, rng) ** 2
        field += np.float32(stain.filaments) * np.exp(-levels / 0.6)
    if stain.band:
        level = smooth_noise(shape, [length / 2.5 for length in shape], rng) - np.float32(rng.normal(0, 1.5))
        field += np.float32(rng.uniform(0.3, 1.2) * stain.band) * np.exp(-((level / 0.6) ** 2))
    return np.asarray(np.maximum(field, np.float32(0.05)), dtype=np.float32)


def _illumination(shape: tuple[int, ...], stain: Stain, rng: np.random.Generator) -> FloatVolume:
    """Light that reaches each voxel, about 1: it falls off along x, is attenuated along z, and has stripes along x."""
    along = np.linspace(-1, 1, shape[2])
    slope, focus, width = rng.uniform(-0.1, 0.1), rng.uniform(-0.5, 0.5), rng.uniform(2, 6)
    sheet = (1 + slope * along) * np.exp(-(((along - focus) / width) ** 2))
    depth = np.exp(-rng.uniform(0, 0.25) * np.linspace(-0.5, 0.5, shape[0]))
    # shadows begin and end somewhere along the sheet: one pattern of stripes fades into another
    begin, end = (1 + stain.stripes * smooth_noise((*shape[:2], 1), [0.6, 0.9, 1.0], rng) for _ in range(2))
    passed = 1 / (1 + np.exp(-6 * (along - rng.uniform(-0.5, 0.5))))
    stripes = begin * (1 - passed) + end * passed
    return np.asarray(np.maximum(stripes, 0.1) * sheet * depth[:, None, None], dtype=np.float32)


def _camera(grey: FloatVolume, stain: Stain, rng: np.random.Generator) -> NDArray[np.uint16]:
    """Recorded image of expected grey values: photon noise, read noise and offset are added."""
    greys_per_photon = _log_uniform(stain.greys_per_photon, rng)
    photons = rng.poisson(np.maximum(grey, 0) / greys_per_photon).astype(np.float32)
    noise = rng.standard_normal(grey.shape, dtype=np.float32) * np.float32(stain.read_noise)
    recorded = photons * np.float32(greys_per_photon) + noise + np.float32(rng.uniform(220, 340))
    return np.clip(np.rint(recorded), 0, CAMERA_FULL).astype(np.uint16)


def tissue_mask(
    shape_zyx: tuple[int, int, int], outside: float, rng: np.random.Generator, *, whole: bool = False
) -> NDArray[np.bool_]:
    """Mask of the tissue, bool (z, y, x), with the share `outside` of the volume, 0 to below 1, outside it.

    The tissue lies in the middle of the volume if `whole`; otherwise the volume lies on the edge of a larger piece of tissue.
    """
    if not 0 <= outside < 1:
        raise ValueError(f"share of the volume outside the tissue is {outside}: needed is 0 <= outside < 1")
    if outside == 0:
        return np.ones(shape_zyx, dtype=bool)
    axes = np.meshgrid(*(np.linspace(-1, 1, length, dtype=np.float32) for length in shape_zyx), indexing="ij")
    if whole:
        inside = 1 - np.linalg.norm(np.stack(axes), axis=0)
    else:
        normal = rng.normal(size=3)
        normal /= np.linalg.norm(normal)
        inside = np.einsum("a,azyx->zyx", normal.astype(np.float32), np.stack(axes))
    inside = inside + 0.08 * smooth_noise(shape_zyx, [max(length / 6, 2.0) for length in shape_zyx], rng)
    return np.asarray(inside > np.quantile(inside, outside))


def smooth_noise(shape: tuple[int, ...], sigma: list[float], rng: np.random.Generator) -> FloatVolume:
    """Gaussian noise of mean 0 and variance 1 per voxel, correlated over about `sigma` voxels along each axis.

    White noise on a coarse grid is spread by Gaussian weights axis by axis, so that smoother noise is computed faster.
    """
    weights = [_spreading(length, s) for length, s in zip(shape, sigma, strict=True)]
    field = rng.standard_normal(tuple(w.shape[1] for w in weights), dtype=np.float32)
    for w in weights:
        field = np.tensordot(field, w, axes=(0, 1))  # the first axis is spread and becomes the last
    return np.asarray(field, dtype=np.float32)


def _spreading(length: int, sigma: float) -> FloatVolume:
    """Gaussian weights, (length, nodes), of nodes one sigma apart; the squares of each row add up to 1."""
    step = max(sigma, 1.0)
    nodes = np.arange(-2 * step, length + 2 * step + 1, step)
    weights = np.exp(-0.5 * ((np.arange(length)[:, None] - nodes) / max(sigma, 0.3)) ** 2)
    return np.asarray(weights / np.linalg.norm(weights, axis=1, keepdims=True), dtype=np.float32)


def _blur(volume: FloatVolume, sigma: list[float]) -> FloatVolume:
    """The volume convolved with a Gaussian of `sigma` voxels along each axis; the kernel is cut at the borders."""
    for axis, s in enumerate(sigma):
        if s < 2:
            volume = ndimage.gaussian_filter1d(volume, s, axis, mode="nearest", truncate=3)
            continue
        # a wide kernel is faster by way of a coarse grid, with half of its variance on the way there and half back
        half = _spreading(volume.shape[axis], s / np.sqrt(2))
        back = half / (half @ half.sum(axis=0))[:, None]
        coarse = np.tensordot(volume, half, axes=(axis, 0))
        volume = np.ascontiguousarray(np.moveaxis(np.tensordot(coarse, back, axes=(-1, 1)), -1, axis))
    return np.asarray(volume, dtype=np.float32)


def _log_uniform(limits: Range, rng: np.random.Generator) -> float:
    return float(np.exp(rng.uniform(*np.log(limits))))
