"""Beginning a run: its folder, the facts that follow from settings and files, and the empty images."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from math import ceil
from typing import Any
from uuid import uuid4

import nibabel
import numpy as np

from nnunet_selma import __version__
from nnunet_selma.errors import SelmaError
from nnunet_selma.morphology.masks import store_mask
from nnunet_selma.prediction.grids import make_grids, network_axes, spacing_in_plans, trained_in_voxels
from nnunet_selma.prediction.intensities import depends_on_statistics
from nnunet_selma.prediction.memory import GB, MemoryPlan
from nnunet_selma.prediction.model import Model
from nnunet_selma.prediction.place import replaceable
from nnunet_selma.prediction.records import RunFacts
from nnunet_selma.prediction.run import RUN, Run, new_content, remove_run
from nnunet_selma.prediction.slab_reading import open_channels, stored_dtype
from nnunet_selma.prediction.slabs import choose_slab, copy_layout, is_ill_chunked
from nnunet_selma.prediction.sources import Sources
from nnunet_selma.prediction.volume_prediction import VolumePrediction
from nnunet_selma.running.json_files import write_json
from nnunet_selma.structures import SpacingUm
from nnunet_selma.volumes import stem
from nnunet_selma.volumes.base import ShapeZYX, Volume
from nnunet_selma.volumes.nifti import is_nifti
from nnunet_selma.volumes.ome_zarr_writing import ImageLayout, create_image, create_labels, place_like
from nnunet_selma.volumes.segmented import open_labels

_COLOURS = ((230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0), (204, 121, 167))
"""Colours of classes, red, green, blue: those of Okabe and Ito, which the colour-blind can distinguish."""


@dataclass(frozen=True, kw_only=True)
class StartedRun:
    """A run, with what was opened to begin or to continue it."""

    run: Run
    model: Model
    """The model, on the device on which it was opened."""
    volumes: tuple[Volume, ...]
    """The volume of each channel."""


def start_run(
    settings: VolumePrediction,
    device: str,
    *,
    overwrite: bool,
    sources: Sources | None = None,
    model: Model | None = None,
) -> StartedRun:
    """Create the folder of a run with its empty images, or return that of a run that was interrupted.

    A new folder gets its name when it is complete, so that several processes may start the same run.

    Args:
        settings: settings of the prediction.
        device: where blocks are predicted; the model is only looked at here.
        overwrite: replace an interrupted run, unless it was itself started to overwrite.
        sources: fingerprints of the files, where they are known already.
        model: the model of the settings, where it is open already.

    Raises:
        SelmaError: the model is incomplete, the volume does not fit it, an interrupted run had other settings or files, or its blocks do not
            fit into the memory.
    """
    run, sources = Run(settings.staging), sources or Sources(settings)
    model = model or Model(settings.model, "cpu")
    volumes = tuple(open_channels(settings, len(model.channels)))
    discard = overwrite
    if run.folder.exists():
        begun = run.facts if (run.folder / RUN).is_file() else None
        facts = _facts(settings, model, volumes, device, sources, begun)
        if _input_was_mended(run, settings, facts, sources):
            discard, overwrite = True, overwrite or run.overwrite
        elif not (overwrite and _must_be_discarded(run, settings, facts, sources)):
            run.check_same(settings, facts, sources)
            _check_fits(run, settings, model, volumes)
            return StartedRun(run=run.go_on(settings), model=model, volumes=volumes)
    facts = _facts(settings, model, volumes, device, sources, None)
    replaces = replaceable(settings) if overwrite else {}
    if discard:
        remove_run(run.folder)
    new = Run(run.folder.with_name(f"{run.folder.name}.{uuid4().hex[:8]}"))
    try:
        for part in ("slabs", "blocks"):
            (new.folder / part).mkdir(parents=True)
        write_json(new.folder / RUN, new_content(settings, facts, overwrite=overwrite, replaces=replaces))
        _create_images(new, model, volumes)
        try:
            new.folder.rename(run.folder)
        except OSError:
            if not run.folder.exists():
                raise
            run.check_same(settings, facts, sources)  # another process was faster
    finally:
        remove_run(new.folder)
    return StartedRun(run=Run(run.folder), model=model, volumes=volumes)


def _input_was_mended(run: Run, settings: VolumePrediction, facts: RunFacts, sources: Sources) -> bool:
    """True if nothing but the contents of an input has changed since the run began to read it, so that reading it anew loses nothing else.

    A slice that cannot be read ends a run, and is replaced before the next call.
    """
    if not (run.folder / RUN).is_file() or not run.slabs_to_do():
        return False
    name, changed = sources.changed_file(run.facts.files), run.changed_setting(settings, facts, sources)
    return name is not None and name != "mask" and changed == sources.changed(run.facts.model, run.facts.files)


def _must_be_discarded(run: Run, settings: VolumePrediction, facts: RunFacts, sources: Sources) -> bool:
    """True if the existing run must be discarded; False if it was itself started with `--overwrite` and can resume."""
    if not (run.folder / RUN).is_file():  # no run at all
        return True
    return not run.overwrite or run.changed_setting(settings, facts, sources) is not None


def _facts(
    settings: VolumePrediction,
    model: Model,
    volumes: Sequence[Volume],
    device: str,
    sources: Sources,
    begun: RunFacts | None,
) -> RunFacts:
    """Facts that follow from the settings, the volume and the model; sizes of blocks and slabs are those of a run that was begun."""
    first, dtype = volumes[0], stored_dtype(list(volumes))
    axes, flips = _network_axes(model, first)
    plan = _memory_plan(settings, model, volumes)
    block, chunk = (
        (begun.block, begun.chunk) if begun else plan.choose_block(first.shape, settings.block, settings.max_memory)
    )
    copied = _is_copied(settings, volumes, plan, block, chunk)
    slab, rows = (begun.slab, begun.rows) if begun else _slab(settings, model, volumes, copied=copied)
    return RunFacts(
        shape=first.shape,
        dtype=str(dtype),
        channels=len(volumes),
        spacing_um_zyx=_spacing(settings, first),
        model=sources.model,
        axes=axes,
        flips=flips,
        block=block,
        chunk=chunk,
        in_voxels=trained_in_voxels(model.plans),
        slab=slab,
        rows=rows,
        copied=copied,
        precision="half" if device.startswith("cuda") else "single",
        by_image=depends_on_statistics(model.configuration),
        versions={"nnunet_selma": __version__, "nnunetv2": version("nnunetv2")},
        files=sources.files,
    )


def _spacing(settings: VolumePrediction, volume: Volume) -> SpacingUm | None:
    """Voxel size of the level that is read, µm."""
    if settings.spacing_um_zyx is None:
        return volume.spacing_um_zyx
    edges = zip(settings.spacing_um_zyx, volume.level_factor_zyx, strict=True)
    z, y, x = (edge * factor for edge, factor in edges)
    return z, y, x


def _memory_plan(settings: VolumePrediction, model: Model, volumes: Sequence[Volume]) -> MemoryPlan:
    """Memory that blocks of this volume take."""
    first, dtype = volumes[0], stored_dtype(list(volumes))
    z, y, x = (slice(0, length) for length in first.shape)
    unit = spacing_in_plans(_spacing(settings, first), model.plans)
    axes, flips = _network_axes(model, first)
    grids = make_grids(model.configuration, axes, flips, (z, y, x), unit, model.tile, settings.model.step_size)
    return MemoryPlan.for_model(model, axes, dtype.itemsize, settings.probabilities, grids.scale, _kept(volumes))


def _kept(volumes: Sequence[Volume]) -> int:
    """Bytes of decoded chunks that open volumes keep."""
    return sum(volume.kept_bytes for volume in volumes)


def _network_axes(model: Model, volume: Volume) -> tuple[tuple[int, int, int], tuple[bool, bool, bool]]:
    """Axes of the volume that become those of the network, and whether they are flipped."""
    # nibabel has an affine also for a file that states none, and nnU-Net turns by that one
    affine = nibabel.load(volume.path).affine if is_nifti(volume.path) else volume.affine
    return network_axes(model.plans, affine)


def _is_copied(
    settings: VolumePrediction, volumes: Sequence[Volume], plan: MemoryPlan, block: ShapeZYX, chunk: int
) -> bool:
    """True if the image is copied into chunks, from which blocks are read."""
    # along a column nothing is read again
    z, y, x = (
        0 if axis == plan.along else ceil(edge / scale / 2)
        for axis, (edge, scale) in enumerate(zip(plan.tile, plan.scale, strict=True))
    )
    plane_wise = any(volume.plane_wise for volume in volumes)
    return is_ill_chunked(volumes, block, (z, y, x), chunk) or (
        not settings.beside_input and (plane_wise or settings.raw)
    )


def _slab(settings: VolumePrediction, model: Model, volumes: Sequence[Volume], *, copied: bool) -> tuple[int, int]:
    """Slices, and lines of a slice, that are read together within the memory that the open model leaves."""
    left = settings.max_memory - (model.weight_bytes * (len(settings.model.folds) + 1) + _kept(volumes)) / GB
    return choose_slab(list(volumes), stored_dtype(list(volumes)).itemsize, left, copied=copied)


def _check_fits(run: Run, settings: VolumePrediction, model: Model, volumes: Sequence[Volume]) -> None:
    """Raise `SelmaError` if the blocks of a run, or the slabs that are still to be read, do not fit into the memory of this call."""
    facts, memory = run.facts, settings.max_memory
    needed = _memory_plan(settings, model, volumes).bytes(facts.block) / GB
    if needed > memory and run.blocks_to_do():
        size = "×".join(map(str, facts.block))
        raise SelmaError(
            f"--max-memory {memory:g}: {run.folder} was begun with blocks of {size} voxels, which take about {needed:.1f} GB; give at least that "
            "to go on with it, or add --overwrite to begin anew with smaller blocks"
        )
    slab, rows = _slab(settings, model, volumes, copied=facts.copied)
    if slab * rows < facts.slab * facts.rows and run.slabs_to_do():
        raise SelmaError(
            f"--max-memory {memory:g}: {run.folder} was begun with slabs of {facts.slab} slices, of which not all are read, and "
            f"{max(1, slab * rows // facts.rows)} slices fit; give the {run.settings.max_memory:g} GB of then until they are read, or add --overwrite to begin anew"
        )


def _create_images(run: Run, model: Model, volumes: Sequence[Volume]) -> None:
    """Create the images of a run, empty."""
    settings, facts = run.settings, run.facts
    first = volumes[0]
    common: dict[str, Any] = {
        "shape": facts.shape,
        "spacing_um_zyx": facts.spacing_um_zyx,
        "version": settings.version,
        **place_like(first),
    }
    if run.raw is not None:
        shard, raw_chunk = copy_layout(facts.shape, facts.slab, facts.rows, facts.chunk)
        create_image(
            run.raw,
            ImageLayout(
                dtype=np.dtype(facts.dtype),
                shard_zyx=shard,
                chunk_zyx=raw_chunk,
                reduction="mean",
                name=stem(settings.output),
                window=_window(first, facts) if run.raw == run.output else None,  # nobody looks at the other copy
                channels=model.channels if facts.channels > 1 else (),
                **common,
            ),
        )
    classes = model.classes
    colours = {
        value: (name, (*_COLOURS[place % len(_COLOURS)], 255)) for place, (value, name) in enumerate(classes.items())
    }
    common |= {"shard_zyx": facts.block, "chunk_zyx": (facts.chunk,) * 3}
    create_image(
        run.labels,
        ImageLayout(dtype=model.label_dtype, reduction="any", name=settings.name, label_colours=colours, **common),
    )
    create_labels(run.output, [settings.name], settings.version)
    if settings.probabilities:
        create_image(
            run.probabilities,
            ImageLayout(
                dtype=np.dtype(np.uint8),
                reduction="mean",
                name=f"probability of {', '.join(classes.values())}",
                channels=tuple(classes.values()),
                **common,
            ),
        )
    if settings.mask is not None:
        store_mask(open_labels(settings.mask), run.folder, facts.shape, facts.spacing_um_zyx, first.affine)


def _window(volume: Volume, facts: RunFacts) -> tuple[float, float] | None:
    """Values that viewers show as black and white, from the middle slice; None where it is flat."""
    middle = volume.read(slice(facts.shape[0] // 2, facts.shape[0] // 2 + 1)).astype(facts.dtype)  # of booleans, 0/1
    low, high = (float(value) for value in np.percentile(middle, (0.1, 99.9)))
    return (low, high) if high > low else None
