"""Components split alone against a watershed of the whole array with scikit-image."""

import cc3d
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import find_objects

from nnunet_selma.morphology.watershed import split_component
from tests.morphology.bodies import ball, balls, split_whole

SPACING = (4.0, 1.5, 2.0)


def boxed(mask, connectivity=26):
    """Each component in its box with one layer around it, and the place of that box."""
    numbers = cc3d.connected_components(mask, connectivity=connectivity)
    for number, box in enumerate(find_objects(numbers), 1):
        wide = tuple(slice(max(s.start - 1, 0), min(s.stop + 1, n)) for s, n in zip(box, mask.shape, strict=True))
        yield wide, numbers[wide] == number


@given(
    seed=st.integers(0, 2**32 - 1),
    shape=st.tuples(*[st.integers(1, 20)] * 3),
    spacing=st.sampled_from([(1.0, 1.0, 1.0), SPACING, (0.3, 0.1, 0.7)]),
    connectivity=st.sampled_from([6, 26]),
    neck=st.sampled_from([0.6, 0.85, 1.0]),
    probable=st.booleans(),
)
def test_components_alone_are_split_as_in_the_whole(seed, shape, spacing, connectivity, neck, probable):
    rng = np.random.default_rng(seed)
    mask = balls(rng, shape) | (rng.random(shape) < 0.03)
    probability = rng.integers(0, 255, shape, np.uint8, endpoint=True) if probable else None
    whole = split_whole(mask, spacing, neck, connectivity, probability)
    for box, component in boxed(mask, connectivity):
        bodies, n = split_component(
            component,
            spacing,
            neck=neck,
            connectivity=connectivity,
            probability=None if probability is None else probability[box],
        )
        values, first = np.unique(bodies[component], return_index=True)
        assert values.tolist() == list(range(1, n + 1))
        assert (np.diff(first) > 0).all()  # numbers in raster order
        assert not bodies[~component].any()
        assert len(set(zip(bodies[component].tolist(), whole[box][component].tolist(), strict=True))) == n
        assert len(np.unique(whole[box][component])) == n


@pytest.mark.parametrize(("distance", "expected"), [(6, 1), (11, 2), (13, 2)])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_two_balls_are_parted_at_a_neck(distance, expected, axis):
    """Balls of radius 7 µm: at 6 µm the neck is 90 % of the radius, at 11 µm 62 %."""
    spacing = (2.0, 1.0, 1.0)
    centres = [np.full(3, 18.0), np.full(3, 18.0)]
    centres[1][axis] += distance
    mask = np.any([ball((20, 40, 40), centre, 7, spacing) for centre in centres], axis=0)
    bodies, n = split_component(mask, spacing)
    assert n == expected
    if n == 2:
        for centre in centres:
            mine = bodies[tuple(np.rint(np.divide(centre, spacing)).astype(int))]
            there = ball(mask.shape, centre, 7, spacing)
            assert np.count_nonzero(there & (bodies == mine)) > 0.9 * np.count_nonzero(bodies == mine)


def test_the_share_has_no_unit():
    mask = balls(np.random.default_rng(5), (30, 40, 50))
    component = max((component for _, component in boxed(mask)), key=np.count_nonzero)
    for scale in (1e-3, 8.0):
        expected = split_component(component, SPACING)
        scaled = split_component(component, tuple(scale * edge for edge in SPACING))
        np.testing.assert_array_equal(scaled[0], expected[0])


def test_a_dip_of_probability_parts_what_has_no_neck():
    component = np.pad(np.ones((5, 5, 15), bool), 1)
    probability = np.full(component.shape, 255, np.uint8)
    assert split_component(component, (1, 1, 1), probability=probability)[1] == 1
    probability[:, :, 8] = 100
    bodies, n = split_component(component, (1, 1, 1), probability=probability)
    assert n == 2
    assert set(np.unique(bodies[:, :, 1:7])) == {0, 1}
    assert split_component(component, (1, 1, 1), probability=probability, neck=0.3)[1] == 1
    assert split_component(component, (1, 1, 1), probability=np.zeros_like(probability))[1] == 1


@pytest.mark.parametrize("component", [np.ones((3, 4, 5), bool), np.pad(np.ones((1, 1, 1), bool), 1)])
def test_nothing_to_split(component):
    bodies, n = split_component(component, SPACING)
    assert n == 1
    np.testing.assert_array_equal(bodies, component)
