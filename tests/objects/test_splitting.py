"""Touching objects split in blocks against the whole volume in scikit-image, and counts against those that were drawn."""

import json
from types import SimpleNamespace

import cc3d
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import distance_transform_edt
from skimage.measure import regionprops
from skimage.morphology import h_maxima
from skimage.segmentation import watershed

from nnunet_selma import objects
from nnunet_selma.demo.phantom.shapes import irregular_ellipsoid
from nnunet_selma.errors import SelmaError
from nnunet_selma.morphology.blocks import blocks, reader
from nnunet_selma.morphology.components import label
from nnunet_selma.objects import ObjectSettings, measure_objects, reading, splitting
from nnunet_selma.objects.measuring import find_objects
from nnunet_selma.objects.splitting import Splitting, split_touching
from nnunet_selma.objects.table_files import read_table
from nnunet_selma.volumes import open_volume
from tests.morphology.bodies import balls, split_whole
from tests.morphology.masks import edges
from tests.objects.volumes import SPACING, write_image, write_ome_zarr, write_slices


def in_blocks(values, edge, raw=None, *, neck=0.85, connectivity=26, spacing=SPACING, probability=None):
    """Objects of an array, found and split in blocks, and the image of their numbers."""
    sources = SimpleNamespace(
        labels=SimpleNamespace(shape=values.shape, path="labels"),
        edge=edge,
        read_labels=reader(values),
        read_raw=None if raw is None else reader(raw),
    )
    components, rows = find_objects(sources, connectivity)
    rule = Splitting(
        neck=neck,
        connectivity=connectivity,
        spacing_um_zyx=spacing,
        probability=None if probability is None else lambda block, _: probability[block.box][block.core],
    )
    touching = split_touching(sources, components, rows, rule, keep_shapes=True)
    numbers = np.arange(1, len(touching.objects) + 1)
    image, ids, offset = np.zeros(values.shape, np.int64), numbers[touching.first[rows]], 0
    draw = touching.drawing(numbers)
    for block in blocks(values.shape, edge):
        labels, n = label(values[block.box], connectivity)
        core = np.concatenate([[0], ids[offset : offset + n]])[labels[block.core]]
        draw(block, core)
        image[tuple(slice(a, b) for a, b in zip(block.start, block.stop, strict=True))] = core
        offset += n
    return touching, image


def in_whole(values, *, neck=0.85, connectivity=26, spacing=SPACING, probability=None):
    """Numbers of the objects, split class by class in the whole array, in the order of the table."""
    bodies = np.zeros(values.shape, np.int64)
    for value in np.unique(values[values > 0]):
        part = split_whole(values == value, spacing, neck, connectivity, probability)
        bodies += np.where(part > 0, part + bodies.max(), 0)
    components = cc3d.connected_components(values, connectivity=connectivity)
    first = {int(n): i for i, n in reversed(list(enumerate(components.ravel())))}
    objects = {int(n): i for i, n in reversed(list(enumerate(bodies.ravel())))}
    order = sorted(set(objects) - {0}, key=lambda n: (first[int(components.flat[objects[n]])], objects[n]))
    place = np.zeros(int(bodies.max()) + 1, np.int64)
    place[order] = np.arange(1, len(order) + 1)
    return place[bodies]


def touching_labels(rng, shape):
    return np.where(balls(rng, shape), np.where(balls(rng, shape), 2, 1), 0).astype(np.uint8)


def check_equal(values, edge, raw, **rule):
    """Every column, and the number of every voxel, are those of the whole."""
    touching, image = in_blocks(values, edge, raw, **rule)
    whole = in_whole(values, **rule)
    np.testing.assert_array_equal(image, whole)
    expected = regionprops(whole, raw)
    split = touching.objects
    assert len(split) == len(expected)
    assert split.voxels.tolist() == [region.area for region in expected]
    assert split.label.tolist() == [values[tuple(region.coords[0])] for region in expected]
    np.testing.assert_allclose(split.centroid, np.reshape([r.centroid for r in expected], (-1, 3)), rtol=1e-12)
    boxes = np.hstack([split.start, split.stop])
    np.testing.assert_array_equal(boxes, np.reshape([region.bbox for region in expected], (-1, 6)))
    np.testing.assert_allclose(split.mean_intensity, [region.intensity_mean for region in expected], rtol=1e-12)
    assert split.max_intensity.tolist() == [region.intensity_max for region in expected]
    return touching


@given(
    seed=st.integers(0, 2**32 - 1),
    shape=st.tuples(*[st.integers(2, 20)] * 3),
    edge=edges,
    connectivity=st.sampled_from([6, 26]),
    spacing=st.sampled_from([None, SPACING]),
    probable=st.booleans(),
)
def test_every_shape_of_blocks_gives_the_objects_of_the_whole(seed, shape, edge, connectivity, spacing, probable):
    rng = np.random.default_rng(seed)
    values = touching_labels(rng, shape)
    raw = rng.integers(0, 65535, shape, dtype=np.uint16, endpoint=True)
    probability = rng.integers(100, 255, shape, np.uint8) if probable else None
    rule = {"connectivity": connectivity, "spacing": spacing or (1.0, 1.0, 1.0), "probability": probability}
    check_equal(values, edge, raw, **rule)


@pytest.mark.parametrize("edge", [(40, 60, 60), (16, 16, 16), (7, 60, 13), (1, 64, 64)])
def test_many_touching_objects(edge, rng):
    values = touching_labels(rng, (40, 60, 60))
    touching = check_equal(values, edge, rng.integers(0, 65535, values.shape, dtype=np.uint16))
    summary = touching.summary()
    assert summary["components"] == cc3d.connected_components(values).max()
    assert summary["objects"] == len(touching.objects) > summary["components"] + 50
    assert summary["components_split"] == (np.bincount(touching.component) > 1).sum() > 5
    assert summary["components_left_whole"] == 0


def test_components_in_large_boxes_are_left_whole(rng, monkeypatch):
    values = touching_labels(rng, (40, 60, 60))
    everything = in_blocks(values, (16, 16, 16))[0]
    monkeypatch.setattr(splitting, "MOST_VOXELS", 5000)
    some = in_blocks(values, (16, 16, 16))[0]
    sizes = np.bincount(everything.component), np.bincount(some.component)
    components = regionprops(cc3d.connected_components(values))
    assert some.summary()["components_left_whole"] == sum(region.area_bbox > 5000 for region in components) > 0
    assert (sizes[1][sizes[1] > 1] == sizes[0][sizes[1] > 1]).all()
    assert 0 < some.summary()["components_split"] < everything.summary()["components_split"]


@pytest.fixture
def small_blocks(monkeypatch):
    """Several blocks of small volumes."""
    monkeypatch.setattr(reading, "BLOCK_VOXELS", 16**3)
    monkeypatch.setattr(reading, "SLAB_BYTES", 17 * 40 * 50)


@pytest.mark.usefixtures("small_blocks")
def test_table_instances_and_summary_have_the_split_objects(tmp_path, rng):
    values = touching_labels(rng, (30, 40, 50))
    brain = write_ome_zarr(
        tmp_path / "brain.ome.zarr", rng.integers(0, 999, values.shape, dtype=np.uint16), cells=values
    )
    instances = tmp_path / "numbers.ome.zarr"
    options = {"labels": brain, "instances": instances, "split_touching": True, "min_voxels": 5}
    summary = measure_objects(ObjectSettings(output=tmp_path / "a.csv", **options))
    whole = in_whole(values)
    kept = np.bincount(whole.ravel())[1:] >= 5
    image = np.concatenate([[0], np.cumsum(kept) * kept])[whole]
    np.testing.assert_array_equal(open_volume(instances).read(), image)
    table = read_table(tmp_path / "a.csv", ["voxels", "component"])
    assert table["voxels"].tolist() == np.bincount(image.ravel())[1:].tolist()
    firsts = [int(np.flatnonzero(image == number)[0]) for number in range(1, image.max() + 1)]
    assert len(np.unique(table["component"])) == len(np.unique(cc3d.connected_components(values).ravel()[firsts]))
    assert summary["objects"] == kept.sum() == len(kept) - summary["left_out_by_size"] < len(kept)
    assert summary["touching"]["objects"] == len(kept)
    assert summary["touching"]["components"] == cc3d.connected_components(values).max()
    components, split = (summary["touching"][name] for name in ("components", "components_split"))
    sentence = (
        f"touching objects: {components} components before, {len(kept)} objects after; {split} components were split"
    )
    assert sentence in objects.summary.sentences(summary)


@pytest.mark.usefixtures("small_blocks")
def test_without_a_voxel_size_and_with_large_components_the_summary_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(objects, "MOST_VOXELS", 20)
    monkeypatch.setattr(splitting, "MOST_VOXELS", 20)
    folder = write_slices(tmp_path / "labels", np.ones((3, 4, 5), np.uint8))
    summary = measure_objects(ObjectSettings(labels=folder, output=tmp_path / "a.csv", split_touching=True))
    assert summary["touching"]["components_left_whole"] == 1
    assert "as if voxels were cubes" in summary["notes"][1]
    assert "1 component was left whole, because a box of more than 20 voxels" in summary["notes"][2]
    assert "; 1 left whole" in objects.summary.sentences(summary)[1]


def test_probabilities_part_what_has_no_neck(tmp_path):
    values = np.zeros((7, 9, 34), np.uint8)
    values[1:6, 2:7, 2:15], values[1:6, 2:7, 18:31] = 1, 2
    probability = np.full((2, *values.shape), 255, np.uint8)
    probability[1, :, :, 24] = 60  # a dip for the second class
    probability[0, :, :, 24] = probability[1, :, :, 8] = 0  # classes that these voxels do not have
    labels = write_image(
        tmp_path / "labels.ome.zarr", values, label_colours={v: (f"class {v}", (255, 0, 0, 255)) for v in (1, 2)}
    )
    there = write_image(tmp_path / "p.ome.zarr", probability, channels=("class 1", "class 2"))
    settings = {"labels": labels, "output": tmp_path / "a.csv", "split_touching": True}
    assert measure_objects(ObjectSettings(**settings))["objects"] == 2
    summary = measure_objects(ObjectSettings(**settings, probabilities=there))
    assert [each["objects"] for each in summary["classes"]] == [1, 2]
    assert summary["probabilities"] == str(there)


def labels_and_probabilities(tmp_path, channels, names=("cell", "nucleus")):
    """A bar of label 1, whose own probability has a dip; the channel of the other class has none."""
    values = np.zeros((7, 9, 34), np.uint8)
    values[1:6, 2:7, 2:30], values[0, 0, 0] = 1, 2
    probability = np.full((2, *values.shape), 255, np.uint8)
    probability[channels.index("cell") if "cell" in channels else 0, :, :, 16] = 60
    colours = {v: (name, (255, 0, 0, 255)) for v, name in enumerate(names, 1)}
    labels = write_image(tmp_path / "labels.ome.zarr", values, label_colours=colours)
    there = write_image(tmp_path / "p.ome.zarr", probability, channels=channels)
    return {"labels": labels, "probabilities": there, "output": tmp_path / "a.csv", "split_touching": True}


@pytest.mark.parametrize("channels", [("cell", "nucleus"), ("nucleus", "cell")])
def test_channels_are_those_of_the_class_names(channels, tmp_path):
    """A model of regions with the order (2, 1) writes the channel of label 2 first."""
    summary = measure_objects(ObjectSettings(**labels_and_probabilities(tmp_path, channels)))
    assert [each["objects"] for each in summary["classes"]] == [2, 1]


def test_channels_of_other_names_are_refused(tmp_path):
    settings = ObjectSettings(**labels_and_probabilities(tmp_path, ("vessel", "nucleus")))
    with pytest.raises(SelmaError, match="has the channels vessel, nucleus, and the labels the classes cell, nucleus"):
        measure_objects(settings)


def test_labels_without_names_leave_a_doubt(tmp_path):
    settings = labels_and_probabilities(tmp_path, ("cell", "nucleus"), names=())
    with pytest.raises(SelmaError, match="does not name its classes"):
        measure_objects(ObjectSettings(**settings))


@pytest.mark.parametrize(("order", "fits"), [((1, 2), True), ((2, 1), False)])
def test_channels_without_names_are_in_the_order_of_labels(order, fits, tmp_path):
    settings = labels_and_probabilities(tmp_path, ("cell", "nucleus"))
    change_metadata(settings["probabilities"], lambda ome: ome.pop("omero"))
    change_metadata(
        settings["labels"],
        lambda ome: ome["image-label"]["properties"].sort(key=lambda each: order.index(each["label-value"])),
    )
    if fits:
        assert [each["objects"] for each in measure_objects(ObjectSettings(**settings))["classes"]] == [2, 1]
        return
    with pytest.raises(SelmaError, match="does not name its channels"):
        measure_objects(ObjectSettings(**settings))


def change_metadata(path, change):
    content = json.loads((path / "zarr.json").read_text())
    change(content["attributes"]["ome"])
    (path / "zarr.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"neck": 0.5}, "--neck is for objects that touch: add --split-touching"),
        ({"probabilities": "p"}, "--probabilities is for objects that touch: add --split-touching"),
        ({"neck": 0.0, "split_touching": True}, "--neck is a share above 0 and up to 1"),
        ({"neck": 1.5, "split_touching": True}, "--neck is a share above 0 and up to 1"),
    ],
)
def test_options_that_do_not_fit(options, sentence, tmp_path):
    with pytest.raises(SelmaError, match=sentence):
        ObjectSettings(labels=tmp_path, output=tmp_path / "a.csv", **options)


@pytest.mark.parametrize(
    ("voxels", "channels", "sentence"),
    [
        (np.zeros((1, 4, 5, 6), np.uint8), ("class 1",), "has 1 channel, and the labels 2 classes"),
        (np.zeros((2, 4, 5, 7), np.uint8), ("a", "b"), r"has 4 × 5 × 7 voxels \(z, y, x\), the labels 4 × 5 × 6"),
        (np.zeros((2, 4, 5, 6), np.uint16), ("a", "b"), "holds uint16, and probabilities are uint8"),
    ],
)
def test_probabilities_of_something_else(voxels, channels, sentence, tmp_path):
    colours = {v: (f"class {v}", (255, 0, 0, 255)) for v in (1, 2)}
    labels = write_image(tmp_path / "labels.ome.zarr", np.ones((4, 5, 6), np.uint8), label_colours=colours)
    there = write_image(tmp_path / "p.ome.zarr", voxels, channels=channels)
    settings = ObjectSettings(labels=labels, output=tmp_path / "a.csv", split_touching=True, probabilities=there)
    with pytest.raises(SelmaError, match=sentence):
        measure_objects(settings)
    assert not settings.output.exists()


def touching_nuclei(rng, spacing, radius_um, closest, shape_um=110.0):
    """Numbers of uneven ellipsoids of nuclei, three in five of which touch an earlier one; centres are at least a share of both radii apart."""
    shape = tuple(int(shape_um / edge) for edge in spacing)
    numbers, depth = np.zeros(shape, np.int64), np.full(shape, np.inf)
    centres, radii = np.zeros((0, 3)), np.zeros(0)
    for _ in range(4000):
        radius, centre = radius_um * np.exp(rng.normal(0, 0.15)), rng.uniform(0, shape_um, 3)
        if len(radii) and rng.random() < 0.6:
            near, heading = rng.integers(len(radii)), rng.normal(size=3)
            reach = (radii[near] + radius) * rng.uniform(closest, 1.1)
            centre = centres[near] + heading / np.linalg.norm(heading) * reach
        inside = (centre > radius_um).all() and (centre < shape_um - radius_um).all()
        if not inside or (np.linalg.norm(centres - centre, axis=1) < closest * (radii + radius)).any():
            continue
        at = irregular_ellipsoid(centre / spacing, radius * np.exp(rng.normal(0, 0.08, 3)) / spacing, rng)
        at = at[((at >= 0) & (at < shape)).all(axis=1)]
        distance = np.linalg.norm(at * spacing - centre, axis=1) / radius
        nearer = distance < depth[tuple(at.T)]
        centres, radii = np.vstack([centres, centre]), np.append(radii, radius)
        depth[tuple(at[nearer].T)], numbers[tuple(at[nearer].T)] = distance[nearer], len(radii)
        if len(radii) == 150:
            break
    return numbers


NUCLEI = [
    ((1.0, 1.0, 1.0), 6.0, 0.02),
    ((3.0, 1.0, 1.0), 6.0, 0.05),
    ((4.0, 2.0, 2.0), 8.0, 0.11),
    ((5.0, 1.6, 1.6), 8.0, 0.2),
]
"""Voxel size and radius, µm, and the error of the count: the fewer voxels across a nucleus, the larger."""


@pytest.mark.parametrize(("spacing", "radius", "error"), NUCLEI)
def test_touching_nuclei_are_counted(spacing, radius, error):
    """Nearly as many as were drawn, where components are less than a third; docs/whole-brains.md has more counts."""
    numbers = touching_nuclei(np.random.default_rng(7), np.array(spacing), radius, closest=0.85)
    truth, values = len(np.unique(numbers)) - 1, (numbers > 0).astype(np.uint8)
    summary = in_blocks(values, (32, 32, 32), spacing=spacing)[0].summary()
    assert summary["components"] < 0.3 * truth
    assert abs(summary["objects"] - truth) <= error * truth


STUDY = {
    ((1.0, 1.0, 1.0), 6.0): {0.7: (91, 384, 430), 0.85: (112, 441, 490), 1.0: (167, 449, 511)},
    ((3.0, 1.0, 1.0), 6.0): {0.7: (75, 370, 404), 0.85: (89, 431, 460), 1.0: (124, 449, 481)},
    ((4.0, 2.0, 2.0), 8.0): {0.7: (10, 308, 329), 0.85: (24, 403, 413), 1.0: (35, 434, 447)},
    ((5.0, 1.6, 1.6), 8.0): {0.7: (10, 286, 313), 0.85: (23, 386, 412), 1.0: (35, 438, 452)},
}
"""For 450 nuclei: components, objects after splitting, and basins of h-maxima of a tenth of the radius; docs/whole-brains.md shows them."""


@pytest.mark.slow
@pytest.mark.parametrize(("spacing", "radius"), STUDY)
@pytest.mark.parametrize("closest", [0.7, 0.85, 1.0])
def test_counts_are_those_of_the_documentation(spacing, radius, closest):
    counts = np.zeros(3, np.int64)
    for seed in (1, 2, 3):
        numbers = touching_nuclei(np.random.default_rng(seed), np.array(spacing), radius, closest)
        assert len(np.unique(numbers)) == 151
        summary = in_blocks((numbers > 0).astype(np.uint8), (32, 32, 32), spacing=spacing)[0].summary()
        distance = distance_transform_edt(numbers > 0, spacing)
        maxima = cc3d.connected_components(h_maxima(distance, 0.1 * radius))
        basins = watershed(-distance, maxima, mask=numbers > 0)
        counts += summary["components"], summary["objects"], basins.max()
    assert counts[:2].tolist() == list(STUDY[spacing, radius][closest][:2])
    assert abs(counts[2] - STUDY[spacing, radius][closest][2]) <= 5  # versions of scikit-image differ


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (3.0, 1.0, 1.0)])
def test_single_uneven_nuclei_stay_whole(spacing):
    values = np.zeros((120, 120, 120), np.uint8)
    rng, drawn = np.random.default_rng(3), 0
    for centre in np.stack(np.meshgrid(*[np.arange(12, 110, 20)] * 3), axis=-1).reshape(-1, 3):
        at = irregular_ellipsoid(centre.astype(float), 6 * rng.uniform(0.8, 1.25, 3) / spacing, rng)
        values[tuple(at.T)], drawn = 1, drawn + 1
    summary = in_blocks(values, (64, 64, 64), spacing=spacing)[0].summary()
    assert summary["components"] == drawn
    assert summary["objects"] < 1.02 * drawn


@pytest.mark.slow
@pytest.mark.parametrize(("spacing", "expected"), [((1.0, 1.0, 1.0), 264), ((5.0, 0.54, 0.54), 289)])
def test_real_nuclei_are_split_as_in_the_whole(real_data, spacing, expected):
    (labels,) = (real_data / "selma3d_crops").rglob("shannel_cells/gt/*.nii.gz")
    values = open_volume(labels).read().astype(np.uint8)
    touching = check_equal(values, (32, 40, 24), values, spacing=spacing)
    assert touching.summary()["components"] == 242
    assert touching.summary()["objects"] == expected
