"""A cube in napari: its image, its surroundings, and a label to paint, which goes back to its file when the user saves.

Every stroke goes to a file beside the label when it ends, so that a kill loses none.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from nnunet_selma.annotation.cube_label import CubeLabel
from nnunet_selma.annotation.cubes import NOT_FOR_ANNOTATION, read_cube
from nnunet_selma.annotation.layout import CONTEXT, IMAGE
from nnunet_selma.annotation.other_layers import layers_with_voxels, part_in_cube
from nnunet_selma.errors import SelmaError, counted
from nnunet_selma.pictures.viewing import LayerData, layers
from nnunet_selma.structures import SpacingUm
from nnunet_selma.volumes.pyramids import open_zarr_group
from nnunet_selma.volumes.segmented import image_at

_LATER = 1000
"""Milliseconds after which a change that is no finished stroke is written: undo, redo, data from a plugin, or a long stroke on its way."""


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


class PaintingWindow:
    """A window of napari in which the label of a cube is painted.

    Args:
        label: the label.
        say: shows a sentence.
    """

    def __init__(self, label: CubeLabel, say: Callable[[str], None]) -> None:
        self._label, self._say = label, say
        self._viewer: Any = None
        self._layer: Any = None

    def prepare(self, viewer: Any) -> None:
        """Let a button at the side save the label, write what is painted to a file beside it after every stroke, and choose its layer."""
        # both come with napari
        from magicgui.widgets import PushButton  # type: ignore[import-not-found]
        from qtpy.QtCore import QTimer  # type: ignore[import-not-found, attr-defined]

        self._viewer, self._layer = viewer, viewer.layers["label"]
        layer, label = self._layer, self._label
        viewer.layers.selection.active = layer

        def autosave() -> None:
            with _told(label, self._say):
                label.take(layer.data)
                label.write_unsaved()

        def take(_: Any = None) -> None:
            with suppress(SelmaError):  # the timer says it
                label.take(layer.data)

        label.take(layer.data)
        timer = QTimer()
        timer.setSingleShot(True)
        timer.timeout.connect(autosave)
        layer.events.data.connect(take)  # plugins replace the array
        # the event of a polygon comes before its voxels are in the array, hence the timer
        layer.events.paint.connect(lambda _: timer.start(0))
        layer.events.set_data.connect(lambda _: timer.isActive() or timer.start(_LATER))

        button = PushButton(text="Save label.nii.gz")
        button.changed.connect(lambda _=None: self._save())
        viewer.window.add_dock_widget(button.native, name="cube", area="right")

    def close(self) -> list[tuple[str, Path | None]]:
        """Write what other layers of labels hold to files beside the label, when the window is closed.

        Returns:
            Sentences about what was not saved, each with the file that holds it now, or None if no file does.
        """
        if self._viewer is None:
            return []
        sentences: list[tuple[str, Path | None]] = []
        try:
            self._label.take(self._layer.data)
        except SelmaError as error:
            sentences.append((str(error), None))
        for layer in layers_with_voxels(self._viewer, self._layer):
            sentences.append(self._write_other(layer))
        return sentences

    def _save(self) -> None:
        with _told(self._label, self._say):
            self._label.take(self._layer.data)
            self._say(self._label.save())
        for layer in layers_with_voxels(self._viewer, self._layer):
            self._say(f"the layer {layer.name!r} holds voxels too, and is not saved; only the layer of the label is")

    def _write_other(self, layer: Any) -> tuple[str, Path | None]:
        """Write the part of a layer in the cube; returns a sentence, and the file."""
        name = f"the layer {layer.name!r}"
        try:
            inside, outside = part_in_cube(layer, self._layer, self._label.voxels.shape)
            path = self._label.write_beside(inside) if inside.any() else None
        except (SelmaError, OSError) as error:
            return f"{name} held voxels that were not saved, and they cannot be kept: {error}", None
        lost = f"; {counted(outside, 'voxel')} outside the cube could not be kept" if outside else ""
        if path is None:
            return f"{name} held no voxels in the cube{lost}", None
        return f"{path}: holds what {name} held and was not saved{lost}", path


@contextmanager
def _told(label: CubeLabel, say: Callable[[str], None]) -> Iterator[None]:
    """Say that a file cannot be written, or the layer is no label, instead of raising the error: the window has what was painted as long as it is open."""
    try:
        yield
    except SelmaError as error:
        say(str(error))
    except OSError as error:
        say(f"could not be written: {error}; make room for {label.folder}, and save before you close this window")
