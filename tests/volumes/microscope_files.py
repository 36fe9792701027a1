"""Writers of microscopes' files after their published layouts, for tests; every level is the mean of 2 × 2 × 2 voxels of the finer one."""

import json
from collections.abc import Sequence
from contextlib import nullcontext
from itertools import product
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
import pytest

UNPADDED = (1, 1, 1)


def halved(voxels: np.ndarray, axes: Sequence[bool] = (True, True, True)) -> np.ndarray:
    """The mean of two voxels along each axis (z, y, x) that is to be halved; a last odd voxel stands for itself."""
    shape = [-(-n // 2) * 2 if halve else n for n, halve in zip(voxels.shape, axes, strict=True)]
    even = np.pad(voxels, [(0, m - n) for m, n in zip(shape, voxels.shape, strict=True)], mode="edge").astype(float)
    for axis, halve in enumerate(axes):
        if halve:
            even = (even.take(range(0, even.shape[axis], 2), axis) + even.take(range(1, even.shape[axis], 2), axis)) / 2
    return even.astype(voxels.dtype)


def pyramid(voxels: np.ndarray, levels: int, spacing_zyx: Sequence[float]) -> tuple[list[np.ndarray], np.ndarray]:
    """The levels of an image, and the edges of a voxel of each in voxels of the finest, (level, zyx).

    Axes longer than one voxel are halved whose voxels are shorter than twice the shortest, as the programs do it.
    """
    images, factors = [voxels], [np.ones(3, int)]
    for _ in range(1, levels):
        edges = np.array(spacing_zyx) * factors[-1]
        axes = (edges < 2 * edges.min()) & (np.array(images[-1].shape) > 1)
        images.append(halved(images[-1], axes.tolist()))
        factors.append(factors[-1] * np.where(axes, 2, 1))
    return images, np.array(factors)


def _characters(text: object) -> np.ndarray:
    """A text as Imaris writes it: an array of single bytes."""
    return np.frombuffer(str(text).encode(), "S1")


def write_imaris(
    path: Path,
    channels: Sequence[np.ndarray],
    *,
    spacing_um_zyx: Sequence[float],
    origin_um_zyx: Sequence[float] = (0.0, 0.0, 0.0),
    levels: int = 3,
    names: Sequence[str] | None = None,
    chunks: tuple[int, int, int] | None = (4, 8, 8),
    compression: str | None = "gzip",
    padded: bool = True,
    unit: str | None = "um",
    times: int = 1,
    encode=_characters,
    data_set: str = "",
) -> Path:
    """Write an Imaris 5.5 file.

    Args:
        path: the file; it is extended by further data sets.
        channels: images (z, y, x); the values of time point t are those, plus t.
        spacing_um_zyx: voxel size of the finest level.
        origin_um_zyx: outer face of the first voxel.
        levels: number of resolution levels.
        names: names of the channels; None for no `DataSetInfo/Channel`.
        chunks: shape of a chunk; None for contiguous voxels.
        compression: as h5py's.
        padded: True to extend the voxels to whole chunks.
        unit: unit of the extents, whose numbers are as given; None for none.
        times: number of time points.
        encode: turns a text into an attribute.
        data_set: number of the data set, for a second and further ones.
    """
    h5py = pytest.importorskip("h5py")
    shape = channels[0].shape
    with h5py.File(path, "a") as file:
        file.attrs["ImarisDataSet"] = encode("ImarisDataSet")
        file.attrs["ImarisVersion"] = encode("5.5.0")
        file.attrs["DataSetDirectoryName"] = encode("DataSet")
        file.attrs["DataSetInfoDirectoryName"] = encode("DataSetInfo")
        image = file.create_group(f"DataSetInfo{data_set}/Image")
        for axis, number in zip("ZYX", (2, 1, 0), strict=True):
            zyx = 2 - number
            image.attrs[axis] = encode(shape[zyx])
            low = origin_um_zyx[zyx]
            image.attrs[f"ExtMin{number}"] = encode(low)
            image.attrs[f"ExtMax{number}"] = encode(low + spacing_um_zyx[zyx] * shape[zyx])
        if unit is not None:
            image.attrs["Unit"] = encode(unit)
        for number, voxels in enumerate(channels):
            if names:
                file.create_group(f"DataSetInfo{data_set}/Channel {number}").attrs["Name"] = encode(names[number])
            for (level, coarse), time in product(enumerate(pyramid(voxels, levels, spacing_um_zyx)[0]), range(times)):
                group = file.create_group(
                    f"DataSet{data_set}/ResolutionLevel {level}/TimePoint {time}/Channel {number}"
                )
                for axis, length in zip("ZYX", coarse.shape, strict=True):
                    group.attrs[f"ImageSize{axis}"] = encode(length)
                edges = chunks if padded and chunks else UNPADDED
                margins = [(0, -n % edge) for n, edge in zip(coarse.shape, edges, strict=True)]
                stored = np.pad(coarse + np.asarray(time, coarse.dtype), margins)
                chunk = None if chunks is None else tuple(map(min, chunks, stored.shape))
                group.create_dataset("Data", data=stored, chunks=chunk, compression=compression if chunks else None)
    return path


def _element(parent: ET.Element, tag: str, text: object = None, **attributes: str) -> ET.Element:
    element = ET.SubElement(parent, tag, attributes)
    element.text = None if text is None else str(text)
    return element


def _numbers(values) -> str:
    return " ".join(str(float(value)) for value in np.ravel(values))


def scaling(scale_xyz, move_xyz=(0, 0, 0)) -> np.ndarray:
    """A matrix (3, 4) that scales and then moves."""
    return np.column_stack([np.diag(np.asarray(scale_xyz, float)), np.asarray(move_xyz, float)])


def write_n5(
    dataset: Path, voxels: np.ndarray, chunks: Sequence[int] = (4, 8, 8), compression: object = "gzip"
) -> None:
    """Write a dataset of N5 with tensorstore, axes (x, y, z) in the file.

    Args:
        dataset: folder of the dataset.
        voxels: the image (z, y, x).
        chunks: shape of a block.
        compression: name of the compression, or its entry in the attributes.
    """
    tensorstore = pytest.importorskip("tensorstore")
    metadata = {
        "dimensions": voxels.shape[::-1],
        "blockSize": chunks[::-1],
        "dataType": voxels.dtype.name,
        "compression": {"type": compression} if isinstance(compression, str) else compression,
    }
    spec = {"driver": "n5", "kvstore": {"driver": "file", "path": str(dataset)}, "metadata": metadata}
    tensorstore.open(spec, create=True).result().write(voxels.T).result()


def write_bdv(
    path: Path,
    channels: Sequence[np.ndarray],
    *,
    spacing_um_zyx: Sequence[float],
    levels: int = 3,
    names: Sequence[str] | None = None,
    chunks: tuple[int, int, int] = (4, 8, 8),
    compression: str | None = "gzip",
    scenes: Sequence[str] = (),
    times: int = 1,
    unit: str | None = "um",
    transforms: Sequence[np.ndarray] | None = None,
    missing: Sequence[tuple[int, int]] = (),
    partitioned: bool = False,
    timepoints: str = "range",
) -> Path:
    """Write a dataset of BigDataViewer, `.h5` or `.n5` and the `.xml` beside it; returns the path of the XML.

    Args:
        path: the HDF5 file, or the folder of N5.
        channels: images (z, y, x); scene s at time point t holds those, plus 10 s + t.
        spacing_um_zyx: voxel size of the finest level, in the unit.
        levels: number of resolution levels.
        names: names of the channels.
        chunks: shape of a chunk.
        compression: as h5py's, or as in `write_n5`.
        scenes: names of tiles; empty for one image.
        times: number of time points.
        unit: unit of the voxel size; None for none.
        transforms: registration of all views, matrices (3, 4), the first applied last; None for the voxel size, as Fiji's export writes it.
        missing: time point and setup of views that are not written.
        partitioned: True for each time point in a file of its own.
        timepoints: "range", "list" or "pattern" in the XML.
    """
    n5 = path.suffix == ".n5"
    h5py = None if n5 else pytest.importorskip("h5py")
    spacing_xyz = list(spacing_um_zyx)[::-1]
    tiles = list(scenes) or [""]
    views = list(product(range(len(tiles)), range(len(channels))))
    parts = [path.with_name(f"{path.stem}-{time:02d}-00.h5") for time in range(times)] if partitioned else []

    root = ET.Element("SpimData", version="0.2")
    _element(root, "BasePath", ".", type="relative")
    sequence = _element(root, "SequenceDescription")
    loader = _element(sequence, "ImageLoader", format="bdv.n5" if n5 else "bdv.hdf5")
    _element(loader, "n5" if n5 else "hdf5", path.name, type="relative")
    for time, part in enumerate(parts):
        partition = _element(loader, "partition")
        _element(partition, "path", part.name, type="relative")
        _element(partition, "timepoints", time)
        _element(partition, "setups", " ".join(str(number) for number in range(len(views))))
    setups, registrations = _element(sequence, "ViewSetups"), ET.Element("ViewRegistrations")
    with nullcontext() if n5 else h5py.File(path, "w") as file:
        for setup, (scene, channel) in enumerate(views):
            images, factors = pyramid(channels[channel], levels, spacing_um_zyx)
            view = _element(setups, "ViewSetup")
            _element(view, "id", setup)
            _element(view, "name", f"setup {setup}")
            _element(view, "size", " ".join(str(n) for n in images[0].shape[::-1]))
            size = _element(view, "voxelSize")
            if unit is not None:
                _element(size, "unit", unit)
            _element(size, "size", _numbers(spacing_xyz))
            attributes = _element(view, "attributes")
            for name, number in (("illumination", 0), ("channel", channel), ("tile", scene), ("angle", 0)):
                _element(attributes, name, number)
            if n5:
                group = path / f"setup{setup}"
                group.mkdir(parents=True)
                attributes = {"downsamplingFactors": factors[:, ::-1].tolist(), "dataType": images[0].dtype.name}
                (group / "attributes.json").write_text(json.dumps(attributes), encoding="utf-8")
            else:
                file.create_dataset(f"s{setup:02d}/resolutions", data=factors[:, ::-1].astype("f8"))
                file.create_dataset(f"s{setup:02d}/subdivisions", data=np.tile(chunks[::-1], (levels, 1)).astype("i4"))
                if images[0].dtype not in (np.uint16, np.int16):
                    file[f"s{setup:02d}"].attrs["dataType"] = images[0].dtype.name
            for time in range(times):
                if (time, setup) in missing:
                    continue
                registration = _element(registrations, "ViewRegistration", timepoint=str(time), setup=str(setup))
                for matrix in [scaling(spacing_xyz)] if transforms is None else transforms:
                    _element(_element(registration, "ViewTransform", type="affine"), "affine", _numbers(matrix))
                group = f"t{time:05d}/s{setup:02d}"
                target = h5py.File(parts[time], "a") if parts else file
                for level, coarse in enumerate(images):
                    moved = coarse + np.asarray(10 * scene + time, coarse.dtype)
                    if n5:
                        write_n5(path / f"setup{setup}/timepoint{time}/s{level}", moved, chunks, compression)
                        continue
                    stored = moved.view(np.int16) if moved.dtype == np.uint16 else moved
                    chunk = tuple(map(min, chunks, stored.shape))
                    target.create_dataset(f"{group}/{level}/cells", data=stored, chunks=chunk, compression=compression)
                if parts:
                    target.close()
                    file[group] = h5py.ExternalLink(parts[time].name, f"/{group}")
    for name, values in (("channel", names), ("tile", scenes)):
        listed = _element(setups, "Attributes", name=name)
        for number, value in enumerate(values or ()):
            entry = _element(listed, name.capitalize())
            _element(entry, "id", number)
            _element(entry, "name", value)
    points = _element(sequence, "Timepoints", type=timepoints)
    if timepoints == "range":
        _element(points, "first", 0)
        _element(points, "last", times - 1)
    elif timepoints == "list":
        for time in range(times):
            _element(_element(points, "Timepoint"), "id", time)
    else:
        _element(points, "integerpattern", f"0-{times - 1}")
    absent = _element(sequence, "MissingViews")
    for time, setup in missing:
        _element(absent, "MissingView", timepoint=str(time), setup=str(setup))
    root.append(registrations)
    xml = path.with_suffix(".xml")
    ET.ElementTree(root).write(xml, xml_declaration=True, encoding="utf-8")
    return xml
