"""A cube in napari: its image, its surroundings, and a label to paint, which goes back to its file when the user saves.

What is painted and not saved lies in a file beside the label after every stroke, so that a kill loses none of it.
"""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_selma.annotation.cubes import NOT_FOR_ANNOTATION, read_cube
from nnunet_selma.annotation.layout import CONTEXT, IMAGE, LABEL, UNSAVED, file_hash, numbered_files, unsaved_files
from nnunet_selma.errors import SelmaError
from nnunet_selma.pictures.viewing import LayerData, layers
from nnunet_selma.running.whole_files import whole_file
from nnunet_selma.structures import SpacingUm
from nnunet_selma.volumes import Volume, open_volume
from nnunet_selma.volumes.base import Array, by_times
from nnunet_selma.volumes.labels import check_labels, label_values
from nnunet_selma.volumes.nifti_writing import label_header, write_label_nifti
from nnunet_selma.volumes.pyramids import open_zarr_group
from nnunet_selma.volumes.segmented import image_at

VERSIONS = "versions"
"""Folder in that of a cube for the versions of the label before each save."""
_MOST = 2**16 - 1
"""Largest value of a label that is painted."""
_LATER = 1000
"""Milliseconds after which a change that is no finished stroke is kept: undo, redo, data from a plugin, or a long stroke on its way."""


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
    unsaved: Path | None = None
    """File beside the label for what was painted and not saved; no other window writes to it."""
    kept: Array | None = None
    """The voxels of that file."""

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
        dtype = np.uint8 if highest < 256 else np.uint16
        header = label_header(volume, path)
        return CubeLabel(folder, voxels.astype(dtype), voxels.astype(dtype), header, digest)

    @property
    def path(self) -> Path:
        """File of the label."""
        return self.folder / LABEL

    def save(self) -> str:
        """Write the label to its file, whole or not at all, and keep the file before; returns a sentence with its place in the folder of the cube."""
        before = self._keep_file()
        self._write(self.path)
        expected, self.digest = self.digest, file_hash(self.path)
        self.stored, self.saves = self.voxels.copy(), self.saves + 1
        self.keep_unsaved()
        saved = f"{self.path.name}: saved"
        if before is None:
            return f"{saved}; the file before was removed or renamed meanwhile"
        version = before.relative_to(self.folder)
        if file_hash(before) != expected:
            return f"{saved}; another program had saved it meanwhile, and that version is {version}"
        return f"{saved}; the version before is {version}"

    def keep_unsaved(self) -> Path | None:
        """Write what was painted and not saved to a file beside the label, the same one every time; returns its path, or None if all is saved."""
        if self.unsaved and not self.unsaved.is_file():
            self.unsaved = self.kept = None
        if np.array_equal(self.voxels, self.stored):
            if self.unsaved:
                self.unsaved.unlink(missing_ok=True)
            self.unsaved = self.kept = None
        elif self.kept is None or not np.array_equal(self.voxels, self.kept):
            self.unsaved = self.unsaved or _new_file(self.folder, UNSAVED)
            self._write(self.unsaved)
            self.kept = self.voxels.copy()
        return self.unsaved

    def kept_unsaved(self) -> list[Path]:
        """Files that `keep_unsaved` has written, also in windows that were killed or are open."""
        return unsaved_files(self.folder)

    def _keep_file(self) -> Path | None:
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
        write_label_nifti(path, _Painted(self.voxels, path), self.header)


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


def cube_layers(label: CubeLabel) -> list[LayerData]:
    """Layers for napari: the surroundings, darker, the channels of the image over them, and the label to paint."""
    spacing: SpacingUm = tuple(read_cube(label.folder)["spacing_um_zyx"])
    around = layers(image_at(label.folder / CONTEXT), spacing)
    image = layers(image_at(label.folder / IMAGE), spacing)
    offset = _offset(label.folder, spacing)
    for _, options, _ in around:
        options |= {"name": f"surroundings, not to be annotated: {options['name']}", "opacity": 0.35}
        options["translate"] = tuple(t - o for t, o in zip(options["translate"], offset, strict=True))
    place = {name: image[0][1][name] for name in ("scale", "translate", "units")}
    painted: LayerData = (label.voxels, {"name": "label", "opacity": 0.6, **place}, "labels")
    return [*around, *image, painted]


def _offset(folder: Path, spacing: SpacingUm) -> SpacingUm:
    """Distance, µm, from the first voxel of the surroundings to that of the cube."""
    inside = open_zarr_group(folder / CONTEXT).attrs[NOT_FOR_ANNOTATION]["cube_start_zyx"]
    z, y, x = (s * edge for s, edge in zip(inside, spacing, strict=True))
    return z, y, x


def let_save(viewer: Any, label: CubeLabel, say: Callable[[str], None]) -> None:
    """Let a button at the side save the label of a cube, keep what is painted after every stroke, and choose the layer of the label."""
    # both come with napari
    from magicgui.widgets import PushButton  # type: ignore[import-not-found]
    from qtpy.QtCore import QTimer  # type: ignore[import-not-found, attr-defined]

    layer = viewer.layers["label"]
    viewer.layers.selection.active = layer

    def take(_: Any = None) -> None:
        label.voxels = layer.data  # plugins replace the array

    def save(_: Any = None) -> None:
        take()
        with _told(label, say):
            say(label.save())

    def keep() -> None:
        take()
        with _told(label, say):
            label.keep_unsaved()

    take()
    timer = QTimer()
    timer.setSingleShot(True)
    timer.timeout.connect(keep)
    layer.events.data.connect(take)
    # napari announces a polygon before it is in the array, hence the timer
    layer.events.paint.connect(lambda _: timer.start(0))
    layer.events.set_data.connect(lambda _: timer.isActive() or timer.start(_LATER))

    button = PushButton(text="Save label.nii.gz")
    button.changed.connect(save)
    viewer.window.add_dock_widget(button.native, name="cube", area="right")


@contextmanager
def _told(label: CubeLabel, say: Callable[[str], None]) -> Iterator[None]:
    """Say that a file cannot be written, instead of raising the error: the window has what was painted as long as it is open."""
    try:
        yield
    except OSError as error:
        say(f"could not be written: {error}; make room for {label.folder}, and save before you close this window")
