"""A cube in napari: its image, its surroundings, and a label to paint, which goes back to its file when the user saves."""

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_selma.annotation.cubes import NOT_FOR_ANNOTATION
from nnunet_selma.annotation.layout import CONTEXT, CUBE, IMAGE, LABEL
from nnunet_selma.errors import SelmaError
from nnunet_selma.pictures.viewing import LayerData, layers
from nnunet_selma.running.json_files import read_json
from nnunet_selma.structures import SpacingUm
from nnunet_selma.volumes import Volume, open_volume
from nnunet_selma.volumes.base import Array, by_times
from nnunet_selma.volumes.labels import check_labels
from nnunet_selma.volumes.nifti_writing import write_label_nifti
from nnunet_selma.volumes.pyramids import open_zarr_group
from nnunet_selma.volumes.segmented import image_at

VERSIONS, UNSAVED = "versions", "unsaved.nii.gz"


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
    saves: int = 0
    """Number of times that it was saved."""

    @staticmethod
    def open(folder: Path) -> "CubeLabel":
        """The label of a cube; raises `SelmaError` if its file is missing, damaged, of another size, or no label."""
        shape = tuple(read_json(folder / CUBE)["shape_zyx"])
        volume = open_volume(folder / LABEL)
        if volume.shape != shape:
            raise SelmaError(
                f"{folder / LABEL}: has {by_times(volume.shape)} voxels (z, y, x), the cube {by_times(shape)}; restore the label from {VERSIONS}"
            )
        check_labels(volume)
        voxels = volume.read()
        dtype = np.uint8 if voxels.max(initial=0) < 256 else np.uint16
        return CubeLabel(folder, voxels.astype(dtype), voxels.astype(dtype))

    @property
    def path(self) -> Path:
        """File of the label."""
        return self.folder / LABEL

    def save(self) -> Path:
        """Write the label to its file, whole or not at all, and keep the version before; returns the path of that version."""
        folder = self.folder / VERSIONS
        folder.mkdir(exist_ok=True)
        number = 1 + max(
            (int(p.name.split("_")[1].split(".")[0]) for p in folder.glob("label_[0-9]*.nii.gz")), default=0
        )
        before = folder / f"label_{number:04d}.nii.gz"
        copying = folder / f"{before.name}.partial"
        shutil.copyfile(self.path, copying)
        os.replace(copying, before)
        write_label_nifti(self.path, _Painted(self.voxels, self.path), before)
        self.stored, self.saves = self.voxels.copy(), self.saves + 1
        return before

    def keep_unsaved(self) -> Path | None:
        """Write what was painted and not saved to another file beside the label; returns its path, or None if all is saved."""
        if np.array_equal(self.voxels, self.stored):
            return None
        path = self.folder / UNSAVED
        write_label_nifti(path, _Painted(self.voxels, path), self.path)
        return path


def cube_layers(label: CubeLabel) -> list[LayerData]:
    """Layers for napari: the surroundings, darker, the channels of the image over them, and the label to paint."""
    spacing: SpacingUm = tuple(read_json(label.folder / CUBE)["spacing_um_zyx"])
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
    """Let Ctrl+S, and a button at the side, save the label of a cube; the label layer is chosen, and its brush."""
    layer = viewer.layers["label"]
    viewer.layers.selection.active = layer
    label.voxels = layer.data

    def save(_: Any = None) -> None:
        label.voxels = layer.data
        before = label.save()
        say(f"{label.path}: saved; the version before is {before}")

    viewer.bind_key("Control-S", save, overwrite=True)
    from magicgui.widgets import PushButton  # type: ignore[import-not-found]  # comes with napari

    button = PushButton(text="Save label.nii.gz")
    button.changed.connect(save)
    viewer.window.add_dock_widget(button.native, name="cube", area="right")
