"""Artists of matplotlib, read back from the figures that were saved."""

import numpy as np
from matplotlib.figure import Figure


def saved_figures(monkeypatch):
    """A list that every figure is added to when it is saved; the file is written all the same."""
    saved, write = [], Figure.savefig

    def savefig(figure, *arguments, **options):
        write(figure, *arguments, **options)
        saved.append(figure)

    monkeypatch.setattr(Figure, "savefig", savefig)
    return saved


def image(axis):
    """The only array that an axis shows, NaN where nothing is drawn."""
    (shown,) = axis.images
    array = shown.get_array()
    return array.filled(np.nan) if array.mask.any() else array.data


def lines(axis):
    """Label to (x, y) of each line of an axis that has a label."""
    return {line.get_label(): tuple(map(list, line.get_data())) for line in axis.lines if line.get_label()[0] != "_"}


def dots(axis):
    """The x of each series of dots of an axis."""
    return [list(line.get_xdata()) for line in axis.lines if line.get_marker() == "."]


def bars(axis):
    """Tick label to length of each horizontal bar of an axis."""
    labels = [label.get_text() for label in axis.get_yticklabels()]
    return dict(zip(labels, [bar.get_width() for bar in axis.patches], strict=True))


def titles(figure):
    """Titles of all axes that have one."""
    return [axis.get_title() for axis in figure.axes if axis.get_title()]


def legend(figure):
    """Texts of the legend below or above a figure."""
    return [text.get_text() for text in figure.legends[0].get_texts()]
