"""A segmentation and its image: their files, their resolutions, and the names of the classes.

An OME-Zarr may hold both: the image at its root, and label images below `labels/`. Any other volume is one of the two.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from nnunet_selma.errors import SelmaError
from nnunet_selma.volumes import Volume, inventory, open_volume
from nnunet_selma.volumes.base import by_times
from nnunet_selma.volumes.labels import check_labels
from nnunet_selma.volumes.ome_zarr import image_group, is_zarr, label_names, ome_metadata, zarr_node

Levels = tuple[Volume, ...]
"""One volume at several resolutions, the finest first."""
USUAL_LABEL = "segmentation"
"""Name of the label image that is taken where there are several."""


@dataclass(frozen=True, kw_only=True)
class Segmented:
    """A segmentation, the image it belongs to, or both."""

    name: str
    labels: Levels = ()
    """Empty where only the image is known."""
    channels: tuple[Levels, ...] = ()
    """The image, channel by channel; empty where only the segmentation is known."""
    channel_names: tuple[str, ...] = ()
    """Name of each channel; empty unless all have one."""
    classes: Mapping[int, str] = field(default_factory=dict)
    """Value in the segmentation to the name of the class; classes that the file does not name are absent."""


def segmentation_at(
    path: Path,
    *,
    label: str | None = None,
    raw: Path | None = None,
    scene: str | None = None,
    time: int | None = None,
) -> Segmented:
    """Open the segmentation at a path, and its image in the same OME-Zarr or in another file; reads a few boxes at most.

    Args:
        path: an OME-Zarr with label images, one of these, or any other volume that is the segmentation itself.
        label: name of the label image in the OME-Zarr.
        raw: the image, instead of the one in the OME-Zarr.
        scene: the image in a file with several; the file is `raw`, or without it the path.
        time: time point of the image, in a file with several.

    Raises:
        SelmaError: nothing there, no such label image, labels whose values are those of an image, or image and segmentation do not have the same number of voxels.
    """
    scene_of_labels = scene if raw is None else None
    labels = label_levels(path, label, scene=scene_of_labels)
    place = (label_image(path, label, scene_of_labels) or path).resolve()
    if raw is None and place.parent.name == "labels" and has_image(place.parent.parent):
        raw, scene = place.parent.parent, None
    channels = channel_levels(raw, scene=scene, time=time) if raw else ()
    check_same_voxels(labels, channels)
    return Segmented(
        name=_name(path),
        labels=labels,
        channels=channels,
        channel_names=inventory(raw, scene).channel_names if raw else (),
        classes=class_names(place),
    )


def image_at(
    path: Path,
    *,
    label: str | None = None,
    labels: Path | None = None,
    scene: str | None = None,
    time: int | None = None,
) -> Segmented:
    """Open the image at a path, and its segmentation in the same OME-Zarr or in another file, if there is one; reads a few boxes at most.

    Args:
        path: an OME-Zarr, or any other volume that is the image itself.
        label: name of the label image in an OME-Zarr.
        labels: the segmentation, instead of the one in the OME-Zarr.
        scene: scene of the image, in a file with several.
        time: time point of the image, in a file with several.

    Raises:
        SelmaError: as in `segmentation_at`.
    """
    if labels is not None:
        return replace(segmentation_at(labels, label=label, raw=path, scene=scene, time=time), name=_name(path))
    if (place := label_image(path, label, scene)) is not None:
        return replace(segmentation_at(place, time=time), name=_name(path))
    channels = channel_levels(path, scene=scene, time=time)
    return Segmented(name=_name(path), channels=channels, channel_names=inventory(path, scene).channel_names)


def levels(path: Path, channel: int | None = None, *, scene: str | None = None, time: int | None = None) -> Levels:
    """Open a volume at every resolution that is stored, finest first."""
    return tuple(
        open_volume(path, scene=scene, channel=channel, time=time, level=level)
        for level in range(inventory(path, scene).levels)
    )


def channel_levels(path: Path, *, scene: str | None = None, time: int | None = None) -> tuple[Levels, ...]:
    """Open every channel of an image at every resolution that is stored."""
    return tuple(levels(path, channel, scene=scene, time=time) for channel in range(inventory(path, scene).channels))


def label_image(path: Path, name: str | None = None, scene: str | None = None) -> Path | None:
    """Path of a label image in an OME-Zarr; None for a volume that holds none, where no name is given.

    Args:
        path: any volume.
        name: name of the label image; None takes `segmentation`, or the only one.
        scene: the image whose labels are meant, in an OME-Zarr with several.

    Raises:
        SelmaError: there is none of that name, or without a name there are several and none is called `segmentation`; or the OME-Zarr is a
            zip file, whose label images have no path.
    """
    names, root = list[str](), path
    if is_zarr(path):
        image = image_group(path, scene)
        names, root = label_names(path, image), path / image.path
    if name is None and not names:
        return None
    if names and path.is_file():
        raise SelmaError(
            f"{path}: holds the label images {', '.join(names)}, which are not read from a zip file; unpack it"
        )
    if name is None:
        name = USUAL_LABEL if USUAL_LABEL in names else names[0]
        if name != USUAL_LABEL and len(names) > 1:
            raise SelmaError(
                f"{path}: holds the label images {', '.join(names)}; give one of them, as {root / 'labels' / names[0]}",
                option="choose one with --label",
            )
    if name not in names:
        raise SelmaError(f"{path}: has no label image {name}; it holds {', '.join(names) or 'none'}")
    return root / "labels" / name


def label_path(path: Path, name: str | None = None) -> Path:
    """Path of the labels that a path means: of the label image in an OME-Zarr, or the path itself; raises `SelmaError` as `label_image`."""
    return label_image(path, name) or path


def open_labels(path: Path, name: str | None = None, *, scene: str | None = None) -> Volume:
    """Open the label image in an OME-Zarr, or any other volume, which is the labels, mask or atlas itself.

    A volume whose metadata do not mark it as labels is looked at in a few boxes.

    Args:
        path: the volume.
        name: name of the label image in an OME-Zarr; None takes `segmentation`, or the only one.
        scene: the image in a file with several.

    Raises:
        SelmaError: the OME-Zarr has no such label image, or several and none is called `segmentation`; the volume cannot be opened; or its
            values are those of an image (`labels.check_labels`).
    """
    place = label_image(path, name, scene)
    volume = open_volume(place) if place else open_volume(path, scene=scene)
    if not is_label_image(place or path):
        check_labels(volume)
    return volume


def label_levels(path: Path, name: str | None = None, *, scene: str | None = None) -> Levels:
    """Open labels as `open_labels`, at every resolution that is stored, finest first."""
    place = label_image(path, name, scene)
    coarser = levels(place) if place else levels(path, scene=scene)
    return (open_labels(path, name, scene=scene), *coarser[1:])


def has_image(path: Path) -> bool:
    """True if an OME-Zarr has an image at its root, not only label images below it."""
    return bool(_attributes(path).get("multiscales"))


def is_segmentation_only(path: Path) -> bool:
    """True if an OME-Zarr is a label image, or holds label images and no image."""
    return is_label_image(path) or bool(is_zarr(path) and not has_image(path) and label_names(path, zarr_node(path)))


def is_label_image(path: Path) -> bool:
    """True if a folder is an OME-Zarr image whose metadata mark it as labels."""
    return "image-label" in _attributes(path)


def class_names(path: Path) -> dict[int, str]:
    """Value in a label image to the name of its class; classes without a name in the metadata are absent."""
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
                f"{image[0].path}: has the shape {by_times(image[0].shape)} (z, y, x), the segmentation {labels[0].path} "
                f"{by_times(labels[0].shape)}; give the image that was segmented"
            )


def _name(path: Path) -> str:
    """Name of the file, for a label image behind the name of the OME-Zarr around it."""
    path = path.resolve()
    return f"{path.parent.parent.name}, {path.name}" if path.parent.name == "labels" else path.name


def _attributes(path: Path) -> dict[str, Any]:
    """OME-Zarr's metadata of a group; empty for everything else."""
    return ome_metadata(zarr_node(path)) if is_zarr(path) else {}
