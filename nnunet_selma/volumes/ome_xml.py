"""OME-XML in TIFF files: the images that it describes, and the pages in which each lies.

Source: "OME-TIFF specification", ome-model.readthedocs.io. Each `TiffData` of an image places some of its planes in consecutive pages, from
`IFD` on; it may name the file that holds them, by a name and by the `UUID` of that file's own XML. Otherwise it is this file.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

from nnunet_selma.errors import SelmaError
from nnunet_selma.structures import SpacingUm
from nnunet_selma.volumes.stated_names import stated_names
from nnunet_selma.volumes.units import spacing_in_um


class OmeImage(NamedTuple):
    """An image in OME-XML."""

    pixels: ElementTree.Element
    pages: tuple[range, ...]
    """Numbers of the pages of this file that hold it."""
    files: frozenset[str]
    """Names of the files that it names."""

    @property
    def order(self) -> str:
        """Axes before y and x, in OME's letters, the slowest first."""
        return self.pixels.get("DimensionOrder", "XYZCT")[:1:-1]

    @property
    def lengths(self) -> tuple[int, ...]:
        """Length of each of these axes."""
        return tuple(int(self.pixels.get(f"Size{axis}", 1)) for axis in self.order)

    @property
    def spacing_um_zyx(self) -> SpacingUm | None:
        """Voxel size in µm; a size without unit is in µm, as OME defines, and one that is no number is none."""
        try:
            sizes = [float(self.pixels.get(f"PhysicalSize{axis}", "").replace(",", ".")) for axis in "ZYX"]
        except ValueError:
            return None
        return spacing_in_um(sizes, [self.pixels.get(f"PhysicalSize{axis}Unit", "µm") for axis in "ZYX"])

    @property
    def channel_names(self) -> tuple[str, ...]:
        """Names of the channels; empty unless all have one."""
        return stated_names([element.get("Name") for element in self.pixels if _tag(element) == "Channel"])

    @property
    def _description(self) -> list[tuple[str, str]]:
        """Sizes, type and names, without the identifier."""
        stated = sorted((name, text) for name, text in self.pixels.items() if name != "ID")
        return [*stated, *(("Name", name) for name in self.channel_names)]

    def is_like(self, other: "OmeImage") -> bool:
        """True if both are described alike."""
        return self._description == other._description


def ome_images(xml: str, file_name: str, file_pages: int) -> list[OmeImage]:
    """The images that lie in a file; all images where none names the file, because it was renamed; none if the XML is damaged.

    Args:
        xml: OME-XML, decoded.
        file_name: name of the file.
        file_pages: number of its pages.
    """
    try:
        # the text is decoded already, whatever encoding its declaration names
        root = ElementTree.fromstring(re.sub(r"^\s*<\?xml.*?\?>", "", xml, flags=re.DOTALL).encode())
    except ElementTree.ParseError:
        return []
    described = [element for element in root.iter() if _tag(element) == "Pixels"]
    names = {file_name.lower(), root.get("UUID", "")} - {""}
    here = [image for image in (_image(pixels, names, file_pages) for pixels in described) if image.pages]
    return here or [_image(pixels, None, file_pages) for pixels in described]


def _image(pixels: ElementTree.Element, names: set[str] | None, file_pages: int) -> OmeImage:
    """An image and its pages in the file with one of these names; None: in whatever file."""
    pages, files = [], set[str]()
    for data in pixels:
        if _tag(data) != "TiffData":
            continue
        uuid = next((element for element in data if _tag(element) == "UUID"), None)
        if uuid is not None:
            files.add(uuid.get("FileName", ""))
        if uuid is None or names is None or names & {uuid.get("FileName", "").lower(), uuid.text}:
            pages.append(_pages(data, file_pages))
    return OmeImage(pixels, tuple(pages), frozenset(files - {""}))


def _pages(data: ElementTree.Element, file_pages: int) -> range:
    """The pages that a `TiffData` names: without a number of planes one page, without a first page all pages."""
    count = data.get("PlaneCount") or data.get("NumPlanes") or ("1" if "IFD" in data.attrib else None)
    first = int(data.get("IFD", 0))
    return range(first, first + (int(count) if count else file_pages))


def ome_image(images: Sequence[OmeImage], pages: Sequence[int], path: Path) -> OmeImage | None:
    """The image to which pages of a file belong; None where there is no image.

    Raises:
        SelmaError: the pages belong to several images, or the XML does not tell to which.
    """
    if len(images) < 2:
        return next(iter(images), None)
    fitting = [image for image in images if all(any(page in part for part in image.pages) for page in pages)]
    if fitting and all(image.is_like(fitting[0]) for image in fitting):
        return fitting[0]
    files = ", ".join(sorted(frozenset[str]().union(*(image.files for image in images)))[:10])
    raise SelmaError(
        f"{path}: its OME-XML describes {len(images)} images and does not tell them apart in this file"
        + (f"; give the file the name that it had, one of {files}, beside the other files; or" if files else ";")
        + " save one image as a file of its own, in Fiji or in the program that wrote it"
    )


def _tag(element: ElementTree.Element) -> str:
    """Name of an element, without that of its schema."""
    return element.tag.rpartition("}")[2]
