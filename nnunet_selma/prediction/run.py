"""A prediction on its way: a folder that any process, on any machine that sees it, can go on with.

    .OUT.ome.zarr.partial/
        run.json        the settings, the model's fingerprint, the grids of slabs and blocks
        slabs/          of each slab that was read: its intensities and the brightness of its cells
        blocks/         of each block that is whole: what was done
        tiles_at_once.json  how many tiles go through the network together
        output/         what becomes OUT.ome.zarr
        image/          the image in chunks, where the output is to have none
        probabilities/  what becomes OUT_probabilities.ome.zarr

A slab or block is done when its file is there. Files are written under a temporary name and renamed, after the voxels they speak of. A
folder that is not needed any more gets another name before it is removed, so that none is ever there in part.
"""

import json
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np

from nnunet_selma.errors import SelmaError
from nnunet_selma.morphology.blocks import Box, blocks
from nnunet_selma.prediction.intensities import Intensities, joined
from nnunet_selma.prediction.settings import VolumePrediction
from nnunet_selma.prediction.tissue import Tissue
from nnunet_selma.running.json_files import read_json, write_json
from nnunet_selma.running.whole_files import whole_file
from nnunet_selma.volumes.base import Array, ShapeZYX

RUN = "run.json"
_DAY = 24 * 3600.0
_FORMAT = 1
_IDENTITY = ("format", "settings", "facts")


@dataclass(frozen=True)
class Run:
    """The folder of a run."""

    folder: Path

    @cached_property
    def _content(self) -> dict[str, Any]:
        return read_json(self.folder / RUN)

    @cached_property
    def settings(self) -> VolumePrediction:
        """Settings of the run."""
        return VolumePrediction.from_json(self._content["settings"])

    @property
    def id(self) -> str:
        """Tells this run from an earlier one in the same folder."""
        return str(self._content["id"])

    def check_current(self, run_id: str | None = None) -> None:
        """Raise `SelmaError` where the folder is no longer that of this run: nothing may be written into that of another."""
        try:
            current = read_json(self.folder / RUN)["id"] == (run_id or self.id)
        except OSError:
            current = False
        if not current:
            raise SelmaError(
                f"{self.folder}: another process has completed or replaced this run meanwhile; run the command again to see what is left"
            )

    @property
    def overwrite(self) -> bool:
        """True if the run replaces what is there."""
        return bool(self._content["overwrite"])

    @property
    def facts(self) -> dict[str, Any]:
        """Facts that follow from the settings: shape and type of the volume, grids, model."""
        facts: dict[str, Any] = self._content["facts"]
        return facts

    @property
    def shape(self) -> ShapeZYX:
        """Shape of the volume, (z, y, x)."""
        z, y, x = self.facts["shape"]
        return z, y, x

    @property
    def output(self) -> Path:
        """The OME-Zarr while it is written."""
        return self.folder / "output"

    @property
    def labels(self) -> Path:
        """The label image in it."""
        return self.output / "labels" / self.settings.name

    @property
    def probabilities(self) -> Path:
        """The probabilities while they are written."""
        return self.folder / "probabilities"

    @property
    def raw(self) -> Path | None:
        """The OME-Zarr with the image that blocks are read from; None where the input is in chunks and stays where it is."""
        if not self.facts["copied"]:
            return None
        return self.output if self.settings.raw else self.folder / "image"

    @property
    def slabs(self) -> list[slice]:
        """Slices that are read together."""
        depth, step = self.shape[0], int(self.facts["slab"])
        return [slice(z, min(z + step, depth)) for z in range(0, depth, step)]

    @cached_property
    def blocks(self) -> list[Box]:
        """Boxes that are predicted and written by themselves, in raster order."""
        z, y, x = self.facts["block"]
        found = []
        for block in blocks(self.shape, (z, y, x)):
            own_z, own_y, own_x = (slice(a, b) for a, b in zip(block.start, block.stop, strict=True))
            found.append((own_z, own_y, own_x))
        return found

    def tiles_at_once(self, wish: int) -> int:
        """Tiles that go through the network together, noted by the process that asks first: the same in all shares and continuations.

        A GPU rounds half precision otherwise for another number of tiles.

        Args:
            wish: what fits the memory of this process's device.
        """
        path = self.folder / "tiles_at_once.json"
        if not path.is_file():
            partial = path.with_name(f"{path.name}.{uuid4().hex[:8]}.partial")
            write_json(partial, {"tiles_at_once": wish})
            try:
                os.link(partial, path)  # unlike a renaming, it replaces nothing
            except FileExistsError:
                pass
            except OSError:  # a file system without links
                os.replace(partial, path)
            partial.unlink(missing_ok=True)
        return int(read_json(path)["tiles_at_once"])

    def slabs_to_do(self) -> list[int]:
        """Numbers of the slabs that nobody has read yet."""
        return self._to_do("slabs", ".npz", len(self.slabs))

    def blocks_to_do(self) -> list[int]:
        """Numbers of the blocks that are not whole yet."""
        return self._to_do("blocks", ".json", len(self.blocks))

    def _to_do(self, what: str, ending: str, count: int) -> list[int]:
        done = {name for name in os.listdir(self.folder / what) if name.endswith(ending)}
        return [index for index in range(count) if f"{index:06d}{ending}" not in done]

    def note_slab(self, index: int, intensities: Intensities, means: Array, repaired: Sequence[str]) -> None:
        """Say that a slab was read."""
        self.check_current()
        path = self.folder / "slabs" / f"{index:06d}.npz"
        with (
            whole_file(path, shared=True) as partial,
            partial.open("wb") as file,
        ):  # another share may read the same slab
            np.savez_compressed(file, means=means, repaired=np.array(repaired, str), **intensities.as_arrays())  # type: ignore[arg-type]

    def note_block(self, index: int, record: dict[str, Any]) -> None:
        """Say that a block is whole."""
        self.check_current()
        write_json(self.folder / "blocks" / f"{index:06d}.json", record)

    def block_records(self) -> list[dict[str, Any]]:
        """Records of all blocks that are whole."""
        return [read_json(path) for path in sorted((self.folder / "blocks").glob("*.json"))]

    @cached_property
    def intensities(self) -> Intensities:
        """Intensities of the whole volume; all slabs have been read."""
        return joined((Intensities.from_arrays(arrays) for arrays in self._slab_files()), axis=0)

    @cached_property
    def tissue(self) -> Tissue:
        """Region of the volume that is predicted; all slabs have been read."""
        mask = self.folder / "mask.npy"
        if mask.is_file():
            return Tissue(np.load(mask))
        if not self.settings.tissue_only:
            return Tissue.everywhere(self.shape)
        return Tissue.from_means(np.concatenate([arrays["means"] for arrays in self._slab_files()]))

    @property
    def repaired(self) -> list[str]:
        """Slices that stand interpolated."""
        return sorted({str(name) for arrays in self._slab_files() for name in arrays["repaired"]})

    def _slab_files(self) -> list[dict[str, Array]]:
        found = []
        for index in range(len(self.slabs)):
            with np.load(self.folder / "slabs" / f"{index:06d}.npz") as arrays:
                found.append(dict(arrays))
        return found


def remove(folder: Path) -> None:
    """Remove the folder of a run, or of what was to become one."""
    gone = folder.with_name(f"{folder.name}.{uuid4().hex[:8]}.done")
    try:
        folder.rename(gone)
    except FileNotFoundError:
        return
    shutil.rmtree(gone, ignore_errors=True)


def sweep(folder: Path) -> None:
    """Delete leftovers of killed processes: folders marked `.done`, and unnamed run folders older than a day."""
    if not folder.parent.is_dir():
        return
    for left in folder.parent.iterdir():
        if left.name.startswith(f"{folder.name}.") and (left.name.endswith(".done") or _age(left) > _DAY):
            shutil.rmtree(left, ignore_errors=True)


def _age(path: Path) -> float:
    """Seconds since it was changed; 0 where another process has removed it."""
    try:
        return time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def difference(run: Run, settings: VolumePrediction, facts: dict[str, Any]) -> str | None:
    """Name what makes the result of an interrupted run another one; None where nothing does."""
    found = read_json(run.folder / RUN)
    return _difference({key: found.get(key) for key in _IDENTITY}, content(settings, facts, overwrite=False))


def check_same(run: Run, settings: VolumePrediction, facts: dict[str, Any]) -> None:
    """Raise `SelmaError` where a run that was interrupted would have had another result."""
    different = difference(run, settings, facts)
    if different:
        raise SelmaError(
            f"{run.folder}: holds an interrupted run with another {different}; repeat the command as it was to go on with it, or add "
            "--overwrite to begin anew"
        )


def content(settings: VolumePrediction, facts: dict[str, Any], *, overwrite: bool) -> dict[str, Any]:
    """Content of `run.json` for a new run."""
    whole = {
        "format": _FORMAT,
        "settings": settings.as_json(),
        "facts": facts,
        "id": uuid4().hex,
        "overwrite": overwrite,
    }
    plain: dict[str, Any] = json.loads(json.dumps(whole))
    return plain


def _difference(found: dict[str, Any], wanted: dict[str, Any], name: str = "") -> str | None:
    """The first value that is not the same, by its name."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        for key in found:
            different = _difference(found.get(key), wanted.get(key), key.replace("_", " "))  # type: ignore[arg-type]
            if different:
                return different
        return None
    return None if found == wanted else f"{name} ({found} there, {wanted} now)"
