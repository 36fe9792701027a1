"""The folder of a run, from which any process, on any machine that sees the folder, can continue it.

    .OUT.ome.zarr.partial/
        run.json        settings, fingerprints of all files, sizes of slabs and blocks, the results that it replaces
        slabs/          for each slab that was read: its intensities, and the brightness of its grid boxes
        blocks/         for each block that is written: tiles, foreground, time
        tiles_at_once.json  number of tiles that go through the network together
        output/         becomes OUT.ome.zarr
        image/          the image in chunks that blocks can read, if the output is to have none
        probabilities/  becomes OUT_probabilities.ome.zarr

A slab or block is done when its file is there. The file is written after the voxels, under a temporary name, and renamed. A folder that
is not needed any more is renamed before it is removed, so that a run is never there in part.
"""

import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np

from nnunet_selma.errors import SelmaError
from nnunet_selma.morphology.blocks import Box, blocks
from nnunet_selma.morphology.masks import StoredMask
from nnunet_selma.morphology.tissue import TissueGrid, find_tissue, grid_box
from nnunet_selma.prediction.intensities import Intensities, join_parts, moments_in_boxes
from nnunet_selma.prediction.records import BlockRecord, RunFacts, first_difference, plain
from nnunet_selma.prediction.sources import Sources
from nnunet_selma.prediction.volume_prediction import VolumePrediction, identity
from nnunet_selma.prediction.written import Manifest, manifests_as_json, manifests_from_json
from nnunet_selma.running.json_files import read_json, write_json
from nnunet_selma.running.whole_files import whole_file
from nnunet_selma.volumes.base import Array
from nnunet_selma.volumes.moments import Moments

RUN = "run.json"
_DAY = 24 * 3600.0
_FORMAT = 2


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

    @cached_property
    def facts(self) -> RunFacts:
        """Facts about the volume, the model and the grids."""
        return RunFacts.from_json(self._content["facts"])

    @property
    def id(self) -> str:
        """Identifier that distinguishes this run from an earlier one in the same folder."""
        return str(self._content["id"])

    @property
    def overwrite(self) -> bool:
        """True if the run replaces an earlier result."""
        return bool(self._content["overwrite"])

    @property
    def replaced(self) -> dict[str, Manifest]:
        """Manifest of each earlier result that the run replaces."""
        return manifests_from_json(self._content.get("replaces", {}))

    def check_current(self, run_id: str | None = None) -> None:
        """Raise `SelmaError` if the folder belongs to another run by now, into which nothing may be written."""
        try:
            current = read_json(self.folder / RUN)["id"] == (run_id or self.id)
        except OSError:
            current = False
        if not current:
            raise SelmaError(
                f"{self.folder}: another process has completed or replaced this run meanwhile; run the command again to see what is left"
            )

    @property
    def output(self) -> Path:
        """The OME-Zarr while it is written."""
        return self.folder / "output"

    @property
    def labels(self) -> Path:
        """The label image in the output."""
        return self.output / "labels" / self.settings.name

    @property
    def probabilities(self) -> Path:
        """The probabilities while they are written."""
        return self.folder / "probabilities"

    @property
    def raw(self) -> Path | None:
        """The OME-Zarr from which blocks read the image; None if they read the input itself."""
        if not self.facts.copied:
            return None
        kept = self.settings.raw and not self.settings.beside_input
        return self.output if kept else self.folder / "image"

    @property
    def slabs(self) -> list[slice]:
        """Slices of each slab."""
        depth, step = self.facts.shape[0], self.facts.slab
        return [slice(z, min(z + step, depth)) for z in range(0, depth, step)]

    @cached_property
    def blocks(self) -> list[Box]:
        """Box of each block (z, y, x), in raster order."""
        boxes = []
        for block in blocks(self.facts.shape, self.facts.block):
            z, y, x = map(slice, block.start, block.stop)
            boxes.append((z, y, x))
        return boxes

    def tiles_at_once(self, fitting: int) -> int:
        """Number of tiles that go through the network together; the same for all processes and continuations of a run.

        A GPU rounds half precision differently for another number of tiles, so that the process that asks first decides for all.

        Args:
            fitting: tiles that fit into the memory of this process's device.
        """
        path = self.folder / "tiles_at_once.json"
        if not path.is_file():
            partial = path.with_name(f"{path.name}.{uuid4().hex[:8]}.partial")
            write_json(partial, {"tiles_at_once": fitting})
            try:
                os.link(partial, path)  # unlike renaming, it replaces nothing
            except FileExistsError:
                pass
            except OSError:  # a file system without links
                os.replace(partial, path)
            partial.unlink(missing_ok=True)
        return int(read_json(path)["tiles_at_once"])

    def slabs_to_do(self) -> list[int]:
        """Numbers of the slabs that no process has read yet."""
        return self._to_do("slabs", ".npz", len(self.slabs))

    def blocks_to_do(self) -> list[int]:
        """Numbers of the blocks that are not written yet."""
        return self._to_do("blocks", ".json", len(self.blocks))

    def _to_do(self, part: str, ending: str, count: int) -> list[int]:
        done = {name for name in os.listdir(self.folder / part) if name.endswith(ending)}
        return [index for index in range(count) if f"{index:06d}{ending}" not in done]

    def record_slab(
        self, index: int, intensities: Intensities, means: Array, repaired: Sequence[str], moments: Array | None = None
    ) -> None:
        """Record that a slab was read.

        Args:
            index: number of the slab.
            intensities: intensities of the slab.
            means: mean log intensity of its grid boxes (z, y, x).
            repaired: names of slices that were interpolated.
            moments: mean and standard deviation of its grid boxes (c, z, y, x, 2), where the volume is normalised by those of tissue.
        """
        extra = {} if moments is None else {"box_moments": moments}
        self.check_current()
        path = self.folder / "slabs" / f"{index:06d}.npz"
        # another process may read the same slab
        with whole_file(path, shared=True) as partial, partial.open("wb") as file:
            np.savez_compressed(file, means=means, repaired=np.array(repaired, str), **intensities.as_arrays(), **extra)  # type: ignore[arg-type]

    def record_block(self, index: int, record: BlockRecord) -> None:
        """Record that a block is written."""
        self.check_current()
        write_json(self.folder / "blocks" / f"{index:06d}.json", asdict(record))

    def block_records(self) -> list[BlockRecord]:
        """Records of all blocks that are written."""
        return [BlockRecord(**read_json(path)) for path in sorted((self.folder / "blocks").glob("*.json"))]

    @cached_property
    def intensities(self) -> Intensities:
        """Intensities of the whole volume; needs all slabs."""
        whole = join_parts((Intensities.from_arrays(arrays) for arrays in self._slab_files()), axis=0)
        return whole if self.settings.statistics == "volume" else replace(whole, tissue=self._tissue_moments())

    def _tissue_moments(self) -> tuple[Moments, ...]:
        """Moments of each channel over the grid boxes of the mask, or those that are tissue."""
        mask = StoredMask.open(self.folder, self.facts.shape)
        boxes = find_tissue(self.means, grid_box(self.facts.shape))[0] if mask is None else mask.boxes
        total, first = [Moments()] * self.facts.channels, 0
        for arrays in self._slab_files():
            moments = arrays["box_moments"]
            layers = boxes[first : first + moments.shape[1]]
            parts = moments_in_boxes(moments, layers, self.facts.shape)
            total = [before + part for before, part in zip(total, parts, strict=True)]
            first += len(layers)
        return tuple(total)

    @property
    def means(self) -> Array:
        """Mean log intensity of each grid box (z, y, x); needs all slabs."""
        return np.concatenate([arrays["means"] for arrays in self._slab_files()])

    @cached_property
    def tissue(self) -> TissueGrid:
        """Part of the volume that is predicted; needs all slabs."""
        mask = StoredMask.open(self.folder, self.facts.shape)
        if mask is not None:
            return mask
        if not self.settings.tissue_only:
            return TissueGrid.whole(self.facts.shape)
        return TissueGrid.from_means(self.means, grid_box(self.facts.shape))

    @property
    def repaired(self) -> list[str]:
        """Names of the slices that were interpolated; needs all slabs."""
        return sorted({str(name) for arrays in self._slab_files() for name in arrays["repaired"]})

    def _slab_files(self) -> Iterator[Mapping[str, Array]]:
        """Arrays of each slab; they are read when they are taken, and the file is closed after that."""
        for index in range(len(self.slabs)):
            with np.load(self.folder / "slabs" / f"{index:06d}.npz") as arrays:
                yield arrays

    def changed_setting(self, settings: VolumePrediction, facts: RunFacts, sources: Sources) -> str | None:
        """The first setting, fact or file that differs from the run's; None if the result would be the same."""
        stored = read_json(self.folder / RUN)  # anew, because another process may have replaced the run
        if stored.get("format") != _FORMAT:
            return f"format ({stored.get('format')} there, {_FORMAT} now)"
        block = stored["settings"]["block"]
        if settings.block not in (None, block):
            return f"block ({block} there, {settings.block} now)"
        begun = RunFacts.from_json(stored["facts"])
        return (
            first_difference(identity(stored["settings"]), identity(settings.as_json()))
            or begun.changed(facts)
            or sources.changed(begun.model, begun.files)
        )

    def check_same(self, settings: VolumePrediction, facts: RunFacts, sources: Sources) -> None:
        """Raise `SelmaError` if the run has other settings, facts or files, so that its result would be another one."""
        changed = self.changed_setting(settings, facts, sources)
        if changed:
            raise SelmaError(
                f"{self.folder}: holds an interrupted run with another {changed}; repeat the command as it was to go on with it, or add "
                "--overwrite to begin anew"
            )

    def go_on(self, settings: VolumePrediction) -> "Run":
        """The run with the paths and the memory of this call, which do not change the result; those of the first call may be gone."""
        self.check_current()
        stored = self._content
        content = {**stored, "settings": settings.as_json() | {"block": stored["settings"]["block"]}}
        if content != stored:
            write_json(self.folder / RUN, content)
        return Run(self.folder)


def new_content(
    settings: VolumePrediction, facts: RunFacts, *, overwrite: bool, replaces: Mapping[str, Manifest]
) -> dict[str, Any]:
    """Content of `run.json` for a new run."""
    return plain(
        {
            "format": _FORMAT,
            "settings": settings.as_json(),
            "facts": facts.as_json(),
            "id": uuid4().hex,
            "overwrite": overwrite,
            "replaces": manifests_as_json(replaces),
        }
    )


def remove_run(folder: Path) -> None:
    """Remove the folder of a run, complete or not."""
    renamed = folder.with_name(f"{folder.name}.{uuid4().hex[:8]}.done")
    try:
        folder.rename(renamed)
    except FileNotFoundError:
        return
    shutil.rmtree(renamed, ignore_errors=True)


def remove_leftovers(folder: Path) -> None:
    """Delete leftovers of killed processes: folders marked `.done`, and unnamed run folders older than a day."""
    if not folder.parent.is_dir():
        return
    for leftover in folder.parent.iterdir():
        if leftover.name.startswith(f"{folder.name}.") and (leftover.name.endswith(".done") or _age(leftover) > _DAY):
            shutil.rmtree(leftover, ignore_errors=True)


def _age(path: Path) -> float:
    """Seconds since a file was changed; 0 if another process has removed it."""
    try:
        return time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return 0.0
