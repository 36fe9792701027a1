"""The editions of the challenge for which containers are built: paths and values that grand-challenge.org expects."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

EditionYear = Literal[2024, 2026]
INPUTS = "inputs.json"
"""File in the input folder that lists the inputs of a case."""
PORT = 4743
"""Port on which a container of 2026 answers."""


@dataclass(frozen=True, kw_only=True)
class Edition:
    """Paths and values of a container."""

    year: EditionYear
    images: str
    """Folder of the image, below the input folder."""
    output: str
    """The segmentation, below the output folder; one file for all structures."""
    dtype: str
    """Type of the segmentation, as numpy names it."""
    model: Path
    """Folder of the model in the container."""
    apart: bool
    """True if the weights are uploaded apart from the image."""
    server: bool
    """True if it answers requests until it is stopped; False if it segments one case and ends."""
    label: str | None
    """Label of the image, without which the platform would not start it as a server."""


EDITIONS: dict[int, Edition] = {
    2024: Edition(
        year=2024,
        images="images/3d-brain-microscopy",
        output="images/brain-structure/output.mha",
        dtype="uint8",
        model=Path("/opt/app/resources"),
        apart=False,
        server=False,
        label=None,
    ),
    2026: Edition(
        year=2026,
        images="images/light-sheet-3d-microscopy",
        output="images/isolated-biological-structure/output.mha",
        dtype="int8",
        model=Path("/opt/ml/model"),
        apart=True,
        server=True,
        label='org.grand-challenge.api-method="invoke"',
    ),
}
