"""The label of a cube in memory, the versions of its file before each save, and the file of what is painted and not saved yet."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_selma.annotation.cubes import read_cube
from nnunet_selma.annotation.layout import LABEL, UNSAVED, file_hash, numbered_files, unsaved_files
from nnunet_selma.errors import SelmaError
from nnunet_selma.running.whole_files import whole_file
from nnunet_selma.volumes import Volume, open_volume
from nnunet_selma.volumes.base import Array, by_times
from nnunet_selma.volumes.labels import check_labels, label_values
from nnunet_selma.volumes.nifti_writing import label_header, write_label_nifti

VERSIONS = "versions"
"""Folder in that of a cube for the versions of the label before each save."""
_MOST = 2**16 - 1
"""Largest value of a label that is painted."""
_NOT_WRITTEN = "it is not written, and the files of the cube stay as they are; undo what changed it, or close this window and open the cube again"


class _Painted(Volume):
    """Labels in memory."""

    def __init__(self, voxels: Array, path: Path) -> None:
        z, y, x = voxels.shape
        self.path, self.shape, self.dtype, self.spacing_um_zyx = path, (z, y, x), voxels.dtype, None
        self._voxels = voxels

    def _read(self, z: slice, y: slice, x: slice) -> Array:
        return self._voxels[z, y, x]


@dataclass
class CubeLabel:
    """The label of a cube, in memory while it is painted."""

    folder: Path
    voxels: Array
    """(z, y, x); napari paints into this array."""
    stored: Array
    """The voxels of the file."""
    header: Any
    """Header of NIfTI for what is saved; the file may be gone by then."""
    digest: str
    """SHA-256 of the file when it was opened or saved last."""
    saves: int = 0
    """Number of times that it was saved."""
    unsaved_file: Path | None = None
    """File beside the label for what was painted and not saved; no other window writes to it."""
    unsaved_voxels: Array | None = None
    """The voxels of `unsaved_file`."""

    @staticmethod
    def open(folder: Path) -> "CubeLabel":
        """The label of a cube; raises `SelmaError` if its file is missing, damaged, of another size, or no label, or the folder is no cube."""
        shape = tuple(read_cube(folder)["shape_zyx"])
        path = folder / LABEL
        volume = open_volume(path)
        if volume.shape != shape:
            raise SelmaError(
                f"{path}: has {by_times(volume.shape)} voxels (z, y, x), the cube {by_times(shape)}; restore the label from {VERSIONS}"
            )
        check_labels(volume)
        digest = file_hash(path)
        voxels = label_values(volume.read(), path)
        highest = int(voxels.max(initial=0))
        if highest > _MOST:
            raise SelmaError(
                f"{path}: holds the value {highest}, and values up to {_MOST} are painted; give the structures smaller numbers"
            )
        dtype = np.min_scalar_type(highest)
        header = label_header(volume, path)
        return CubeLabel(folder, voxels.astype(dtype), voxels.astype(dtype), header, digest)

    @property
    def path(self) -> Path:
        """File of the label."""
        return self.folder / LABEL

    def take(self, voxels: Any) -> None:
        """Take the array (z, y, x) that is painted from now on; raises `SelmaError`, and keeps the array before, if it is no label of the cube."""
        array = np.asarray(voxels)
        self._checked(array)
        self.voxels = array

    def save(self) -> str:
        """Write the label to its file, whole or not at all, and keep the file before; returns a sentence with its place in the folder of the cube."""
        before = self._copy_to_versions()
        self._write(self.path)
        expected, self.digest = self.digest, file_hash(self.path)
        self.stored, self.saves = self.voxels.copy(), self.saves + 1
        self.write_unsaved()
        saved = f"{self.path.name}: saved"
        if before is None:
            return f"{saved}; the file before was removed or renamed meanwhile"
        version = before.relative_to(self.folder)
        if file_hash(before) != expected:
            return f"{saved}; another program had saved it meanwhile, and that version is {version}"
        return f"{saved}; the version before is {version}"

    def write_unsaved(self) -> Path | None:
        """Write what was painted and not saved to a file beside the label, the same one every time; returns its path, or None if all is saved."""
        if self.unsaved_file and not self.unsaved_file.is_file():
            self.unsaved_file = self.unsaved_voxels = None
        if np.array_equal(self.voxels, self.stored):
            if self.unsaved_file:
                self.unsaved_file.unlink(missing_ok=True)
            self.unsaved_file = self.unsaved_voxels = None
        elif self.unsaved_voxels is None or not np.array_equal(self.voxels, self.unsaved_voxels):
            self.unsaved_file = self.unsaved_file or _new_file(self.folder, UNSAVED)
            self._write(self.unsaved_file)
            self.unsaved_voxels = self.voxels.copy()
        return self.unsaved_file

    def write_beside(self, voxels: Array) -> Path:
        """Write voxels (z, y, x) that are not those of the label to a new file of `unsaved_files`; raises `SelmaError` if they are no label of the cube."""
        checked = self._checked(voxels)
        path = _new_file(self.folder, UNSAVED)
        write_label_nifti(path, _Painted(checked, path), self.header)
        return path

    def unsaved_files(self) -> list[Path]:
        """Files that `write_unsaved` and `write_beside` have written, also in windows that were killed or are open."""
        return unsaved_files(self.folder)

    def _copy_to_versions(self) -> Path | None:
        """Copy the file to the versions; returns the path of the copy, or None if there is no file."""
        folder = self.folder / VERSIONS
        folder.mkdir(exist_ok=True)
        before = _next(folder, "label")
        if not self.path.is_file():
            return None
        with whole_file(before) as copying:
            shutil.copyfile(self.path, copying)
        return before

    def _write(self, path: Path) -> None:
        write_label_nifti(path, _Painted(self._checked(self.voxels), path), self.header)

    def _checked(self, voxels: Array) -> Array:
        """The same values as uint8 or uint16; raises `SelmaError` if they are no label of the cube."""
        shape = self.stored.shape
        if voxels.shape != shape:
            raise SelmaError(
                f"the painted layer has {by_times(voxels.shape)} voxels, the cube {by_times(shape)} (z, y, x); {_NOT_WRITTEN}"
            )
        whole = voxels.dtype.kind in "bui" or (voxels.dtype.kind == "f" and (voxels == np.rint(voxels)).all())
        if not whole or voxels.min() < 0 or voxels.max() > _MOST:
            raise SelmaError(
                f"the painted layer holds other values than whole numbers from 0 to {_MOST}; {_NOT_WRITTEN}"
            )
        return voxels.astype(np.min_scalar_type(int(voxels.max())))


def _next(folder: Path, name: str) -> Path:
    """The file after the last of `numbered_files`."""
    number = 1 + max((number for number, _ in numbered_files(folder, name)), default=0)
    return folder / f"{name}_{number:04d}.nii.gz"


def _new_file(folder: Path, name: str) -> Path:
    """An empty file after the last of `numbered_files`, which no other process can make too."""
    while True:
        path = _next(folder, name)
        try:
            path.open("x").close()
        except FileExistsError:
            continue
        return path
