"""Descriptions of images by BigDataViewer and BigStitcher: XML files whose root is `SpimData`.

Source: the classes of github.com/bigdataviewer/spimdata and bigdataviewer-core, and `imagej.net/plugins/bdv`. A view is an image of one setup
at one time point. The registration of a view is a list of affine matrices (3 × 4, x, y, z), the first of which is applied last; their product
leads from the index of a voxel to a place in the world.
"""

import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from urllib.parse import unquote

import numpy as np
from numpy.typing import NDArray

from nnunet_selma.errors import SelmaError

_HEAD_BYTES = 4096
_SCENE_ATTRIBUTES = ("tile", "angle", "illumination")
"""Attributes whose values make separate images; the values of the attribute `channel` make channels."""
_NEEDS_RESAVING = "open it in Fiji's BigStitcher, save it again as HDF5 or N5 (Resave as …), and give that"
_ELEMENTS = {"bdv.hdf5": "hdf5", "bdv.n5": "n5"}
"""Name of a loader to the element of the XML with the path of the voxels."""


@dataclass(frozen=True)
class Setup:
    """One image of a dataset, at all time points."""

    number: int
    name: str
    voxel_size_xyz: tuple[float, ...] | None
    unit: str | None
    attributes: dict[str, int]
    """Number of its channel, tile, angle and illumination."""


@dataclass(frozen=True)
class SpimData:
    """A dataset of BigDataViewer whose voxels lie in HDF5 or N5."""

    voxels: Path
    """The HDF5 file, or the folder of N5."""
    partitions: tuple[Path, ...]
    """Further HDF5 files, to which the first links."""
    setups: tuple[Setup, ...]
    times: tuple[int, ...]
    """Numbers of the time points."""
    names: dict[tuple[str, int], str]
    """Name for an attribute and a number."""
    missing: frozenset[tuple[int, int]]
    """Time point and setup of the views that were not recorded."""
    registrations: dict[tuple[int, int], list[NDArray[np.float64]]]
    """Matrices (4, 4) of a time point and a setup, in the order of the file: the first is applied last."""


@dataclass(frozen=True)
class Scene:
    """Setups that differ in their channel only."""

    name: str
    channels: tuple[Setup, ...]


def is_spim_data(path: Path) -> bool:
    """True for an XML file that BigDataViewer wrote; only its first kilobytes are read."""
    if not path.name.lower().endswith(".xml"):
        return False
    try:
        with path.open("rb") as file:
            return b"<SpimData" in file.read(_HEAD_BYTES)
    except OSError:
        return False


def spim_data(path: Path) -> SpimData:
    """The dataset that an XML file describes.

    Raises:
        SelmaError: the file is damaged, or its voxels lie in another format than HDF5 and N5; says what to do.
    """
    try:
        root = ET.parse(path).getroot()
        sequence = _child(root, "SequenceDescription")
        folder = _path(path.parent, root.find("BasePath"))
        loader = _child(sequence, "ImageLoader")
        element = _ELEMENTS.get(loader.get("format", ""))
        if element is None:
            raise _other_loader(path, folder, loader)
        groups = sequence.findall("ViewSetups/Attributes")
        views = {_view(view): view for view in root.findall("ViewRegistrations/ViewRegistration")}
        return SpimData(
            voxels=_path(folder, _child(loader, element)),
            partitions=tuple(_path(folder, _child(part, "path")) for part in loader.findall("partition")),
            setups=tuple(_setup(element) for element in sequence.findall("ViewSetups/ViewSetup")),
            times=tuple(_time_points(_child(sequence, "Timepoints"))),
            names=dict(name for group in groups for name in _names(group)),
            missing=frozenset(_view(view) for view in sequence.findall("MissingViews/MissingView")),
            registrations={
                key: [_matrix(_words(_child(t, "affine"))) for t in view.findall("ViewTransform")]
                for key, view in views.items()
            },
        )
    except SelmaError:
        raise
    except (ET.ParseError, OSError, ValueError, LookupError) as error:
        raise SelmaError(
            f"{path}: is damaged, or no XML of BigDataViewer ({error}); copy it again, or save it again in Fiji"
        ) from error


def _child(element: ET.Element, tag: str) -> ET.Element:
    """The first element with a tag; raises `LookupError` without it."""
    child = element.find(tag)
    if child is None:
        raise LookupError(f"{element.tag} has no {tag}")
    return child


def _words(element: ET.Element | None) -> list[str]:
    return ((element.text if element is not None else None) or "").split()


def _path(folder: Path, element: ET.Element | None) -> Path:
    """The path in an element, from a folder; Windows' separators and the escapes of addresses count too."""
    text = ((element.text if element is not None else None) or ".").strip()
    written = (text, text.replace("\\", "/"), unquote(text.removeprefix("file:")))
    return next((folder / way for way in written if (folder / way).exists()), folder / written[1])


def _view(element: ET.Element) -> tuple[int, int]:
    return int(element.attrib["timepoint"]), int(element.attrib["setup"])


def _setup(element: ET.Element) -> Setup:
    number = int(_child(element, "id").text or "")
    sizes = _words(element.find("voxelSize/size"))
    attributes = element.find("attributes")
    return Setup(
        number=number,
        name=(element.findtext("name") or "").strip() or f"setup {number}",
        voxel_size_xyz=tuple(float(size) for size in sizes) if len(sizes) == 3 else None,
        unit=(element.findtext("voxelSize/unit") or "").strip() or None,
        attributes={a.tag: int(a.text or "0") for a in attributes if (a.text or "0").strip().isdecimal()}
        if attributes is not None
        else {},
    )


def _names(group: ET.Element) -> Iterator[tuple[tuple[str, int], str]]:
    """Attribute, number and name of each value of an attribute."""
    for value in group:
        if name := (value.findtext("name") or "").strip():
            yield (group.get("name", ""), int(_child(value, "id").text or "")), name


def _time_points(element: ET.Element) -> list[int]:
    """Numbers of the time points: a range, a list, or a pattern such as `0-8:2,11`."""
    if element.get("type") == "range":
        return list(range(int(element.findtext("first") or ""), int(element.findtext("last") or "") + 1))
    if element.get("type") == "list":
        return sorted(int(_child(point, "id").text or "") for point in element.findall("Timepoint"))
    times: set[int] = set()
    for part in (element.findtext("integerpattern") or "0").split(","):
        bounds = re.fullmatch(r"\s*(\d+)(?:\s*-\s*(\d+)(?:\s*:\s*(\d+))?)?\s*", part)
        if not bounds:
            raise ValueError(f"the time points are {part!r}")
        times.update(range(int(bounds[1]), int(bounds[2] or bounds[1]) + 1, int(bounds[3] or 1)))
    return sorted(times)


def _matrix(numbers: Sequence[str]) -> NDArray[np.float64]:
    matrix = np.eye(4)
    matrix[:3] = np.array(numbers, float).reshape(3, 4)
    if not np.isfinite(matrix).all():
        raise ValueError("a registration is not finite")
    return matrix


def _other_loader(path: Path, folder: Path, loader: ET.Element) -> SelmaError:
    """The error for a dataset whose voxels lie in another format than HDF5 and N5; names what can be given instead."""
    name = loader.get("format") or loader.get("class") or "unknown"
    described = f"{path}: its voxels are neither HDF5 nor N5 (loader {name})"
    zarr, imaris = loader.find("zarr"), loader.find("imaris")
    if zarr is not None:
        first = loader.find("zgroups/zgroup")
        inner = "" if first is None else (first.get("path") or first.findtext("path") or "").strip().strip("/")
        return SelmaError(f"{described}; give the OME-Zarr itself: {_path(folder, zarr) / inner}")
    if imaris is not None:
        return SelmaError(f"{described}; give the Imaris file itself: {_path(folder, imaris)}")
    if loader.get("format") is None:
        return SelmaError(
            f"{described}, as early versions described them; open it in Fiji's BigDataViewer and save it again"
        )
    return SelmaError(f"{described}; {_NEEDS_RESAVING}")


def scenes(data: SpimData) -> tuple[Scene, ...]:
    """The images of a dataset: setups that differ in their channel only are channels of one scene.

    Where this is not unique, because setups name no attributes, each setup is a scene.
    """
    groups: dict[tuple[int, ...], list[Setup]] = {}
    for setup in data.setups:
        groups.setdefault(tuple(setup.attributes.get(name, 0) for name in _SCENE_ATTRIBUTES), []).append(setup)
    if any(len({s.attributes.get("channel", 0) for s in group}) < len(group) for group in groups.values()):
        return tuple(Scene(setup.name, (setup,)) for setup in data.setups)
    varying = [i for i in range(len(_SCENE_ATTRIBUTES)) if len({key[i] for key in groups}) > 1]
    return tuple(
        Scene(
            ", ".join(
                f"{_SCENE_ATTRIBUTES[i]} {data.names.get((_SCENE_ATTRIBUTES[i], key[i]), key[i])}" for i in varying
            ),
            tuple(sorted(group, key=lambda setup: setup.attributes.get("channel", 0))),
        )
        for key, group in groups.items()
    )


def product(matrices: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """The product of matrices (4, 4), of which the first is applied last."""
    return reduce(np.matmul, matrices, np.eye(4))
