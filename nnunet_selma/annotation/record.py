"""`selma_cubes.json`: the cubes of a folder, round by round, written before the cubes are.

A round whose cubes are not all written goes on with the same command; the list decides which cubes those are.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nnunet_selma import __version__
from nnunet_selma.annotation.candidates import Place, image_suffix, place_of
from nnunet_selma.annotation.choosing import Earlier
from nnunet_selma.annotation.layout import RECORD
from nnunet_selma.annotation.settings import ProposalSettings
from nnunet_selma.errors import SelmaError
from nnunet_selma.running.json_files import read_json, write_json

_FORMAT = 1


@dataclass(frozen=True)
class CubeRecord:
    """The record of a folder of cubes."""

    folder: Path
    content: dict[str, Any]

    @staticmethod
    def at(folder: Path) -> "CubeRecord":
        """The record of a folder; without rounds where there is none. Raises `SelmaError` for one of another format, and for cubes without one."""
        path = folder / RECORD
        if not path.is_file():
            cube = next((cube for cube in sorted(folder.glob("cube_[0-9]*")) if cube.is_dir()), None)
            if cube is not None:
                raise SelmaError(
                    f"{folder}: holds {cube.name} without {RECORD}, which says where earlier cubes lie; restore it, or choose another folder with -o"
                )
            return CubeRecord(folder, {"format": _FORMAT, "version": __version__, "rounds": [], "cubes": []})
        content = read_json(path)
        if content.get("format") != _FORMAT:
            raise SelmaError(f"{path}: was written by another version of nnunet-selma; choose another folder with -o")
        return CubeRecord(folder, content)

    @property
    def cubes(self) -> list[dict[str, Any]]:
        """Content of every cube, as in its `cube.json`."""
        return list(self.content["cubes"])

    @property
    def rounds(self) -> list[dict[str, Any]]:
        """Sources as the user gave them, brains, settings, seed, model and completeness of every round."""
        return list(self.content["rounds"])

    @property
    def unfinished(self) -> dict[str, Any] | None:
        """The last round, if it was interrupted."""
        return self.rounds[-1] if self.rounds and not self.rounds[-1]["complete"] else None

    def earlier(self) -> list[Earlier]:
        """The cubes of all rounds, also those whose folder was removed: a person did not want them."""
        return [Earlier(place=_place(cube), region=tuple(cube["region_zyx"])) for cube in self.cubes]  # type: ignore[arg-type]

    def begin(self, settings: Mapping[str, Any], cubes: list[dict[str, Any]]) -> "CubeRecord":
        """Record a round and its cubes, which are written after that."""
        content = {
            **self.content,
            "version": __version__,
            **{name: settings[name] for name in ("settings", "seed", "model")},
            "rounds": [*self.rounds, {"round": len(self.rounds) + 1, **settings, "complete": False}],
            "cubes": [*self.cubes, *cubes],
        }
        return self._written(content)

    @property
    def readme(self) -> str | None:
        """SHA-256 of the instructions as they were written last; None if they never were."""
        digest: str | None = self.content.get("readme_sha256")
        return digest

    def finish(self, written: Sequence[Mapping[str, Any]], readme: str | None) -> "CubeRecord":
        """Record that all cubes of the last round are written, with the whole content of their `cube.json`, and the hash of the instructions."""
        by_name = {cube["name"]: cube for cube in written}
        return self._written(
            {
                **self.content,
                "rounds": [*self.rounds[:-1], {**self.rounds[-1], "complete": True}],
                "cubes": [by_name.get(cube["name"], cube) for cube in self.cubes],
                "readme_sha256": readme,
            }
        )

    def _written(self, content: dict[str, Any]) -> "CubeRecord":
        write_json(self.folder / RECORD, content)
        return CubeRecord(self.folder, content)


def settings_as_json(settings: ProposalSettings) -> dict[str, Any]:
    """The settings, for a JSON file."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(settings).items()}


def _place(cube: Mapping[str, Any]) -> Place:
    """The place of a cube that was recorded."""
    suffix = image_suffix(cube["scene"], cube["time"])
    return place_of(cube["brain"], cube["path"], suffix, cube["start_zyx"], cube["shape_zyx"], cube["level_factor_zyx"])
