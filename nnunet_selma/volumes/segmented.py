"""A segmentation and the image it belongs to: where they lie, at every resolution, and what the classes are called.

An OME-Zarr holds both: the image at its root, if it has one, and label images below `labels/`. Any other volume is one of the two.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nnunet_selma.errors import SelmaError
from nnunet_selma.volumes import Volume, open_volume
from nnunet_selma.volumes.base import ShapeZYX
from nnunet_selma.volumes.ome_zarr import is_zarr, zarr_node
from nnunet_selma.volumes.tiff import is_tiff, tiff_channels

Levels = tuple[Volume, ...]
"""One volume at several resolutions, the finest first."""
USUAL_LABEL = "segmentation"
"""The label image that is taken where there are several."""


@dataclass(frozen=True, kw_only=True)
class Segmented:
    """A segmentation, the image it belongs to, or both."""

    name: str
    labels: Levels = ()
    """Empty where only the image is known."""
    channels: tuple[Levels, ...] = ()
    """The image, channel by channel; empty where only the segmentation is known."""
    classes: Mapping[int, str] = field(default_factory=dict)
    """Value in the segmentation to its name, as far as the file says."""


def segmentation_at(path: Path, *, label: str | None = None, raw: Path | None = None) -> Segmented:
    """The segmentation that lies at a path, and its image: inside of the same OME-Zarr, or in another file.

    Args:
        path: an OME-Zarr with label images, one of these, or any volume, which is the segmentation itself.
        label: which label image of the OME-Zarr.
        raw: the image, instead of the one in the OME-Zarr.

    Raises:
        SelmaError: nothing there, no such label image, or image and segmentation do not have the same number of voxels.
    """
    inside = label_image(path, label)
    labels = levels(inside or path)
    place = inside or path.resolve()
    if raw is None and place.parent.name == "labels" and has_image(place.parent.parent):
        raw = place.parent.parent
    channels = tuple(levels(raw, channel) for channel in range(_channels(raw))) if raw else ()
    check_same_voxels(labels, channels)
    return Segmented(name=_name(path), labels=labels, channels=channels, classes=class_names(inside or path))


def image_at(path: Path, *, label: str | None = None, labels: Path | None = None) -> Segmented:
    """The image that lies at a path, and its segmentation: inside of the same OME-Zarr, in another file, or none.

    Args:
        path: an OME-Zarr, or any volume, which is the image itself.
        label: which label image of an OME-Zarr.
        labels: the segmentation, instead of the one in the OME-Zarr.

    Raises:
        SelmaError: as of `segmentation_at`.
    """
    if labels is not None:
        found = segmentation_at(labels, label=label, raw=path)
        return Segmented(name=_name(path), labels=found.labels, channels=found.channels, classes=found.classes)
    if label_image(path, label) is not None:
        return segmentation_at(path, label=label)
    return Segmented(name=_name(path), channels=tuple(levels(path, channel) for channel in range(_channels(path))))


def levels(path: Path, channel: int | None = None) -> Levels:
    """A volume at every resolution it is stored in, finest first; one, unless it is an OME-Zarr."""
    first = open_volume(path, channel=channel)
    count = len(_multiscale(path).get("datasets", [0]))
    return (first, *(open_volume(path, channel=channel, level=level) for level in range(1, count)))


def label_image(path: Path, name: str | None = None) -> Path | None:
    """Where a label image of an OME-Zarr lies; None for a volume that holds none.

    Raises:
        SelmaError: none of that name, or several and none is called `segmentation`.
    """
    names = _label_names(path)
    if name is None and not names:
        return None
    if name is None:
        name = USUAL_LABEL if USUAL_LABEL in names else names[0]
        if name != USUAL_LABEL and len(names) > 1:
            raise SelmaError(f"{path}: holds the label images {', '.join(names)}; choose one with --label")
    if name not in names:
        there = f"it holds {', '.join(names)}" if names else "it holds none"
        raise SelmaError(f"{path}: has no label image {name}; {there}")
    return path / "labels" / name


def has_image(path: Path) -> bool:
    """True if an OME-Zarr has an image at its root, beside label images."""
    return bool(_multiscale(path))


def is_label_image(path: Path) -> bool:
    """True if a folder is an OME-Zarr image that says it holds labels."""
    return "image-label" in _attributes(path)


def class_names(path: Path) -> dict[int, str]:
    """Value of each class of a label image to its name, as far as its properties give one."""
    names = {}
    for entry in _attributes(path).get("image-label", {}).get("properties") or ():
        texts = [text for text in entry.values() if isinstance(text, str)]
        if texts:
            names[int(entry["label-value"])] = texts[0]
    return names


def check_same_voxels(labels: Levels, channels: tuple[Levels, ...]) -> None:
    """Raise `SelmaError` if no resolution of the image has the shape of the segmentation."""
    for image in channels:
        if labels[0].shape not in [level.shape for level in image]:
            raise SelmaError(
                f"{image[0].path}: has the shape {_shape(image[0].shape)} (z, y, x), the segmentation {labels[0].path} "
                f"{_shape(labels[0].shape)}; give the image that was segmented"
            )


def _shape(shape: ShapeZYX) -> str:
    return " × ".join(map(str, shape))


def _name(path: Path) -> str:
    """Name of the file; of a label image, the name of the OME-Zarr around it too."""
    path = path.resolve()
    return f"{path.parent.parent.name}, {path.name}" if path.parent.name == "labels" else path.name


def _attributes(path: Path) -> dict[str, Any]:
    """OME-Zarr's metadata of a group, of version 0.4 and 0.5; empty for everything else."""
    if not (path.is_dir() and is_zarr(path)):
        return {}
    node = zarr_node(path)
    if hasattr(node, "shape"):
        return {}
    attributes = dict(node.attrs)
    content: dict[str, Any] = attributes.get("ome", attributes)
    return content


def _multiscale(path: Path) -> dict[str, Any]:
    """Which resolutions an OME-Zarr image has; empty for everything else."""
    found: list[dict[str, Any]] = _attributes(path).get("multiscales") or [{}]
    return found[0]


def _label_names(path: Path) -> list[str]:
    """The label images that an OME-Zarr lists."""
    names: list[str] = _attributes(path / "labels").get("labels") or []
    return names


def _channels(path: Path) -> int:
    """Channels of an OME-Zarr image or a TIFF of many pages; 1 for everything else."""
    if is_tiff(path):
        return tiff_channels(path)
    found = _multiscale(path)
    if not found:
        return 1
    axes = [axis["name"] if isinstance(axis, dict) else axis for axis in found.get("axes", "tczyx")]
    return int(zarr_node(path / found["datasets"][0]["path"]).shape[axes.index("c")]) if "c" in axes else 1
