"""A folder of cases that is either whole or absent, whenever a run is killed, and that the next run goes on with."""

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from nnunet_selma.errors import SelmaError
from nnunet_selma.running.json_files import read_json, write_json
from nnunet_selma.structures import SpacingUm
from nnunet_selma.volumes.base import Array


class StagedFolder:
    """A folder whose files are collected in a hidden folder; the last step renames.

    Args:
        folder: where the files will be.
        staging: the hidden folder, on the same disk.
        manifest: the file that says what they are, inside the folder or beside it.
        settings: everything that decides what the cases are; a run that was interrupted goes on only under the same settings.

    Raises:
        SelmaError: the folder exists already, made with other settings or by somebody else.
    """

    def __init__(self, folder: Path, staging: Path, manifest: Path, settings: Mapping[str, Any]) -> None:
        self.folder, self._staging, self._manifest = folder, staging, manifest
        self.settings = json.loads(json.dumps(dict(settings), default=str))
        self.files, self._records, self._notes = (self._staging / name for name in ("files", "records", "notes"))
        self.complete = self._is_complete()
        if not self.complete:
            self._prepare()

    def _is_complete(self) -> bool:
        if not self.folder.exists():
            return False
        if self._manifest.is_file() and read_json(self._manifest)["settings"] == self.settings:
            shutil.rmtree(self._staging, ignore_errors=True)
            return True
        raise SelmaError(
            f"{self.folder} exists already and was made from other files or with other settings; remove it, or choose another dataset id"
        )

    def _prepare(self) -> None:
        settings_file = self._staging / "settings.json"
        if self._staging.exists() and (not settings_file.is_file() or read_json(settings_file) != self.settings):
            shutil.rmtree(self._staging)
        for part in (self.files, self._records, self._notes):
            part.mkdir(parents=True, exist_ok=True)
        write_json(settings_file, self.settings)

    def has(self, case: str) -> bool:
        """True if the case was written, in this run or in one that was interrupted."""
        return (self._records / f"{case}.json").is_file()

    def record(self, case: str, record: Mapping[str, Any]) -> None:
        """Say that the files of a case are whole, and what they are."""
        write_json(self._records / f"{case}.json", dict(record))

    def cases(self) -> dict[str, dict[str, Any]]:
        """The records of all cases so far, by name."""
        return {path.stem: read_json(path) for path in sorted(self._records.glob("*.json"))}

    def note(self, name: str, content: Any) -> None:
        """Keep something for a later run of the same conversion."""
        write_json(self._notes / f"{name}.json", content)

    def noted(self, name: str) -> Any | None:
        """Read a note of an earlier run of the same conversion; None if there is none."""
        path = self._notes / f"{name}.json"
        return read_json(path) if path.is_file() else None

    def finish(self, manifest: Mapping[str, Any]) -> None:
        """Write the manifest and give the folder its name."""
        inside = self._manifest.is_relative_to(self.folder)
        write_json(self.files / self._manifest.relative_to(self.folder) if inside else self._manifest, dict(manifest))
        os.replace(self.files, self.folder)
        shutil.rmtree(self._staging)

    def manifest(self) -> dict[str, Any]:
        """The manifest of a complete folder."""
        return read_json(self._manifest)


class StagedDataset(Protocol):
    """Interface of datasets that are built on a `StagedFolder`; they can be sent to another process, which writes cases too."""

    staged: StagedFolder
    folder: Path
    needs_labels: bool

    def write(
        self, case: str, images: Sequence[Array], label: Array | None, spacing_zyx: SpacingUm, record: Mapping[str, Any]
    ) -> None:
        """Write one case: its channels and its label, (z, y, x), and last its record, which says that it is whole."""

    def finish(
        self, *, channels: Sequence[str], foreground: str, description: str, facts: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Write what nnU-Net wants beside the cases and the manifest, and give the folder its name; returns the manifest."""
