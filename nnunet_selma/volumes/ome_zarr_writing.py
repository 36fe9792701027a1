"""OME-Zarr written block by block: out of core, from several processes or machines at once.

One process creates the image: the metadata of every level, no voxels. Any number of writers fill level 0, each shard by one of them. Then
one process writes the other levels (`fill_pyramid`). A shard (OME-Zarr 0.5) or chunk (0.4) is written under a temporary name and renamed,
which zarr does since 3.1.3, so that it is whole or absent whenever a writer is killed; an absent one reads as 0. Memory does not grow with
the volume.
"""

import importlib
import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from nnunet_selma.errors import SelmaError
from nnunet_selma.running.json_files import read_json, write_json
from nnunet_selma.structures import SpacingUm
from nnunet_selma.volumes.base import Array, ShapeZYX, Volume
from nnunet_selma.volumes.ome_zarr import PLACE, zarr_library
from nnunet_selma.volumes.pyramids import (
    Level,
    Reduction,
    fill_pyramid,
    level_array,
    open_zarr_group,
    pyramid_levels,
    reduced,
)
from nnunet_selma.volumes.units import VOXEL_UNITS

__all__ = [
    "ImageLayout",
    "OmeZarrVersion",
    "Reduction",
    "create_group_without_image",
    "create_image",
    "create_labels",
    "fill_pyramid",
    "image_version",
    "place_like",
    "remove_partial_writes",
    "write_box",
]

OmeZarrVersion = Literal["0.5", "0.4"]

_ZARR_FORMAT: dict[OmeZarrVersion, int] = {"0.5": 3, "0.4": 2}
_BLOSC = {"cname": "zstd", "clevel": 1}
"""Level 1: twice as fast as level 3, and 2 to 4 % larger, on a real brain and on noise around blobs."""
_CHANNEL_COLOURS = ("FF00FF", "00FF00", "00FFFF", "FFFF00", "FF0000", "0000FF")


@dataclass(frozen=True, kw_only=True)
class ImageLayout:
    """Layout of an image to be written.

    Raises:
        SelmaError: a shard is no whole number of chunks, or the reduction or a label image cannot have the dtype.
    """

    shape: ShapeZYX
    dtype: np.dtype[Any]
    spacing_um_zyx: SpacingUm | None
    """Voxel size in µm; None for voxels without a unit."""
    level_factor_zyx: SpacingUm = VOXEL_UNITS
    """Edges of a voxel without a unit, in voxels of the finest level of the volume that the image belongs to."""
    origin_voxels_zyx: SpacingUm = (0.0, 0.0, 0.0)
    """Place of the centre of the first voxel along the axes, voxels."""
    affine: NDArray[np.float64] | None = None
    """`Volume.affine` of the volume that the image belongs to; kept beside OME-Zarr's metadata, which have no directions."""
    shard_zyx: ShapeZYX
    """Shape of a shard, which is written whole, voxels; a multiple of `chunk_zyx`. OME-Zarr 0.4 has a file for each chunk instead."""
    chunk_zyx: ShapeZYX
    """Shape of a chunk, which is read whole, voxels."""
    reduction: Reduction
    name: str
    """Name of the image for viewers."""
    channels: tuple[str, ...] = ()
    """Names of channels along a leading axis c; empty for an image with the axes z, y, x only."""
    label_colours: Mapping[int, tuple[str, tuple[int, int, int, int]]] | None = None
    """Value to its name and colour (red, green, blue, opacity; 0 to 255). None: no label image; empty: one whose classes have no names."""
    window: tuple[float, float] | None = None
    """Values that a viewer shows as black and white; None: 0 and 1, or the limits of the integer type."""
    version: OmeZarrVersion = "0.5"

    def __post_init__(self) -> None:
        if any(shard % chunk for shard, chunk in zip(self.shard_zyx, self.chunk_zyx, strict=True)):
            raise SelmaError(f"{self.name}: shards of {self.shard_zyx} voxels are not whole chunks of {self.chunk_zyx}")
        if self.dtype.kind not in ("ui" if self.label_colours is not None else "uif"):
            raise SelmaError(f"{self.name}: {self.dtype} cannot be written; choose integers")
        if self.reduction == "mean" and self.dtype.kind != "f" and self.dtype.itemsize > 4:
            raise SelmaError(f"{self.name}: the mean of {self.dtype} may overflow; choose integers of 32 bit")

    @property
    def levels(self) -> list[Level]:
        """Resolution levels of the image, the finest first."""
        return pyramid_levels(self.shape, self.scale_zyx)

    @property
    def scale_zyx(self) -> SpacingUm:
        """Edges of a voxel in the unit of the image: µm, or voxels of the finest level."""
        return self.spacing_um_zyx or self.level_factor_zyx


def place_like(volume: Volume) -> dict[str, Any]:
    """Those fields of an `ImageLayout` that place an image where a volume lies, except for the voxel size."""
    return {
        "level_factor_zyx": volume.level_factor_zyx,
        "origin_voxels_zyx": volume.origin_voxels_zyx or (0.0, 0.0, 0.0),
        "affine": volume.affine,
    }


def create_image(path: Path, layout: ImageLayout) -> None:
    """Write the metadata of an image and of all its levels; it reads as 0 until voxels are written.

    The metadata of the group are written last, so that the image is whole or absent. If the same image exists already, with or without
    voxels, nothing changes. One process calls this, before the writers start.

    Raises:
        SelmaError: another image exists there, or a library is missing.
    """
    documents = _documents(path, layout)
    existing = {name: read_json(path / name) for name in documents if (path / name).exists()}
    if any(documents[name] != content for name, content in existing.items()):
        raise SelmaError(f"{path}: holds an image of another kind already; remove it, or choose another name")
    for name, content in documents.items():
        if name not in existing:
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            write_json(path / name, content)
    level_array.cache_clear()


def create_group_without_image(path: Path, version: OmeZarrVersion) -> None:
    """Create a group that holds labels and no image, for images that are no OME-Zarr; a group that exists stays as it is."""
    if image_version(path) is None:
        attributes = {"ome": {"version": version}} if version == "0.5" else {}
        zarr_library().create_group(str(path), zarr_format=_ZARR_FORMAT[version], attributes=attributes)


def create_labels(image: Path, names: Sequence[str], version: OmeZarrVersion) -> None:
    """Add label images, which lie at `image/labels/<name>`, to the list in the image's `labels` group.

    Called after they were created, so that every name in the list exists. Where there is no image, a group without one is created. Metadata
    that are consolidated are consolidated again, because readers of such images look at nothing else.

    Raises:
        SelmaError: the image is of the other version, or a library is missing.
    """
    zarr, model = zarr_library(), _models(version).labels.LabelsAttrs
    create_group_without_image(image, version)
    if (existing := image_version(image)) != version:
        raise SelmaError(f"{image}: is OME-Zarr {existing}; its labels must be of this version, too, not of {version}")
    labels = open_zarr_group(image).require_group("labels")
    attributes = labels.attrs.asdict()
    before = attributes.get("ome", {}) if version == "0.5" else attributes
    listed = list(dict.fromkeys([*before.get("labels", []), *names]))
    if version == "0.5":
        attributes["ome"] = {**before, **_as_json(model(version=version, labels=listed))}
    else:
        attributes |= _as_json(model(labels=listed))
    labels.attrs.put(attributes)
    if zarr.open_group(str(image), mode="r").metadata.consolidated_metadata is not None:
        with warnings.catch_warnings():  # zarr 3 warns that they are not part of its standard
            warnings.simplefilter("ignore")
            zarr.consolidate_metadata(str(image))


def image_version(path: Path) -> OmeZarrVersion | None:
    """OME-Zarr version of a zarr group, which whatever is added to it must have; None where there is no zarr group."""
    if (path / "zarr.json").is_file():
        return "0.5"
    return "0.4" if (path / ".zgroup").is_file() else None


def write_box(path: Path, start_zyx: ShapeZYX, voxels: Array) -> None:
    """Write whole shards of level 0: a box, (z, y, x) or (c, z, y, x), from shard bounds to shard bounds or the volume's end.

    A chunk of zeros takes no space. Voxels written before are replaced.

    Raises:
        ValueError: parts of shards, or another dtype or number of channels than the image's.
    """
    array = level_array(path, 0)
    if voxels.dtype != array.dtype or voxels.ndim != array.ndim or voxels.shape[:-3] != array.shape[:-3]:
        raise ValueError(
            f"{path}: a box of shape {voxels.shape} and {voxels.dtype} is no part of an image of {array.shape} and {array.dtype}"
        )
    box = [slice(start, start + length) for start, length in zip(start_zyx, voxels.shape[-3:], strict=True)]
    for b, unit, end in zip(box, (array.shards or array.chunks)[-3:], array.shape[-3:], strict=True):
        if b.start % unit or not 0 <= b.start < b.stop <= end or (b.stop % unit and b.stop != end):
            raise ValueError(
                f"{path}: voxels {b.start} to {b.stop} of {end} along an axis are not whole shards of {unit}"
            )
    array[(..., *box)] = voxels


def remove_partial_writes(path: Path) -> None:
    """Remove the temporary files of killed writers; no writer may be running."""
    for file in path.rglob("*.partial"):
        file.unlink()


def _models(version: OmeZarrVersion) -> Any:
    """The metadata models of a version; both versions name them alike."""
    try:
        return importlib.import_module(f"ome_zarr_models.v{version.replace('.', '')}")
    except ImportError as error:
        raise SelmaError(
            "writing OME-Zarr needs ome-zarr-models; install it with: pip install 'nnunet-selma[brains]'"
        ) from error


def _as_json(model: Any) -> dict[str, Any]:
    content: dict[str, Any] = model.model_dump(mode="json", by_alias=True, exclude_none=True)
    return content


def _documents(path: Path, layout: ImageLayout) -> dict[str, Any]:
    """File name to metadata, those of the image last; made in memory, so that they are checked as a whole before any is written."""
    zarr, models = zarr_library(), _models(layout.version)
    files: dict[str, Any] = {}
    group = zarr.create_group(
        zarr.storage.MemoryStore(files),
        zarr_format=_ZARR_FORMAT[layout.version],
        attributes=_attributes(path, layout, models),
    )
    leading = [len(layout.channels)] if layout.channels else []
    chunks = {"chunks": (*(1 for _ in leading), *layout.chunk_zyx)}  # no chunk spans several channels
    if layout.version == "0.5":
        storage = {
            "shards": (*(1 for _ in leading), *layout.shard_zyx),
            "compressors": zarr.codecs.BloscCodec(**_BLOSC),
            "dimension_names": [*("c" for _ in leading), "z", "y", "x"],
        }
    else:
        storage = {
            "compressors": importlib.import_module("numcodecs").Blosc(**_BLOSC),
            "chunk_key_encoding": {"name": "v2", "separator": "/"},
        }
    for i, level in enumerate(layout.levels):
        group.create_array(
            str(i), shape=(*leading, *level.shape), dtype=layout.dtype, fill_value=0, **chunks, **storage
        )
    (models.Image if layout.label_colours is None else models.ImageLabel).from_zarr(group)
    return {
        name: json.loads(files[name].to_bytes()) for name in sorted(files, key=lambda name: ("/" not in name, name))
    }


def _attributes(path: Path, layout: ImageLayout, models: Any) -> dict[str, Any]:
    """Metadata of the image's group: axes, resolutions, and colours for viewers."""
    axis, dataset = models.axes.Axis, models.multiscales.Dataset
    unit = None if layout.spacing_um_zyx is None else "micrometer"
    channel_scale, channel_offset = ([1.0], [0.0]) if layout.channels else ([], [])
    multiscale = models.multiscales.Multiscale(
        axes=[axis(name="c", type="channel")] * len(channel_scale)
        + [axis(name=n, type="space", unit=unit) for n in "zyx"],
        datasets=[
            dataset.build(
                path=str(i),
                scale=[*channel_scale, *(s * f for s, f in zip(layout.scale_zyx, level.factors_zyx, strict=True))],
                # the centre of the first voxel of level 0, and from there to that of this level
                translation=[
                    *channel_offset,
                    *(
                        round(s * (o + (f - 1) / 2), 9)
                        for s, o, f in zip(layout.scale_zyx, layout.origin_voxels_zyx, level.factors_zyx, strict=True)
                    ),
                ],
            )
            for i, level in enumerate(layout.levels)
        ],
        name=layout.name,
        type=layout.reduction,
        metadata={"method": f"{reduced.__module__}.{reduced.__name__}", "args": [layout.reduction]},
        **({"version": "0.4"} if layout.version == "0.4" else {}),
    )
    content: dict[str, Any] = {"multiscales": [_as_json(multiscale)]}
    if layout.label_colours is None:
        content["omero"] = _as_json(_display(layout))
    else:
        content["image-label"] = _as_json(_label(layout.label_colours, path, layout.version, models.image_label_types))
    return (content if layout.version == "0.4" else {"ome": {"version": "0.5", **content}}) | _place(layout)


def _place(layout: ImageLayout) -> dict[str, Any]:
    """Attributes for what OME-Zarr cannot express of a place; empty if there is nothing of the kind."""
    place: dict[str, Any] = {}
    if layout.affine is not None:
        place["affine"] = layout.affine.tolist()
    if layout.spacing_um_zyx is None and layout.level_factor_zyx != VOXEL_UNITS:
        place["voxels_of_finest"] = list(layout.level_factor_zyx)
    return {PLACE: place} if place else {}


def _label(
    colours: Mapping[int, tuple[str, tuple[int, int, int, int]]], path: Path, version: OmeZarrVersion, types: Any
) -> Any:
    """Names and colours of labels, and their image if they lie in its `labels`."""
    colors = [types.Color(label_value=value, rgba=rgba) for value, (_, rgba) in sorted(colours.items())]
    properties = [types.Property(label_value=value, name=name) for value, (name, _) in sorted(colours.items())]
    return types.Label(
        **({"colors": colors, "properties": properties} if colours else {}),  # empty lists are not allowed
        source=types.Source(image="../../") if path.parent.name == "labels" else None,
        version=version,
    )


def _display(layout: ImageLayout) -> Any:
    """Names, colours and grey-value windows of channels in OMERO's metadata, which OME-Zarr 0.5 has kept."""
    types = _models("0.4").omero
    limits = (0.0, 1.0) if layout.dtype.kind == "f" else (np.iinfo(layout.dtype).min, np.iinfo(layout.dtype).max)
    start, end = layout.window or limits
    window = types.Window(min=min(limits[0], start), max=max(limits[1], end), start=start, end=end)
    names = layout.channels or (layout.name,)
    colours = ("FFFFFF",) if len(names) == 1 else _CHANNEL_COLOURS
    return types.Omero(
        channels=[
            types.Channel(label=name, color=colours[i % len(colours)], window=window, active=True)
            for i, name in enumerate(names)
        ]
    )
