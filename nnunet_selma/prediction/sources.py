"""Fingerprints of everything that a prediction is made from: its volumes, its mask and its model."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from nnunet_selma.prediction.volume_prediction import VolumePrediction
from nnunet_selma.running.fingerprints import Contents, contents, contents_of, files_of
from nnunet_selma.volumes import is_store, parts_of
from nnunet_selma.volumes.base import check_exists
from nnunet_selma.volumes.ome_zarr import image_group, image_path, is_zarr, ome_metadata
from nnunet_selma.volumes.segmented import label_image
from nnunet_selma.volumes.tiff import tiff_slices


@dataclass(frozen=True)
class Sources:
    """The files of a prediction, which are hashed when they are asked for, each once."""

    settings: VolumePrediction

    @cached_property
    def model(self) -> str:
        """Fingerprint of the model; raises `SelmaError` if it is incomplete."""
        self.settings.model.check_complete()
        return self.settings.model.fingerprint()

    @property
    def paths(self) -> dict[str, Path]:
        """Path of each volume, and of the mask."""
        inputs = self.settings.inputs
        paths = {f"input {number}" if len(inputs) > 1 else "input": path for number, path in enumerate(inputs, 1)}
        return paths | ({"mask": self.settings.mask} if self.settings.mask else {})

    @cached_property
    def files(self) -> dict[str, Contents]:
        """Fingerprint of each volume and of the mask; raises `SelmaError` if there is no such file."""
        return {
            name: _mask_contents(path) if name == "mask" else _contents(path, self.settings.level, self.settings.scene)
            for name, path in self.paths.items()
        }

    def changed_file(self, files: Mapping[str, Contents]) -> str | None:
        """Name of the first volume or mask that differs from that of an earlier call; None if all are the same."""
        return next((name for name in self.paths if name in files and self.files[name].differs(files[name])), None)

    def changed(self, model: str, files: Mapping[str, Contents]) -> str | None:
        """Words for the first file that differs from those of an earlier call; None if all are the same."""
        name = self.changed_file(files)
        if name is not None:
            return f"{name} (the contents of {self.paths[name]} are not those of then)"
        if model != self.model:
            return f"model (the files in {self.settings.model.folder} are not those of then)"
        return None

    def uncertain(self, files: Mapping[str, Contents]) -> list[Path]:
        """Files that are too large to be compared whole, and were changed or copied since an earlier call."""
        return [path for name, path in self.paths.items() if name in files and self.files[name].may_differ(files[name])]


def _mask_contents(path: Path) -> Contents:
    """Fingerprint of the mask, which may be the label image in an OME-Zarr."""
    check_exists(path)
    return _contents((label_image(path) if path.is_dir() else None) or path)


def _contents(path: Path, level: int = 0, scene: str | None = None) -> Contents:
    """Fingerprint of the files that hold the voxels of a volume; what else lies in its folder does not count."""
    check_exists(path)
    if path.is_dir() and not is_store(path):
        return contents_of({file.name: file for file in tiff_slices(path)})
    if not path.is_dir() or not is_zarr(path):
        parts = parts_of(path, scene)
        files = {
            f"{number}/{file.relative_to(part.parent)}": file
            for number, part in enumerate(parts)
            for file in files_of(part)
        }
        return contents_of(files) if len(parts) > 1 else contents(path)
    multiscales = ome_metadata(image_group(path, scene)).get("multiscales")
    array = image_path(path, scene)
    if multiscales:
        datasets = multiscales[0]["datasets"]
        array /= datasets[min(level, len(datasets) - 1)]["path"]
    return contents_of({str(file.relative_to(array)): file for file in files_of(array)})
