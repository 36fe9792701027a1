"""Blocks of a column share their tiles; sums that overflow are computed again."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nnunet_selma.errors import SelmaError
from nnunet_selma.prediction import Execution, VolumePrediction, predict_volume
from nnunet_selma.prediction.block_prediction import BlockPredictor
from nnunet_selma.running.json_files import read_json
from nnunet_selma.volumes import open_volume
from tests.conftest import write_image
from tests.plans import plans
from tests.prediction.models import stock, texture, write_model


def prediction_of(image, settings, folder, **more):
    return VolumePrediction(
        inputs=(write_image(folder / "brain.nii.gz", image),),
        output=folder / "brain.ome.zarr",
        model=settings,
        tissue_only=False,
        **more,
    )


def labels(settings):
    return open_volume(settings.output / "labels" / "segmentation").read()


def test_blocks_of_a_column_compute_each_tile_once(tmp_path, rng):
    """Nine blocks one behind the other, and one along y and x: as many tiles as nnU-Net computes for the whole."""
    settings = write_model(tmp_path / "model")
    depth = 144
    asked = prediction_of(texture(rng, (depth, 16, 16))[0], settings, tmp_path, block=16)
    result = predict_volume(asked, Execution())
    patch = plans()["configurations"]["3d_fullres"]["patch_size"]
    steps = [
        max(1, -(-(length - edge) // (edge // 2)) + 1) for length, edge in zip((depth, 16, 16), patch, strict=True)
    ]
    assert result.blocks == 9
    assert result.tiles == np.prod(steps)


def scaled(folder, factor):
    """Multiply the logits of a model."""
    path = folder / "fold_0" / "checkpoint_final.pth"
    checkpoint = torch.load(path, weights_only=False)
    for name, weights in checkpoint["network_weights"].items():
        if "seg_layers" in name:
            weights *= factor
    torch.save(checkpoint, path)


def test_sums_that_overflow_in_half_precision_are_computed_again(tmp_path, rng):
    """Logits that are 200,000 times as large give the same labels."""
    image = texture(rng, (48, 32, 32))[0]
    settings = write_model(tmp_path / "model")
    whole = stock(settings, image[None], (1.0, 1.0, 1.0))
    scaled(settings.folder, 200_000.0)
    with pytest.raises(RuntimeError, match="inf"):
        stock(settings, image[None], (1.0, 1.0, 1.0))
    lines = []
    asked = prediction_of(image, settings, tmp_path, block=16)
    result = predict_volume(asked, Execution(), say=lines.append)
    assert np.mean(labels(asked) != whole) < 3e-3  # logits of half precision are ties more often
    assert result.blocks_in_single_precision > 1
    assert any("computed again in single precision" in line for line in lines)
    assert read_json(asked.record)["result"]["blocks in single precision"] == result.blocks_in_single_precision


def test_a_network_that_has_diverged_is_an_error(tmp_path, rng):
    settings = write_model(tmp_path / "model")
    scaled(settings.folder, 1e37)
    image = texture(rng, (20, 20, 20))[0] * 50
    with pytest.raises(SelmaError, match="NaN or infinite"):
        predict_volume(prediction_of(image, settings, tmp_path), Execution())


def test_blocks_depend_on_no_other_block(tmp_path, rng):
    """A share of three, which begins within a column, gives the labels that one process gives."""
    settings = write_model(tmp_path / "model")
    image = texture(rng, (80, 24, 24))[0]
    alone = prediction_of(image, settings, tmp_path, block=16)
    predict_volume(alone, Execution())
    shared = replace(alone, output=tmp_path / "shared.ome.zarr")
    for share in (2, 0, 1):
        predict_volume(shared, Execution(share=(share, 3)))
    assert np.array_equal(labels(alone), labels(shared))


@given(
    start=st.integers(0, 90),
    length=st.integers(0, 200),
    chunk=st.sampled_from([1, 5, 16, 40, 64]),
    flip=st.booleans(),
    crop=st.tuples(st.integers(0, 20), st.integers(300, 330)),
)
def test_planes_are_read_in_pieces_that_begin_with_chunks(start, length, chunk, flip, crop):
    """Otherwise a chunk that reaches into two pieces is decoded twice."""
    predictor = BlockPredictor(run=None, device="cpu")
    grids = SimpleNamespace(
        forward=SimpleNamespace(changes=False), transpose=(0, 1, 2), flips=(flip,) * 3, crop=(slice(*crop),) * 3
    )
    predictor.__dict__.update(_grids=grids, _volumes=[SimpleNamespace(chunk_zyx=(chunk, 8, 8))])
    pieces = predictor._pieces(slice(start, start + length))
    assert [plane for piece in pieces for plane in range(piece.start, piece.stop)] == list(range(start, start + length))
    bounds = [crop[1] - piece.start if flip else crop[0] + piece.start for piece in pieces[1:]]
    assert all(bound % chunk == 0 for bound in bounds)
    assert all(piece.stop - piece.start <= 64 for piece in pieces)
