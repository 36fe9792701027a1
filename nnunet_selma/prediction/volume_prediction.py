"""Settings that decide the result of a prediction, and the paths of what it writes."""

import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from nnunet_selma.prediction.model import ModelSettings
from nnunet_selma.prediction.records import plain, with_tuples
from nnunet_selma.running.cores import usable_memory
from nnunet_selma.volumes import OnBadSlice
from nnunet_selma.volumes.ome_zarr_writing import OmeZarrVersion

AlsoFormat = Literal["tiff", "nifti"]
"""Format in which labels are written besides OME-Zarr."""
TISSUE_MAP = "tissue.png"
"""Name of the picture in the folder of a run that shows where is predicted."""
_SHARE_OF_MEMORY = 0.5


def _usual_memory() -> float:
    """Memory of each process, GB: half of what the processes that torchrun starts on a machine may use together."""
    return round(_SHARE_OF_MEMORY * usable_memory() / int(os.environ.get("LOCAL_WORLD_SIZE", 1)) / 10**9, 1)


@dataclass(frozen=True, kw_only=True)
class VolumePrediction:
    """One prediction of one volume."""

    inputs: tuple[Path, ...]
    """Path of the volume, or of each channel in the order of the model's."""
    channels: tuple[int, ...] | None = None
    """Channels of a file with several, from 0, in the order of the model's inputs; None: those with the names of the model's inputs, or all."""
    scene: str | None = None
    """Name or number of the image in a file with several, as tiles, positions or series. None: the only one."""
    time: int | None = None
    """Time point of a file with several, from 0. None: the only one."""
    output: Path
    """The OME-Zarr that is written."""
    model: ModelSettings
    spacing_um_zyx: tuple[float, float, float] | None = None
    """Voxel size, of the finest level, µm; None: that of the file."""
    level: int = 0
    """Resolution level of a file with several, from 0, which is the finest."""
    on_bad_slice: OnBadSlice = "error"
    """A slice that is missing or unreadable: stop, or interpolate from its neighbours."""
    slice_pattern: str | None = None
    """Regular expression whose parenthesis finds the number of a slice in its name, as in 'Z([0-9]+)'; None: the number is found by rules."""
    tissue_only: bool = True
    """Voxels far from tissue are background without being predicted."""
    mask: Path | None = None
    """Predict only where this volume is above 0; it has any resolution and the same field of view; None: where there is tissue."""
    statistics: Literal["volume", "tissue"] = "volume"
    """Mean and deviation by which images are normalised, where the plans say z-score: of all voxels as in nnUNetv2_predict, or of tissue only."""
    probabilities: bool = False
    """Write the probability of each class too, 0 to 255: OUT_probabilities.ome.zarr."""
    raw: bool = True
    """Write the image beside the labels."""
    name: str = "segmentation"
    """Name of the label image."""
    version: OmeZarrVersion = "0.5"
    """Version of OME-Zarr that is written."""
    block: int | None = None
    """Edge of a block, voxels; None: about as long as a tile along its column, and as wide as the memory allows."""
    max_memory: float = field(default_factory=_usual_memory)
    """Memory that each process may take, GB (default: half of the machine's, shared by the processes that torchrun starts)."""

    @property
    def beside_input(self) -> bool:
        """True if the labels go into the OME-Zarr that is predicted."""
        return len(self.inputs) == 1 and self.output.resolve() == self.inputs[0].resolve()

    @property
    def staging(self) -> Path:
        """Folder of the run until it is complete."""
        suffix = f"_{self.name}" if self.beside_input else ""
        return self.output.parent / f".{self.output.name}{suffix}.partial"

    def as_json(self) -> dict[str, Any]:
        """All settings, for a JSON file; paths are absolute."""
        return plain(asdict(self))

    @property
    def paths_read(self) -> tuple[Path, ...]:
        """Every path that is read."""
        return (*self.inputs, *((self.mask,) if self.mask else ()), self.model.folder)

    @property
    def products(self) -> dict[str, Path]:
        """Part of the run's folder to the final path of that result; the labels last."""
        near = self.output.parent / re.sub(r"(\.ome)?\.zarr$", "", self.output.name)
        labels = {f"output/labels/{self.name}": self.output / "labels" / self.name}
        return {
            "probabilities": near.with_name(f"{near.name}_probabilities.ome.zarr"),
            "tiff": near.with_name(f"{near.name}_{self.name}"),
            "nifti": near.with_name(f"{near.name}_{self.name}.nii.gz"),
            TISSUE_MAP: near.with_name(f"{near.name}_{self.name}_tissue.png"),
            **(labels if self.beside_input else {"output": self.output}),
        }

    @property
    def record(self) -> Path:
        """The JSON file beside the output that records how it was made."""
        tiff = self.products["tiff"]
        return tiff.with_name(f"{tiff.name}.json")

    @staticmethod
    def from_json(content: Mapping[str, Any]) -> "VolumePrediction":
        """Settings from the content of a JSON file."""
        fields, model = with_tuples(content), with_tuples(content["model"])
        fields["inputs"] = tuple(map(Path, content["inputs"]))
        fields["output"] = Path(content["output"])
        fields["mask"] = Path(content["mask"]) if content["mask"] else None
        fields["model"] = ModelSettings(**{**model, "folder": Path(model["folder"])})
        return VolumePrediction(**fields)


def identity(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Those of a prediction's settings, as in a JSON file, that decide the result; files count by their contents instead of their paths."""
    kept = {
        key: value
        for key, value in settings.items()
        if value is not None and key not in ("output", "max_memory", "block")
    }
    model = {key: value for key, value in settings["model"].items() if key != "folder"}
    given = None if settings["mask"] is None else "given"
    return {**kept, "inputs": len(settings["inputs"]), "mask": given, "model": model}
