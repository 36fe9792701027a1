"""A window of napari without Qt: a button, a timer, and a layer that is painted."""

import os
import signal
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import numpy as np

from nnunet_selma.annotation.cube_label import CubeLabel
from nnunet_selma.annotation.painting import PaintingWindow


class Event:
    """Stands for an event of napari, and a signal of Qt."""

    def __init__(self):
        self.calls = []

    def connect(self, call):
        self.calls.append(call)

    def __call__(self):
        for call in self.calls:
            call(None)


class Layer:
    """Stands for the layer of the label."""

    def __init__(self, data):
        self.data = data
        self.events = SimpleNamespace(data=Event(), paint=Event(), set_data=Event())


class Layers(dict):
    """Stands for the layers of the viewer."""

    selection = SimpleNamespace(active=None)

    def __iter__(self):
        return iter(self.values())


class Button:
    """Stands for magicgui's button."""

    native = "button"
    buttons: ClassVar[list] = []

    def __init__(self, text):
        self.changed = SimpleNamespace(connect=lambda call: Button.buttons.append((text, call)))


class Timer:
    """Stands for Qt's timer, whose time passes when a test says so."""

    timers: ClassVar[list] = []

    def __init__(self):
        self.timeout = SimpleNamespace(connect=lambda call: setattr(self, "call", call))
        self.left = None
        Timer.timers.append(self)

    def setSingleShot(self, single):
        self.single = single

    def isActive(self):
        return self.left is not None

    def start(self, milliseconds):
        self.left = milliseconds

    @staticmethod
    def wait(milliseconds=0):
        """Let time pass in the window that was opened last."""
        timer = Timer.timers[-1]
        assert timer.single
        if timer.isActive():
            timer.left -= milliseconds
            if timer.left <= 0:
                timer.left = None
                timer.call()


MODULES = {
    "magicgui": SimpleNamespace(),
    "magicgui.widgets": SimpleNamespace(PushButton=Button),
    "qtpy": SimpleNamespace(),
    "qtpy.QtCore": SimpleNamespace(QTimer=Timer),
}
"""Stand for the modules that need Qt; napari is imported before."""


def window():
    """Stands for the window of napari's viewer."""
    return SimpleNamespace(add_dock_widget=lambda widget, **_: None)


def napari_layer(label, say=print):
    """napari's layer of the label of a cube, in its viewer, of which only the window is not real."""
    from napari.components import ViewerModel
    from napari.layers import Labels

    viewer = ViewerModel()
    layer = viewer.add_layer(Labels(label.voxels, name="label"))
    PaintingWindow(label, say).prepare(SimpleNamespace(layers=viewer.layers, window=window()))
    return layer


def stroke(layer, value, *ends, plane=4):
    """Draw with the mouse from one point (y, x) to the next, as napari does; let the time of an event pass between two of them."""
    layer.mode, layer.selected_label, layer.brush_size = "paint", value, 1
    mouse = SimpleNamespace(type="mouse_press", view_direction=None, dims_displayed=[1, 2], dims_point=[plane, 0, 0])
    mouse.position = (plane, *ends[0])
    drawing = layer.mouse_drag_callbacks[-1](layer, mouse)
    next(drawing)
    for end in ends[1:]:
        Timer.wait()
        mouse.type, mouse.position = "mouse_move", (plane, *end)
        next(drawing)
    Timer.wait()
    mouse.type = "mouse_release"
    next(drawing, None)


def paint_until_killed(folder):
    """Paint two strokes in a cube; a kill comes when the second is about to be in its file."""
    import napari.components  # noqa: F401

    sys.modules.update(MODULES)
    label = CubeLabel.open(Path(folder))
    layer = napari_layer(label)
    stroke(layer, 3, (2, 2), (2, 9))
    Timer.wait()
    os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
    stroke(layer, 5, (7, 2), (7, 9))
    assert np.count_nonzero(layer.data == 5)
    Timer.wait()
