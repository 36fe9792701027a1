"""A raw dataset of nnU-Net that grows: each version is built whole beside the one before, and takes its place.

Files that did not change are the same files (hard links), so that a version costs little. Files and folders that people put beside `imagesTr` and
`labelsTr` go along, and so do labels from before they were corrected. After a kill the earlier version is there, or is put back by the next run.
"""

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nnunet_selma.conversion.raw_dataset import FILE_ENDING, dataset_description, write_nifti
from nnunet_selma.errors import SelmaError
from nnunet_selma.nnunet.folders import MANIFEST
from nnunet_selma.running.json_files import read_json, write_json
from nnunet_selma.structures import SpacingUm
from nnunet_selma.volumes.base import Array

LAYOUT = "proposed cubes"
"""Layout in the manifest of a dataset that grows."""
_OF_CASES = ("imagesTr", "labelsTr")
_EARLIER = "earlier_labels"
"""Folder in the dataset for labels from before they were corrected, each with the last version that held it."""


def read_manifest(dataset: Path) -> dict[str, Any] | None:
    """The manifest of a dataset; None where there is none.

    Entries that datasets from earlier versions of this package lack are filled in, empty.
    """
    path = dataset / MANIFEST
    if not path.is_file():
        return None
    manifest: dict[str, Any] = read_json(path)
    for version in manifest.get("history", []):
        version.setdefault("removed", {})
    return manifest


class GrowingDataset:
    """The dataset in `nnUNet_raw`, and its next version.

    Args:
        raw_root: the `nnUNet_raw` folder.
        folder_name: name of the dataset's folder.

    Raises:
        SelmaError: the dataset was made from something else than cubes.
    """

    def __init__(self, raw_root: Path, folder_name: str) -> None:
        self._name = folder_name
        self.folder = (raw_root / folder_name).resolve()  # a link stays, and the folder that it names grows
        self._next, self._former = (
            self.folder.with_name(f".{self.folder.name}.{word}") for word in ("partial", "former")
        )
        if self._former.exists() and not self.folder.exists():
            os.replace(self._former, self.folder)  # a kill between the two renames of `finish`
        self.manifest: dict[str, Any] | None = read_manifest(self.folder)
        """Manifest of the version that is there; None before the first."""
        if self.folder.exists() and (self.manifest or {}).get("layout") != LAYOUT:
            raise SelmaError(
                f"{self.folder} exists already and was made from other files than cubes of nnunet-selma propose; remove it, or choose another dataset id"
            )
        for rest in (self._next, self._former):
            shutil.rmtree(rest, ignore_errors=True)

    @property
    def _manifest(self) -> Path:
        return self.folder / MANIFEST

    def image(self, case: str, channel: int = 0) -> Path:
        """File of an image in the version that is there."""
        return self.folder / "imagesTr" / f"{case}_{channel:04d}{FILE_ENDING}"

    def begin(self) -> None:
        """Begin the next version; raises `SelmaError` if cases lie in the one that is there which no conversion wrote."""
        self._check_no_strangers()
        for name in _OF_CASES:
            (self._next / name).mkdir(parents=True)

    def _check_no_strangers(self) -> None:
        cases = (self.manifest or {}).get("cases", {})
        written = {
            "imagesTr": {
                self.image(case, channel).name for case in cases for channel in range(len(cases[case]["images"]))
            },
            "labelsTr": {f"{case}{FILE_ENDING}" for case in cases},
        }
        for name, files in written.items():
            there = (self.folder / name).iterdir() if (self.folder / name).is_dir() else ()
            for path in sorted(there):
                if path.name not in files:
                    raise SelmaError(
                        f"{path}: belongs to no cube, and would be lost as the dataset grows; move it out of {self.folder / name}"
                    )

    def keep(self, case: str, channels: int, *, label: bool = True) -> None:
        """Take a case into the next version as it is; without the label, only its images, and the label goes to the earlier ones."""
        for channel in range(channels):
            file = Path("imagesTr") / self.image(case, channel).name
            _link(self.folder / file, self._next / file)
        version = len((self.manifest or {})["history"])
        place = (
            Path("labelsTr", f"{case}{FILE_ENDING}")
            if label
            else Path(_EARLIER, f"{case}_version_{version}{FILE_ENDING}")
        )
        (self._next / place).parent.mkdir(exist_ok=True)
        _link(self.folder / "labelsTr" / f"{case}{FILE_ENDING}", self._next / place)

    def write_images(self, case: str, images: Sequence[Array], spacing_zyx: SpacingUm, *, in_um: bool) -> None:
        """Write the channels of a case, (z, y, x), into the next version."""
        for channel, image in enumerate(images):
            file = self._next / "imagesTr" / self.image(case, channel).name
            write_nifti(file, image, spacing_zyx, in_um=in_um)

    def write_label(self, case: str, label: Array, spacing_zyx: SpacingUm, *, in_um: bool) -> None:
        """Write the label of a case, (z, y, x), into the next version."""
        write_nifti(self._next / "labelsTr" / f"{case}{FILE_ENDING}", label, spacing_zyx, in_um=in_um)

    def finish(self, channels: Sequence[str], classes: Sequence[str], manifest: Mapping[str, Any]) -> None:
        """Write `dataset.json`, with nnU-Net's ignore label above all classes, and the manifest; the next version takes its place."""
        text = "cubes of light-sheet images, annotated whole or in part"
        content = dataset_description(channels, classes[0], len(manifest["cases"]), self._name, text)
        numbered = {name: number for number, name in enumerate(classes, start=1)}
        content["labels"] = {"background": 0, **numbered, "ignore": len(classes) + 1}
        write_json(self._next / "dataset.json", content)
        write_json(self._next / MANIFEST, dict(manifest))
        if self.folder.exists():
            self._take_along()
            os.replace(self.folder, self._former)
        os.replace(self._next, self.folder)
        shutil.rmtree(self._former, ignore_errors=True)
        self.manifest = dict(manifest)

    def note(self, manifest: Mapping[str, Any]) -> None:
        """Write another manifest for the version that is there."""
        write_json(self._manifest, dict(manifest))
        self.manifest = dict(manifest)

    def _take_along(self) -> None:
        """Take everything that people put into the folder into the next version."""
        for path in self.folder.iterdir():
            if path.name in (*_OF_CASES, "dataset.json", MANIFEST):
                continue
            if path.is_dir() and not path.is_symlink():
                target = self._next / path.name
                shutil.copytree(path, target, symlinks=True, copy_function=_link, dirs_exist_ok=path.name == _EARLIER)
            else:
                _link(path, self._next / path.name)


def _link(file: str | Path, target: str | Path) -> None:
    """The same file at another place; a copy on a file system without hard links."""
    try:
        os.link(file, target, follow_symlinks=False)
    except OSError:
        shutil.copy2(file, target, follow_symlinks=False)
