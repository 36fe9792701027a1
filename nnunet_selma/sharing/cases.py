"""A case as grand-challenge.org hands it to a container: an image in a folder, and a list of inputs that names it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_selma.errors import SelmaError
from nnunet_selma.running.json_files import read_json
from nnunet_selma.sharing.editions import INPUTS, Edition
from nnunet_selma.structures import Structure, of_case
from nnunet_selma.volumes.base import stem

_ENDINGS = (".mha", ".tif", ".tiff")
_KINDS = ".mha, .tif or .tiff"
_MOST_NAMED = 5


@dataclass(frozen=True)
class Case:
    """One image, and the name under which it was uploaded."""

    path: Path
    name: str
    """Name in the list of inputs, or else of the file; begins with the structure, as in cell_nuclei_2301.mha."""

    @property
    def structure(self) -> Structure | None:
        """The structure that the name begins with."""
        return of_case(stem(Path(self.name)))


def find_case(folder: Path, edition: Edition) -> Case:
    """The case in an input folder.

    Args:
        folder: the input folder, with `inputs.json` where the platform writes it.
        edition: says where the image is if the list of inputs does not.

    Raises:
        SelmaError: there is no image, or more than one, or the list of inputs cannot be read.
    """
    if not folder.is_dir():
        raise SelmaError(f"{folder}: there is no such folder; mount the input there")
    where, name = edition.images, ""
    if (folder / INPUTS).is_file():
        where, name = _listed(folder / INPUTS, edition)
    path = _only_image(folder / where)
    return Case(path, name or path.name)


def _listed(file: Path, edition: Edition) -> tuple[str, str]:
    """Folder and name of the image in a list of inputs; what the list leaves out is the edition's folder, and an empty name."""
    content: Any = read_json(file)
    if not isinstance(content, list) or not all(isinstance(entry, dict) for entry in content):
        raise SelmaError(f"{file}: is no list of inputs as grand-challenge.org writes it; restore it")
    images = [entry for entry in content if entry.get("image")]
    if len(images) != 1:
        raise SelmaError(f"{file}: lists {len(images) or 'no'} images, and one is needed")
    (entry,) = images
    socket, image = entry.get("socket") or entry.get("interface") or {}, entry["image"]  # the latter in 2025
    if not isinstance(socket, dict) or not isinstance(image, dict):
        raise SelmaError(f"{file}: describes its image otherwise than grand-challenge.org does; restore it")
    return str(socket.get("relative_path") or edition.images), str(image.get("name") or "")


def _only_image(folder: Path) -> Path:
    if not folder.is_dir():
        raise SelmaError(f"{folder}: there is no such folder; the image is expected there")
    images = sorted(
        path for path in folder.iterdir() if path.suffix.lower() in _ENDINGS and not path.name.startswith(".")
    )
    if not images:
        raise SelmaError(f"{folder}: holds no image; one {_KINDS} is needed")
    if len(images) > 1:
        more = f" and {len(images) - _MOST_NAMED} more" if len(images) > _MOST_NAMED else ""
        listed = ", ".join(path.name for path in images[:_MOST_NAMED])
        raise SelmaError(f"{folder}: holds several images ({listed}{more}), and one is needed; leave the others out")
    return images[0]
