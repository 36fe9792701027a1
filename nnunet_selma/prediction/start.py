"""How a run begins: what follows from the settings and the files, and the empty images that are filled."""

from importlib.metadata import version
from math import prod
from typing import Any
from uuid import uuid4

import numpy as np

from nnunet_selma import __version__
from nnunet_selma.errors import SelmaError
from nnunet_selma.prediction.geometry import geometry, spacing_in_plans, trained_in_voxels
from nnunet_selma.prediction.model import Model
from nnunet_selma.prediction.run import RUN, Run, check_same, content, difference, remove
from nnunet_selma.prediction.settings import BASE_BYTES, GB, MemoryPlan, VolumePrediction, chunk_edge, cut
from nnunet_selma.prediction.slabs import open_channels, stored_dtype
from nnunet_selma.prediction.tissue import CELL, cells_of_mask
from nnunet_selma.running.json_files import write_json
from nnunet_selma.volumes import open_volume, stem
from nnunet_selma.volumes.ome_zarr_writing import ImageLayout, create_image, create_labels

_SLAB = 64
"""Slices that are read together, where the memory allows."""
_SLAB_COPIES = 6
"""Copies of a slab in memory while it is read: as it comes, as it is kept, where it is 0, and parts of it in float64."""
_RAW_SHARD = 1024
_LEAST_BLOCK = 16
_COLOURS = ((230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0), (204, 121, 167))
"""Colours of classes, red, green, blue: those of Okabe and Ito, which the colour-blind tell apart."""


def start_run(settings: VolumePrediction, device: str, *, overwrite: bool) -> Run:
    """The folder of a run with its empty images: a new one, or that of a run that was interrupted.

    A new folder gets its name when it is whole, so that several processes may begin the same run.

    Args:
        settings: what is asked for.
        device: where blocks are predicted; the model is only looked at here.
        overwrite: begin anew whatever is there, but for a run that did so itself and was interrupted.

    Raises:
        SelmaError: the model is incomplete, the volume does not fit it, or an interrupted run had other settings.
    """
    run = Run(settings.staging)
    model = Model(settings.model, "cpu")
    found = _facts(settings, model, device)
    if run.folder.exists() and not (overwrite and _other(run, settings, found)):
        check_same(run, settings, found)
        return run
    if overwrite:
        remove(run.folder)
        settings.record.unlink(missing_ok=True)  # or what it speaks of would be taken for the new result
    new = Run(run.folder.with_name(f"{run.folder.name}.{uuid4().hex[:8]}"))
    try:
        for part in ("slabs", "blocks"):
            (new.folder / part).mkdir(parents=True)
        write_json(new.folder / RUN, content(settings, found, overwrite=overwrite))
        _make_images(new, model)
        try:
            new.folder.rename(run.folder)
        except OSError:
            if not run.folder.exists():
                raise
            check_same(run, settings, found)  # another process was faster
    finally:
        remove(new.folder)
    return Run(run.folder)


def _other(run: Run, settings: VolumePrediction, facts: dict[str, Any]) -> bool:
    """True if the existing run must be discarded; False if it was itself started with `--overwrite` and can resume."""
    if not (run.folder / RUN).is_file():  # no run at all
        return True
    return not run.overwrite or difference(run, settings, facts) is not None


def _facts(settings: VolumePrediction, model: Model, device: str) -> dict[str, Any]:
    """Everything besides the settings that decides the result, and the grids of slabs and blocks."""
    volumes = open_channels(settings, len(model.channels))
    first = volumes[0]
    shape, dtype = first.shape, stored_dtype(volumes)
    spacing = settings.spacing_um_zyx or first.spacing_um_zyx
    z, y, x = (slice(0, length) for length in shape)
    unit = spacing_in_plans(spacing, model.plans)
    grids = geometry(model.configuration, model.transpose, (z, y, x), unit, model.tile, settings.model.step_size)
    scale = [1.0, 1.0, 1.0]
    for axis, own in enumerate(model.transpose):
        scale[own] = grids.tiling.shape[axis] / grids.forward.before[axis]
    chunk = chunk_edge(shape)
    plan = MemoryPlan.of(model, dtype.itemsize, settings.probabilities, (scale[0], scale[1], scale[2]))
    if settings.block is None:
        block = plan.block(shape, chunk, settings.max_memory)
    else:
        if settings.block < _LEAST_BLOCK or settings.block & (settings.block - 1):
            raise SelmaError(f"--block {settings.block}: give a power of two from {_LEAST_BLOCK} on, such as 256")
        chunk = min(chunk, settings.block)
        block = cut(settings.block, shape, chunk)
        plan.check_fits(block, settings.max_memory)
    plane_wise = any(volume.plane_wise for volume in volumes)
    copied = not settings.beside_input and (plane_wise or settings.raw)
    row = shape[2] * dtype.itemsize * len(volumes) * _SLAB_COPIES
    slab, rows, room = _SLAB, shape[1], max(settings.max_memory * GB - BASE_BYTES, BASE_BYTES / 4)
    while slab > 1 and slab * rows * row > room:
        if copied or plane_wise or rows <= CELL[1]:
            slab //= 2
        else:  # of a volume in chunks parts of a plane can be read
            rows = -(-rows // 2 // CELL[1]) * CELL[1]
    whole = [volume for volume in volumes if volume.read_whole]
    if whole and (taken := sum(prod(shape) * volume.dtype.itemsize for volume in whole)) > room / 2:
        raise SelmaError(
            f"{whole[0].path}: files of this kind cannot be read in part, and with --max-memory {settings.max_memory:g} it is too large to be read "
            f"whole ({taken / GB:.1f} GB); save it as OME-Zarr, TIFF slices or NIfTI, or give more memory"
        )
    if slab * rows * row > max(room, settings.max_memory * GB):
        raise SelmaError(
            f"--max-memory {settings.max_memory:g}: reading one slice of all channels takes about {(slab * rows * row + BASE_BYTES) / GB:.1f} GB; give at least that"
        )
    return {
        "shape": list(shape),
        "dtype": str(dtype),
        "channels": len(volumes),
        "spacing_um_zyx": None if spacing is None else list(spacing),
        "model": settings.model.fingerprint(),
        "block": list(block),
        "chunk": chunk,
        "in voxels": trained_in_voxels(model.plans),
        "slab": slab,
        "rows": rows,
        "copied": copied,
        # half precision on a GPU: blocks of both do not belong into one result
        "precision": "half" if device.startswith("cuda") else "single",
        "versions": {"nnunet_selma": __version__, "nnunetv2": version("nnunetv2")},
    }


def _make_images(run: Run, model: Model) -> None:
    """The images of a run, empty."""
    settings, facts = run.settings, run.facts
    spacing = None if facts["spacing_um_zyx"] is None else tuple(facts["spacing_um_zyx"])
    chunk = facts["chunk"]
    block = tuple(facts["block"])
    common: dict[str, Any] = {"shape": run.shape, "spacing_um_zyx": spacing, "version": settings.version}
    if run.raw is not None:
        first = open_channels(settings, facts["channels"])[0]
        middle = first.read(slice(run.shape[0] // 2, run.shape[0] // 2 + 1))
        low, high = (float(value) for value in np.percentile(middle, (0.1, 99.9)))
        flat = min(chunk, 128)
        across = max(flat, min(_RAW_SHARD, -(-max(run.shape[1:]) // flat) * flat))
        create_image(
            run.raw,
            ImageLayout(
                dtype=np.dtype(facts["dtype"]),
                shard_zyx=(facts["slab"], across, across),
                chunk_zyx=(min(facts["slab"], chunk), flat, flat),
                reduction="mean",
                name=stem(settings.output),
                window=(low, high) if high > low else None,
                channels=model.channels if facts["channels"] > 1 else (),
                **common,
            ),
        )
    classes = model.classes
    colours = {
        value: (name, (*_COLOURS[place % len(_COLOURS)], 255)) for place, (value, name) in enumerate(classes.items())
    }
    cube: dict[str, Any] = {"shard_zyx": block, "chunk_zyx": (chunk, chunk, chunk)}
    create_image(
        run.labels,
        ImageLayout(
            dtype=model.label_dtype, reduction="mode", name=settings.name, label_colours=colours, **cube, **common
        ),
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
                **cube,
                **common,
            ),
        )
    if settings.mask is not None:
        np.save(run.folder / "mask.npy", cells_of_mask(open_volume(settings.mask), run.shape, spacing))
