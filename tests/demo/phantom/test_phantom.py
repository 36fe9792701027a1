"""What `draw` promises: topology, reproducibility, intensities."""

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage
from skimage.measure import euler_number, label

from nnunet_selma.demo.phantom import DRAWN as STRUCTURES
from nnunet_selma.demo.phantom import Phantom, draw

FOREGROUND_SHARE = {
    "blood_vessel": (0.09, 0.22),
    "cfos_neuron": (0.0002, 0.008),
    "cell_nuclei": (0.023, 0.033),
    "AD_plaques": (0.00002, 0.004),
    "microglia": (0.0004, 0.035),
}
"""Annotated patches of SELMA3D and DELiVR, with a little room for small volumes."""


def betti_numbers(mask: NDArray[np.uint8]) -> tuple[int, int, int]:
    """Oracle: scikit-image counts, b1 follows from b0 - b1 + b2 = Euler characteristic."""
    # Outside the volume is background, so that a hole cut by the border is open.
    padded = np.pad(mask > 0, 1)
    b0 = int(label(padded, connectivity=3).max())
    b2 = int(label(~padded, connectivity=1).max()) - 1
    return b0, b0 + b2 - int(euler_number(padded, connectivity=3)), b2


def test_oracle_on_a_ring_a_shell_and_a_corner_contact() -> None:
    volume = np.zeros((5, 5, 16), dtype=np.uint8)
    volume[2, 1:4, 1:4] = 1
    volume[2, 2, 2] = 0
    volume[1:4, 1:4, 6:9] = 1
    volume[2, 2, 7] = 0
    volume[1, 1, 11] = volume[2, 2, 12] = 1
    assert betti_numbers(volume) == (3, 1, 1)


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize(
    ("shape", "seed"), [((32, 32, 32), 0), ((48, 40, 56), 1), ((50, 120, 120), 2), ((100,) * 3, 3)]
)
def test_betti_numbers_are_those_of_the_label(structure: str, shape: tuple[int, int, int], seed: int) -> None:
    phantom = draw(structure, shape, np.random.default_rng(seed))
    assert phantom.betti == betti_numbers(phantom.label)
    assert phantom.betti[0] > 0


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("whole", [False, True])
def test_betti_numbers_hold_where_the_tissue_ends(structure: str, whole: bool) -> None:
    phantom = draw(structure, (60, 70, 64), np.random.default_rng(5), outside=0.5, whole=whole)
    assert phantom.betti == betti_numbers(phantom.label)
    assert not phantom.label[~phantom.tissue].any()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("loops", [0, 1, 7])
def test_vessels_have_the_loops_asked_for(loops: int, seed: int) -> None:
    phantom = draw("blood_vessel", (64, 64, 64), np.random.default_rng(seed), loops=loops)
    assert phantom.betti[1] == loops
    assert phantom.betti == betti_numbers(phantom.label)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_arrays_are_what_the_docstring_says(structure: str) -> None:
    phantom = draw(structure, (40, 50, 60), np.random.default_rng(0))
    assert phantom.image.shape == phantom.label.shape == phantom.tissue.shape == (40, 50, 60)
    assert (phantom.image.dtype, phantom.label.dtype) == (np.uint16, np.uint8)
    assert set(np.unique(phantom.label)) == {0, 1}
    assert (phantom.second_channel is not None) == (structure == "blood_vessel")


@pytest.mark.parametrize("structure", STRUCTURES)
def test_the_seed_decides(structure: str) -> None:
    first, again, other = (draw(structure, (32, 40, 36), np.random.default_rng(seed)) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first.image, again.image)
    np.testing.assert_array_equal(first.label, again.label)
    assert first.betti == again.betti
    assert (first.image != other.image).any()
    assert (first.label != other.label).any()


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("seed", range(3))
def test_share_of_foreground_is_realistic(structure: str, seed: int) -> None:
    share = draw(structure, (64, 96, 96), np.random.default_rng(seed)).label.mean()
    low, high = FOREGROUND_SHARE[structure]
    assert low <= share <= high


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("seed", range(2))
def test_objects_are_brighter_than_their_surroundings(structure: str, seed: int) -> None:
    phantom = draw(structure, (64, 80, 80), np.random.default_rng(seed))
    mask = phantom.label > 0
    ring = ndimage.binary_dilation(mask, iterations=5) & ~ndimage.binary_dilation(mask, iterations=2)
    for image in (phantom.image, phantom.second_channel):
        if image is not None:
            assert image[mask].mean() > 1.05 * image[ring].mean()


def test_no_threshold_finds_the_structure() -> None:
    """The best threshold of a volume must miss or invent something: real volumes cannot be thresholded either."""
    for structure in STRUCTURES:
        phantom = draw(structure, (64, 80, 80), np.random.default_rng(1))
        mask = phantom.label > 0
        grid = np.unique(np.percentile(phantom.image[mask], np.arange(1, 100)))
        dice = [2 * (mask & (phantom.image >= t)).sum() / (mask.sum() + (phantom.image >= t).sum()) for t in grid]
        assert max(dice) < 0.93, structure


def test_camera_saturates_for_some_seeds() -> None:
    greatest = [draw("cell_nuclei", (64, 96, 96), np.random.default_rng(seed)).image.max() for seed in range(8)]
    assert max(greatest) == 65535
    assert min(greatest) < 65535


def test_evans_blue_shows_the_major_vessels() -> None:
    """Thick vessels gain on thin ones when the stain changes from wheat germ agglutinin to Evans blue."""
    phantom = draw("blood_vessel", (64, 100, 100), np.random.default_rng(0))
    assert phantom.second_channel is not None
    inner = ndimage.distance_transform_edt(phantom.label)
    thick, thin = inner >= 4, (phantom.label > 0) & (ndimage.grey_dilation(inner, size=7) < 2.5)
    gain = [image[thick].mean() / image[thin].mean() for image in (phantom.image, phantom.second_channel)]
    assert gain[1] > 1.2 * gain[0]


@pytest.mark.parametrize("whole", [False, True])
def test_outside_the_tissue_is_only_the_camera(whole: bool) -> None:
    phantom = draw("cfos_neuron", (60, 60, 60), np.random.default_rng(2), outside=0.4, whole=whole)
    assert (~phantom.tissue).mean() == pytest.approx(0.4, abs=0.01)
    far = ~ndimage.binary_dilation(phantom.tissue, iterations=8)
    deep = ndimage.binary_erosion(phantom.tissue, iterations=4)
    assert far.any()
    assert np.median(phantom.image[far]) < 400 < np.median(phantom.image[deep]) / 3
    corners = phantom.tissue[::59, ::59, ::59]
    assert corners.any() != whole


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"structure": "neurons"}, "no phantom of structure 'neurons': choose one of blood_vessel, cfos_neuron"),
        ({"outside": 1.0}, "outside"),
        ({"shape_zyx": (0, 4, 4)}, "three positive lengths"),
        ({"loops": 3}, "cell_nuclei has no loops"),
    ],
)
def test_impossible_wishes_are_refused(arguments: dict[str, object], sentence: str) -> None:
    wishes = {"structure": "cell_nuclei", "shape_zyx": (16, 16, 16), "rng": np.random.default_rng(0), **arguments}
    with pytest.raises(ValueError, match=sentence):
        draw(**wishes)  # type: ignore[arg-type]


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 40, 2), (8, 8, 8)])
def test_tiny_volumes_keep_the_promise(structure: str, shape: tuple[int, int, int]) -> None:
    phantom: Phantom = draw(structure, shape, np.random.default_rng(0))
    assert phantom.betti == betti_numbers(phantom.label)
