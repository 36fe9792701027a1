import numpy as np
import pytest
from batchgenerators.utilities.file_and_folder_operations import load_pickle
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.training.dataloading.nnunet_dataset import comp_blosc2_params
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_selma.errors import SelmaError
from nnunet_selma.nnunet.tile_store import TileStore, check_supported, nonzero_box, write_case
from tests.plans import plans


def stock(images, spacing, content):
    """What nnU-Net's own preprocessing makes of a case, (channel, z, y, x)."""
    manager = PlansManager(content)
    configuration = manager.get_configuration(next(iter(content["configurations"])))
    label = np.zeros((1, *images[0].shape), np.int8)
    label[0, 2:4, 2:4, 2:4] = 1
    description = {"labels": {"background": 0, "tissue": 1}, "channel_names": {str(i): "x" for i in range(len(images))}}
    data, _, _ = DefaultPreprocessor(verbose=False).run_case_npy(
        np.stack(images), label, {"spacing": list(spacing)}, manager, configuration, description
    )
    return data


def tile(rng, shape=(20, 24, 28), *, dtype=np.uint16):
    return (100 + 900 * rng.random(shape)).astype(dtype)


def changed(channels=1, **own):
    content = plans()
    configuration = content["configurations"]["3d_fullres"]
    configuration.update(own)
    configuration["normalization_schemes"] = ["ZScoreNormalization"] * channels
    configuration["use_mask_for_norm"] = [False] * channels
    intensities = content["foreground_intensity_properties_per_channel"]
    content["foreground_intensity_properties_per_channel"] = {str(i): intensities["0"] for i in range(channels)}
    return content


def stored(tmp_path, images, spacing, content):
    write_case(tmp_path / "a", images, spacing, content, "3d_fullres")
    data, label, previous, properties = TileStore(str(tmp_path)).load_case("a")
    assert previous is None
    assert label.shape == (1, *data.shape[1:])
    assert not np.asarray(label).any()
    return data, properties


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("order", [[0, 1, 2], [2, 0, 1]])
def test_a_tile_equals_nnunets_preprocessed_case(tmp_path, rng, channels, order):
    images = [tile(rng) for _ in range(channels)]
    images[0][:3] = images[-1][:3] = 0  # an empty border, which nnU-Net crops away
    content = changed(channels)
    content["transpose_forward"] = order
    data, _ = stored(tmp_path, images, (1.0, 1.0, 1.0), content)
    expected = stock(images, (1.0, 1.0, 1.0), content)
    assert data.shape == expected.shape
    np.testing.assert_allclose(data[(slice(None),) * 4], expected, atol=2e-5)


def test_a_tile_of_another_spacing_is_resampled_as_nnunet_does(tmp_path, rng):
    smooth = np.add.outer(np.add.outer(np.linspace(0, 9000, 20), np.linspace(0, 5000, 24)), np.linspace(500, 9000, 28))
    images = [smooth.astype(np.uint16)]
    content = changed(spacing=[2.0, 1.0, 1.5])
    data, _ = stored(tmp_path, images, (2.0, 2.0, 1.0), content)
    expected = stock(images, (2.0, 2.0, 1.0), content)
    assert data.shape == expected.shape == (1, 20, 48, 19)
    # half a grey value is what rounding to uint16 may cost
    assert np.abs(data[(slice(None),) * 4] - expected).max() <= 0.51 / images[0].std()


def test_a_crop_is_that_of_the_whole(tmp_path, rng):
    data, _ = stored(tmp_path, [tile(rng)], (1.0, 1.0, 1.0), changed())
    whole = data[(slice(None),) * 4]
    crop = data[:, 3:9, 0:5, 20:28]
    assert crop.dtype == np.float32
    np.testing.assert_array_equal(crop, whole[:, 3:9, 0:5, 20:28])


def test_files_are_uint16_in_nnunets_chunks(tmp_path, rng):
    data, properties = stored(tmp_path, [tile(rng, (40, 70, 90))], (1.0, 1.0, 1.0), changed(patch_size=[32, 32, 32]))
    assert data.stored.dtype == np.uint16
    blocks, chunks = comp_blosc2_params((1, 40, 70, 90), [32, 32, 32], 2)
    assert (data.stored.blocks, data.stored.chunks) == (blocks, chunks)
    assert {p.name for p in tmp_path.iterdir()} == {"a.b2nd", "a.pkl"}
    assert load_pickle(str(tmp_path / "a.pkl")) == properties


def test_values_that_uint16_cannot_hold_stay_float(tmp_path, rng):
    image = (tile(rng) / 1000).astype(np.float32)
    data, _ = stored(tmp_path, [image], (1.0, 1.0, 1.0), changed())
    assert data.stored.dtype == np.float32
    np.testing.assert_allclose(data[(slice(None),) * 4], stock([image], (1.0,) * 3, changed()), atol=2e-5)


def test_a_tile_without_contrast_is_zero(tmp_path):
    data, properties = stored(tmp_path, [np.full((8, 8, 8), 700, np.uint16)], (1.0, 1.0, 1.0), changed())
    assert not data[(slice(None),) * 4].any()
    assert properties["mean"] == [700.0]


def test_without_normalisation_values_are_the_files(tmp_path, rng):
    content = changed()
    content["configurations"]["3d_fullres"]["normalization_schemes"] = ["NoNormalization"]
    image = tile(rng)
    np.testing.assert_array_equal(stored(tmp_path, [image], (1.0,) * 3, content)[0][(slice(None),) * 4][0], image)


@pytest.mark.parametrize(("scheme", "masked"), [("CTNormalization", False), ("ZScoreNormalization", True)])
def test_a_normalisation_that_a_crop_cannot_know_is_refused(scheme, masked):
    with pytest.raises(SelmaError, match="--to raw"):
        check_supported({"normalization_schemes": [scheme], "use_mask_for_norm": [masked]})


def test_a_disk_that_is_full_is_an_error_and_leaves_no_case(tmp_path, rng, monkeypatch):
    def full(*_, **__):
        raise RuntimeError("no space")

    monkeypatch.setattr("nnunet_selma.nnunet.tile_store.blosc2.asarray", full)
    with pytest.raises(SelmaError, match="could not be written whole"):
        write_case(tmp_path / "a", [tile(rng)], (1.0, 1.0, 1.0), changed(), "3d_fullres")
    assert not list(tmp_path.glob("*.b2nd"))


def test_the_nonzero_box():
    voxels = np.zeros((2, 5, 6, 7), np.uint16)
    voxels[0, 1, 2, 3] = voxels[1, 3, 2, 6] = 1
    assert nonzero_box(voxels) == (slice(1, 4), slice(2, 3), slice(3, 7))
    assert nonzero_box(np.zeros((1, 2, 2, 2))) == (slice(0, 2),) * 3
