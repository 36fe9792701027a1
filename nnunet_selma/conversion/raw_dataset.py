"""Datasets in nnU-Net's raw format, which nnU-Net sees only when they are whole."""

import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import imagecodecs
import nibabel
import numpy as np

from nnunet_selma.conversion.staging import StagedFolder
from nnunet_selma.errors import SelmaError
from nnunet_selma.nnunet.folders import MANIFEST, Folders
from nnunet_selma.running.json_files import write_json
from nnunet_selma.running.whole_files import whole_file
from nnunet_selma.structures import SpacingUm
from nnunet_selma.volumes.base import Array
from nnunet_selma.volumes.nifti import IN_UM

FILE_ENDING = ".nii.gz"


def dataset_folder_name(dataset_id: int, name: str) -> str:
    """`Dataset510_SELMA3D`; raises `SelmaError` for an id or a name that nnU-Net would not take."""
    if not 1 <= dataset_id <= 999:
        raise SelmaError(f"dataset id {dataset_id}: nnU-Net takes 1 to 999")
    if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
        raise SelmaError(f"dataset name {name!r}: use letters, digits, - and _ only")
    return f"Dataset{dataset_id:03d}_{name}"


def check_free_id(dataset_id: int, folder_name: str, folders: Folders) -> None:
    """Raise `SelmaError` if a dataset of another name has the id in one of nnU-Net's folders (nnU-Net would not tell them apart)."""
    for root in (folders.raw, folders.preprocessed, folders.results):
        for other in sorted(root.glob(f"Dataset{dataset_id:03d}*")) if root.is_dir() else []:
            if other.name != folder_name:
                raise SelmaError(
                    f"id {dataset_id} is taken by {other}; choose another id with -d, or remove that dataset"
                )


def write_nifti(path: Path, voxels: Array, spacing_zyx: SpacingUm, *, in_um: bool = False) -> None:
    """Write (z, y, x) voxels with that spacing, origin 0 and identity direction (as ITK counts), under a temporary name first.

    The header says mm, because nnU-Net's readers would divide numbers in µm by 1000; `in_um` notes beside it that they are µm.

    It is compressed by libdeflate, more than twice as fast as ITK's zlib, at its quickest level: on noisy images higher levels save less
    than a hundredth.

    Raises:
        SelmaError: the file could not be written whole.
    """
    z, y, x = (float(size) for size in spacing_zyx)
    # ITK counts x and y from the other side than NIfTI
    image = nibabel.Nifti1Image(voxels.T, np.diag([-x, -y, z, 1.0]))
    image.set_qform(image.affine, 1)
    image.set_sform(image.affine, 1)
    image.header.set_xyzt_units("mm")
    if in_um:
        image.header["descrip"] = IN_UM
    try:
        with whole_file(path) as partial:
            partial.write_bytes(imagecodecs.gzip_encode(image.to_bytes(), level=1))
    except OSError as error:
        free = shutil.disk_usage(path.parent).free / 1e6
        raise SelmaError(
            f"{path}: could not be written whole, {free:.0f} MB are free on that disk; make room and run the command again"
        ) from error


def dataset_description(channels: Sequence[str], foreground: str, count: int, name: str, text: str) -> dict[str, Any]:
    """The content of nnU-Net's `dataset.json`."""
    return {
        "channel_names": {str(i): channel for i, channel in enumerate(channels)},
        "labels": {"background": 0, foreground: 1},
        "numTraining": count,
        "file_ending": FILE_ENDING,
        "name": name,
        "description": text,
        "licence": "that of the source; treat SELMA3D as CC BY-NC 4.0",
    }


class RawDataset:
    """A dataset that is being written into `nnUNet_raw`.

    Args:
        raw_root: the `nnUNet_raw` folder.
        folder_name: name of the dataset's folder.
        settings: everything on which the cases depend; only a run with the same settings continues one that was killed.
        in_um: True if the voxel sizes of the cases are in µm.

    Raises:
        SelmaError: the dataset exists already, and this package did not make it, or made it with other settings.
    """

    needs_labels = True

    def __init__(self, raw_root: Path, folder_name: str, settings: Mapping[str, Any], *, in_um: bool = False) -> None:
        self.folder, self._in_um = raw_root / folder_name, in_um
        staging = raw_root / f".{folder_name}.partial"
        self.staged = StagedFolder(self.folder, staging, self.folder / MANIFEST, settings)
        if not self.staged.complete:
            for name in ("imagesTr", "labelsTr"):
                (self.staged.files / name).mkdir(exist_ok=True)

    def write(
        self, case: str, images: Sequence[Array], label: Array | None, spacing_zyx: SpacingUm, record: Mapping[str, Any]
    ) -> None:
        """Write a case: its channels and its label, (z, y, x), and last its record, which marks it as whole."""
        if label is None:
            raise ValueError(f"{case}: a raw case has a label")
        for channel, image in enumerate(images):
            file = self.staged.files / "imagesTr" / f"{case}_{channel:04d}{FILE_ENDING}"
            write_nifti(file, image, spacing_zyx, in_um=self._in_um)
        write_nifti(self.staged.files / "labelsTr" / f"{case}{FILE_ENDING}", label, spacing_zyx, in_um=self._in_um)
        self.staged.record(case, record)

    def finish(
        self, *, channels: Sequence[str], foreground: str, description: str, facts: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Write `dataset.json` and the manifest, and give the folder its name; returns the manifest."""
        content = dataset_description(channels, foreground, len(self.staged.cases()), self.folder.name, description)
        write_json(self.staged.files / "dataset.json", content)
        return self.staged.finish(facts)
