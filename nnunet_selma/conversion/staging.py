"""Folders of cases that are whole or absent; after a kill, the next run continues them."""

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from nnunet_selma import __version__
from nnunet_selma.errors import SelmaError
from nnunet_selma.running.json_files import read_json, write_json
from nnunet_selma.structures import SpacingUm
from nnunet_selma.volumes.base import Array


class StagedFolder:
    """A folder whose files are collected in a hidden folder, which is renamed at the end.

    Args:
        folder: the folder that is made.
        staging: the hidden folder, on the same disk.
        manifest: file with the settings and the records of all cases, inside the folder or beside it.
        settings: everything on which the cases depend; only a run with the same settings continues one that was killed.

    Raises:
        SelmaError: the folder exists already, and this package did not make it, or made it with other settings.
    """

    def __init__(self, folder: Path, staging: Path, manifest: Path, settings: Mapping[str, Any]) -> None:
        self.folder, self._staging, self._manifest = folder, staging, manifest
        self.settings = json.loads(json.dumps(dict(settings), default=str))
        self.files, self._records, self._notes = (self._staging / name for name in ("files", "records", "notes"))
        self.complete = self._check_complete()
        if not self.complete:
            self._create_staging()

    def _check_complete(self) -> bool:
        if not self.folder.exists():
            return False
        if self._manifest.is_file() and _given(read_json(self._manifest)["settings"]) == _given(self.settings):
            shutil.rmtree(self._staging, ignore_errors=True)
            return True
        raise SelmaError(
            f"{self.folder} exists already and was made from other files or with other settings; remove it, or choose another dataset id"
        )

    def _create_staging(self) -> None:
        settings_file = self._staging / "settings.json"
        begun = read_json(settings_file) if settings_file.is_file() else None
        if self._staging.exists() and (begun is None or _given(begun) != _given(self.settings)):
            shutil.rmtree(self._staging)
        for part in (self.files, self._records, self._notes):
            part.mkdir(parents=True, exist_ok=True)
        write_json(settings_file, self.settings)

    def has(self, case: str) -> bool:
        """True if the case was written, in this run or in one that was interrupted."""
        return (self._records / f"{case}.json").is_file()

    def record(self, case: str, record: Mapping[str, Any]) -> None:
        """Write the record of a case, which marks its files as whole."""
        write_json(self._records / f"{case}.json", dict(record))

    def cases(self) -> dict[str, dict[str, Any]]:
        """Name to record of all cases written so far."""
        return {path.stem: read_json(path) for path in sorted(self._records.glob("*.json"))}

    def note(self, name: str, content: Any) -> None:
        """Write a note for a later run of the same conversion."""
        write_json(self._notes / f"{name}.json", content)

    def read_note(self, name: str) -> Any | None:
        """Read a note of an earlier run of the same conversion; None if there is none."""
        path = self._notes / f"{name}.json"
        return read_json(path) if path.is_file() else None

    def finish(self, facts: Mapping[str, Any]) -> dict[str, Any]:
        """Write the manifest, which has the facts among its entries, and give the folder its name; returns the manifest."""
        manifest = {"nnunet_selma": __version__, "settings": self.settings, **facts, "cases": self.cases()}
        inside = self._manifest.is_relative_to(self.folder)
        write_json(self.files / self._manifest.relative_to(self.folder) if inside else self._manifest, manifest)
        os.replace(self.files, self.folder)
        shutil.rmtree(self._staging)
        return manifest

    def manifest(self) -> dict[str, Any]:
        """The manifest of a complete folder."""
        return read_json(self._manifest)


def _given(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings without those that are None, as settings are that an earlier version did not have."""
    return {name: value for name, value in settings.items() if value is not None}


class StagedDataset(Protocol):
    """Interface of datasets that are built on a `StagedFolder`; other processes may write cases of them."""

    staged: StagedFolder
    folder: Path
    """Folder of the cases."""
    needs_labels: bool
    """True if every case is written with a label."""

    def write(
        self, case: str, images: Sequence[Array], label: Array | None, spacing_zyx: SpacingUm, record: Mapping[str, Any]
    ) -> None:
        """Write a case: its channels and its label, (z, y, x), and last its record, which marks it as whole."""

    def finish(
        self, *, channels: Sequence[str], foreground: str, description: str, facts: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Write the files that nnU-Net reads beside the cases, and the manifest, and give the folder its name; returns the manifest."""
