"""LIF files for tests: a header in XML, then the voxels of each image in a block of memory."""

import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

AXES = {"x": 1, "y": 2, "z": 3, "t": 4, "λ": 5, "a": 6, "s": 10}
"""Number of each axis in LIF; s are the tiles of a mosaic."""


def write_lif(
    path: Path,
    images: Mapping[str, np.ndarray],
    *,
    axes: str = "tczyx",
    spacing_um_zyx: Sequence[float] = (3.0, 2.0, 1.5),
    names: Sequence[str] | None = None,
    unit: str = "m",
) -> Path:
    """Write images, by their names, with these axes; the channels c come right before y and x, as microscopes write them."""
    root = ElementTree.Element("LMSDataContainerHeader", Version="2")
    children = ElementTree.SubElement(ElementTree.SubElement(root, "Element", Name=path.stem), "Children")
    blocks = []
    for number, (name, voxels) in enumerate(images.items()):
        element = ElementTree.SubElement(children, "Element", Name=name)
        description = ElementTree.SubElement(
            ElementTree.SubElement(ElementTree.SubElement(element, "Data"), "Image"), "ImageDescription"
        )
        order = [axis for axis in axes if axis not in "cyx"] + [axis for axis in "cyx" if axis in axes]
        stored = np.ascontiguousarray(voxels.transpose([axes.index(axis) for axis in order]))
        steps = dict(zip(order, stored.strides, strict=True))
        lengths = dict(zip(order, stored.shape, strict=True))
        channels = ElementTree.SubElement(description, "Channels")
        for channel in range(lengths.get("c", 1)):
            ElementTree.SubElement(
                channels,
                "ChannelDescription",
                DataType="0",
                ChannelTag="0",
                Resolution=str(8 * voxels.itemsize),
                NameOfMeasuredQuantity="",
                Min="0",
                Max="65535",
                Unit="",
                LUTName=names[channel] if names else "",
                IsLUTInverted="0",
                BytesInc=str(channel * steps.get("c", 0)),
                BitInc="0",
            )
        dimensions = ElementTree.SubElement(description, "Dimensions")
        edges = dict(zip("zyx", spacing_um_zyx, strict=True))
        for axis in reversed([axis for axis in order if axis != "c"]):
            ElementTree.SubElement(
                dimensions,
                "DimensionDescription",
                DimID=str(AXES[axis]),
                NumberOfElements=str(lengths[axis]),
                Origin="0",
                Length=repr(edges.get(axis, 1.0) * 1e-6 * (lengths[axis] - 1)),
                Unit=unit if axis in "zyx" else "s",
                BytesInc=str(steps[axis]),
                BitInc="0",
            )
        ElementTree.SubElement(element, "Memory", Size=str(stored.nbytes), MemoryBlockID=f"MemBlock_{number}")
        blocks.append((f"MemBlock_{number}", stored.tobytes()))
    header = ElementTree.tostring(root, encoding="unicode")
    with path.open("wb") as file:
        file.write(struct.pack("<IIBI", 0x70, 2 * len(header) + 5, 0x2A, len(header)) + header.encode("utf-16-le"))
        for name, data in blocks:
            file.write(struct.pack("<IIBQBI", 0x70, 2 * len(name) + 14, 0x2A, len(data), 0x2A, len(name)))
            file.write(name.encode("utf-16-le") + data)
    return path
