"""A dataset in nnU-Net's raw format, written so that it is either whole or absent.

Cases are collected in a hidden folder beside the dataset, each file under a temporary name first. The last step renames that folder. nnU-Net
never sees half a dataset, and a run that was killed goes on where it stopped.
"""

import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import SimpleITK as sitk

from nnunet_selma import __version__
from nnunet_selma.errors import SelmaError
from nnunet_selma.json_files import read_json, write_json
from nnunet_selma.structures import SpacingUm
from nnunet_selma.volumes.base import Array

FILE_ENDING = ".nii.gz"
MANIFEST = "selma_manifest.json"
_NIFTI_HEADER_BYTES = 352


def dataset_folder_name(dataset_id: int, name: str) -> str:
    """`Dataset510_SELMA3D`; raises `SelmaError` for an id or a name that nnU-Net would not take."""
    if not 1 <= dataset_id <= 999:
        raise SelmaError(f"dataset id {dataset_id}: nnU-Net takes 1 to 999")
    if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
        raise SelmaError(f"dataset name {name!r}: use letters, digits, - and _ only")
    return f"Dataset{dataset_id:03d}_{name}"


def demand_free_id(dataset_id: int, folder_name: str, roots: Sequence[Path]) -> None:
    """Raise `SelmaError` if a dataset of another name has the id in one of nnU-Net's folders (nnU-Net would not tell them apart)."""
    for root in roots:
        for other in sorted(root.glob(f"Dataset{dataset_id:03d}*")) if root.is_dir() else []:
            if other.name != folder_name:
                raise SelmaError(
                    f"id {dataset_id} is taken by {other}; choose another id with -d, or remove that dataset"
                )


def write_nifti(path: Path, voxels: Array, spacing_zyx: SpacingUm) -> None:
    """Write (z, y, x) voxels with that spacing, origin 0 and identity direction, under a temporary name first.

    Raises:
        SelmaError: the file could not be written whole; ITK itself says nothing when the disk is full.
    """
    image = sitk.GetImageFromArray(voxels)
    image.SetSpacing(tuple(float(s) for s in reversed(spacing_zyx)))
    partial = path.with_name(".partial_" + path.name)
    try:
        sitk.WriteImage(image, str(partial), useCompression=True)
        whole = _uncompressed_size(partial) == (_NIFTI_HEADER_BYTES + voxels.nbytes) % 2**32
    except (RuntimeError, OSError):
        whole = False
    try:
        if not whole:
            free = shutil.disk_usage(path.parent).free / 1e6
            raise SelmaError(
                f"{path}: could not be written whole, {free:.0f} MB are free on that disk; make room and run the command again"
            )
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _uncompressed_size(path: Path) -> int:
    """The length, modulo 2³², that the end of a gzip file says its content has."""
    with path.open("rb") as file:
        file.seek(-4, os.SEEK_END)
        return int.from_bytes(file.read(4), "little")


class RawDataset:
    """One dataset on its way into `nnUNet_raw`.

    Args:
        raw_root: the `nnUNet_raw` folder.
        folder_name: name of the dataset's folder.
        settings: everything that decides what the cases are; a run that was interrupted goes on only under the same settings.

    Raises:
        SelmaError: the dataset exists already, made with other settings or by somebody else.
    """

    def __init__(self, raw_root: Path, folder_name: str, settings: Mapping[str, Any]) -> None:
        self.folder = raw_root / folder_name
        self.settings = json.loads(json.dumps(dict(settings), default=str))
        self._staging = raw_root / f".{folder_name}.partial"
        self.complete = self._is_complete()
        if not self.complete:
            self._prepare()

    def _is_complete(self) -> bool:
        if not self.folder.exists():
            return False
        manifest = self.folder / MANIFEST
        if manifest.is_file() and read_json(manifest)["settings"] == self.settings:
            return True
        raise SelmaError(
            f"{self.folder} exists already and was made from other files or with other settings; remove it or choose another id with -d"
        )

    def _prepare(self) -> None:
        settings_file = self._staging / "settings.json"
        if self._staging.exists() and (not settings_file.is_file() or read_json(settings_file) != self.settings):
            shutil.rmtree(self._staging)
        for name in ("imagesTr", "labelsTr", "records"):
            (self._staging / name).mkdir(parents=True, exist_ok=True)
        write_json(settings_file, self.settings)

    def has(self, case: str) -> bool:
        """True if the case was written, in this run or in one that was interrupted."""
        return (self._staging / "records" / f"{case}.json").is_file()

    def write(
        self, case: str, images: Sequence[Array], label: Array, spacing_zyx: SpacingUm, record: Mapping[str, Any]
    ) -> None:
        """Write one case: its channels and its label, (z, y, x), and last its record, which says that it is whole."""
        for channel, image in enumerate(images):
            write_nifti(self._staging / "imagesTr" / f"{case}_{channel:04d}{FILE_ENDING}", image, spacing_zyx)
        write_nifti(self._staging / "labelsTr" / f"{case}{FILE_ENDING}", label, spacing_zyx)
        write_json(self._staging / "records" / f"{case}.json", dict(record))

    def note(self, name: str, content: Any) -> None:
        """Keep something for a later run of the same conversion."""
        write_json(self._staging / f"{name}.json", content)

    def noted(self, name: str) -> Any | None:
        """What an earlier run of the same conversion noted."""
        path = self._staging / f"{name}.json"
        return read_json(path) if path.is_file() else None

    def finish(
        self, *, channels: Sequence[str], foreground: str, description: str, facts: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Write `dataset.json` and the manifest, and give the folder its name; returns the manifest."""
        records = sorted((self._staging / "records").glob("*.json"))
        cases = {path.stem: read_json(path) for path in records}
        write_json(
            self._staging / "dataset.json",
            {
                "channel_names": {str(i): name for i, name in enumerate(channels)},
                "labels": {"background": 0, foreground: 1},
                "numTraining": len(cases),
                "file_ending": FILE_ENDING,
                "name": self.folder.name,
                "description": description,
                "licence": "that of the source; treat SELMA3D as CC BY-NC 4.0",
            },
        )
        manifest = {"nnunet_selma": __version__, "settings": self.settings, **facts, "cases": cases}
        write_json(self._staging / MANIFEST, manifest)
        os.replace(self._staging, self.folder)
        for path in self.folder.iterdir():
            if path.name not in {"imagesTr", "labelsTr", "dataset.json", MANIFEST}:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        return manifest

    def manifest(self) -> dict[str, Any]:
        """The manifest of a complete dataset."""
        return read_json(self.folder / MANIFEST)
