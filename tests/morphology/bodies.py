"""Touching bodies, and their watershed in the whole array: scipy's distances, scikit-image's maxima and basins, and basins joined by definition."""

import cc3d
import numpy as np
from scipy.ndimage import distance_transform_edt, generate_binary_structure
from scipy.ndimage import label as scipy_label
from skimage.morphology import local_maxima
from skimage.segmentation import watershed


def ball(shape, centre_um, radius_um, spacing=(1.0, 1.0, 1.0)):
    """True within a ball."""
    squares = ((axis * s - c) ** 2 for axis, s, c in zip(np.indices(shape), spacing, centre_um, strict=True))
    return sum(squares) <= radius_um**2


def balls(rng, shape, radius=(2.0, 4.5), density=1 / 300):
    """Balls at random places, many of which touch each other and the border."""
    mask = np.zeros(shape, bool)
    for _ in range(1 + int(density * np.prod(shape))):
        mask |= ball(shape, rng.uniform(0, shape), rng.uniform(*radius))
    return mask


def split_whole(mask, spacing, neck, connectivity=26, probability=None):
    """Numbers of bodies, split in the whole array; 0 outside."""
    components = cc3d.connected_components(mask, connectivity=connectivity)
    if mask.all():
        return components
    rank = 3 if connectivity == 26 else 1
    height = distance_transform_edt(mask, spacing) * (256 / min(spacing))
    if probability is not None:
        height = height * (np.maximum(probability, 1) / 255)
    height = np.rint(height).astype(int)
    seeds, _ = scipy_label(local_maxima(height, connectivity=rank) & mask, generate_binary_structure(3, rank))
    depth = np.where(seeds > 0, -height - 0.5 + np.arange(mask.size).reshape(mask.shape) / (4 * mask.size), -height)
    basins = watershed(depth, seeds, mask=mask, connectivity=rank)  # equal seeds grow in raster order
    summit = {int(number): height[basins == number].max() for number in np.unique(basins[basins > 0])}
    passes = sorted((-level, pair) for pair, level in neighbours(basins, height, rank).items())
    joined = {number: {number} for number in summit}  # each basin to all that it is joined with

    def joins(level, pair):
        first, second = (max(summit[i] for i in joined[number]) for number in pair)
        return joined[pair[0]] is not joined[pair[1]] and -level > neck * min(first, second)

    while pair := next((pair for level, pair in passes if joins(level, pair)), None):
        both = joined[pair[0]] | joined[pair[1]]
        joined |= dict.fromkeys(both, both)
    for number, together in joined.items():
        basins[basins == number] = min(together)
    return basins


def neighbours(basins, height, rank):
    """Each pair of touching basins and the height of the highest pass between them."""
    passes = {}
    padded, high = np.pad(basins, 1), np.pad(height, 1)
    for step in np.argwhere(generate_binary_structure(3, rank)) - 1:
        shifted = np.roll(padded, step, (0, 1, 2))
        level = np.minimum(high, np.roll(high, step, (0, 1, 2)))
        for at in np.argwhere((padded > 0) & (shifted > padded)):
            pair = int(padded[tuple(at)]), int(shifted[tuple(at)])
            passes[pair] = max(passes.get(pair, 0), int(level[tuple(at)]))
    return passes
