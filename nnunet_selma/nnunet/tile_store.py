"""Tile store: preprocessed, unlabelled tiles in uint16, which nnU-Net's training reads; crops are normalised when they are read.

nnU-Net's preprocessed cases are float32 and normalised, with a label of the same size. A tile store keeps the measured intensities, two bytes
a voxel before compression, the mean and standard deviation of the case in its properties, and no label. The files of a case are:

- `<case>.b2nd`: blosc2, (channel, z, y, x), chunks and blocks for crops of the plan's patch size as nnU-Net computes them;
- `<case>.pkl`: the properties, with nnU-Net's keys.

Cropping to the non-zero box, transposing, normalisation and resampling follow nnU-Net's `DefaultPreprocessor`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import blosc2
import numpy as np
from batchgenerators.utilities.file_and_folder_operations import load_pickle, write_pickle
from nnunetv2.training.dataloading.nnunet_dataset import comp_blosc2_params, nnUNetDatasetBlosc2
from numpy.typing import NDArray

from nnunet_selma.errors import SelmaError
from nnunet_selma.running.whole_files import whole_file
from nnunet_selma.structures import SpacingUm
from nnunet_selma.volumes.base import Array
from nnunet_selma.volumes.moments import Moments

_COMPRESSION = {"codec": blosc2.Codec.ZSTD, "clevel": 1, "filters": [blosc2.Filter.SHUFFLE], "nthreads": 1}
_SCHEMES = {"ZScoreNormalization": True, "NoNormalization": False}
_LEAST_DEVIATION = 1e-8  # nnU-Net's


def check_supported(configuration: Mapping[str, Any]) -> None:
    """Raise `SelmaError` unless the configuration's normalisation can be done on a crop."""
    for scheme, masked in zip(configuration["normalization_schemes"], configuration["use_mask_for_norm"], strict=True):
        if scheme not in _SCHEMES or masked:
            raise SelmaError(
                f"the plans normalise with {scheme}{' within a mask' if masked else ''}, which a tile store cannot do on single crops; "
                "write the volumes with nnunet-selma convert unannotated --to raw, which makes labels of the tissue, and run nnunet-selma plan-pretraining"
            )


def write_case(
    path: Path, images: Sequence[Array], spacing_zyx: SpacingUm, plans: Mapping[str, Any], configuration: str
) -> dict[str, Any]:
    """Write one case; returns its properties.

    Args:
        path: path of the case's files, without their ending; the `.b2nd` file is written last.
        images: one array a channel, (z, y, x), uint16, or float32 if uint16 cannot hold the values.
        spacing_zyx: voxel size, in the unit of the plans.
        plans: nnU-Net's plans.
        configuration: the configuration with patch size, spacing and normalisation.

    Raises:
        SelmaError: the disk is full.
    """
    planned = plans["configurations"][configuration]
    order = plans["transpose_forward"]
    voxels = images[0][None] if len(images) == 1 else np.stack(images)
    voxels = voxels.transpose([0, *(axis + 1 for axis in order)])
    spacing = [float(spacing_zyx[axis]) for axis in order]
    box = nonzero_box(voxels)
    shape_before = voxels.shape[1:]
    voxels = voxels[(slice(None), *box)]
    moments = [
        sum(map(Moments.measure, channel), Moments()) if _SCHEMES[scheme] else None
        for channel, scheme in zip(voxels, planned["normalization_schemes"], strict=True)
    ]
    properties = {
        "spacing": [float(size) for size in spacing_zyx],
        "shape_before_cropping": shape_before,
        "bbox_used_for_cropping": [[bounds.start, bounds.stop] for bounds in box],
        "shape_after_cropping_and_before_resampling": voxels.shape[1:],
        "class_locations": {},
        "mean": [0.0 if part is None else part.mean for part in moments],
        "standard_deviation": [1.0 if part is None else part.standard_deviation for part in moments],
    }
    voxels = np.ascontiguousarray(_resampled(voxels, spacing, plans, configuration))
    blocks, chunks = comp_blosc2_params(voxels.shape, planned["patch_size"], voxels.itemsize)
    try:
        write_pickle(properties, f"{path}.pkl")
        with whole_file(path.with_name(f"{path.name}.b2nd")) as partial:
            _write_array(partial, voxels, chunks, blocks)
    except (RuntimeError, OSError) as error:
        raise SelmaError(
            f"{path}.b2nd: could not be written whole ({error}); make room on that disk, check its permissions, and run the command again"
        ) from error
    return properties


def _write_array(path: Path, voxels: Array, chunks: Sequence[int], blocks: Sequence[int]) -> None:
    """Write and read back, because blosc2 does not promise to notice a full disk."""
    blosc2.asarray(voxels, urlpath=str(path), chunks=chunks, blocks=blocks, cparams=_COMPRESSION)
    if not np.array_equal(blosc2.open(str(path), mode="r")[:], voxels):
        raise OSError("what was written differs from what is read back")


def nonzero_box(voxels: Array) -> tuple[slice, slice, slice]:
    """The smallest box, (z, y, x), that holds every voxel of (channel, z, y, x) that is not 0; everything where all are 0."""
    box = []
    for axis in range(1, 4):
        others = tuple(other for other in range(4) if other != axis)
        filled = np.flatnonzero(voxels.any(axis=others))
        box.append(slice(int(filled[0]), int(filled[-1]) + 1) if len(filled) else slice(0, voxels.shape[axis]))
    return box[0], box[1], box[2]


def _resampled(voxels: Array, spacing: Sequence[float], plans: Mapping[str, Any], configuration: str) -> Array:
    """The voxels at the plan's spacing, in the same type; the same array if that is their spacing."""
    target = [float(size) for size in plans["configurations"][configuration]["spacing"]]
    target = [*spacing[: 3 - len(target)], *target]  # a 2D configuration does not change the distance of slices
    shape = [round(old / new * length) for old, new, length in zip(spacing, target, voxels.shape[1:], strict=True)]
    if shape == list(voxels.shape[1:]):
        return voxels
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager  # loads torch

    resample = PlansManager(dict(plans)).get_configuration(configuration).resampling_fn_data
    floats: NDArray[np.float32] = np.asarray(resample(voxels.astype(np.float32), shape, spacing, target))
    if voxels.dtype != np.uint16:
        return floats
    return np.clip(np.rint(floats), 0, np.iinfo(np.uint16).max).astype(np.uint16)


class NormalisedTile:
    """A stored tile, (channel, z, y, x), with the interface of nnU-Net's normalised float32 array; only requested crops are read."""

    dtype = np.dtype(np.float32)

    def __init__(self, stored: Any, mean: Sequence[float], deviation: Sequence[float]) -> None:
        self.stored, self.shape, self.ndim = stored, stored.shape, len(stored.shape)
        self._mean, self._deviation = (np.reshape(np.asarray(v, np.float32), (-1, 1, 1, 1)) for v in (mean, deviation))

    def __getitem__(self, box: tuple[slice, ...]) -> NDArray[np.float32]:
        """A normalised crop of all channels."""
        crop = np.asarray(self.stored[box]).astype(np.float32)
        crop -= self._mean
        crop /= np.maximum(self._deviation, _LEAST_DEVIATION)
        return crop


class TileStore(nnUNetDatasetBlosc2):
    """Dataset class of a tile store for nnU-Net's loader; the label of every tile is background."""

    def load_case(self, identifier: str) -> tuple[NormalisedTile, Array, None, dict[str, Any]]:
        """Data, label, None for the previous stage, and properties, as nnU-Net's datasets return them."""
        path = str(Path(self.source_folder) / identifier)
        stored = blosc2.open(urlpath=f"{path}.b2nd", mode="r", dparams={"nthreads": 1}, **self.mmap_kwargs)
        properties = load_pickle(f"{path}.pkl")
        empty = np.broadcast_to(np.int8(0), (1, *stored.shape[1:]))
        return NormalisedTile(stored, properties["mean"], properties["standard_deviation"]), empty, None, properties
