"""Beginning a run: its folder, the facts that follow from settings and files, and the empty images."""

from importlib.metadata import version
from math import ceil
from typing import Any
from uuid import uuid4

import numpy as np

from nnunet_selma import __version__
from nnunet_selma.morphology.tissue import mask_boxes
from nnunet_selma.prediction.grids import make_grids, spacing_in_plans, trained_in_voxels
from nnunet_selma.prediction.memory import MemoryPlan
from nnunet_selma.prediction.model import Model
from nnunet_selma.prediction.records import RunFacts
from nnunet_selma.prediction.run import RUN, Run, new_content, remove_run
from nnunet_selma.prediction.slab_reading import open_channels, stored_dtype
from nnunet_selma.prediction.slabs import choose_slab, copy_layout, is_ill_chunked
from nnunet_selma.prediction.volume_prediction import VolumePrediction
from nnunet_selma.running.json_files import write_json
from nnunet_selma.volumes import open_volume, stem
from nnunet_selma.volumes.ome_zarr_writing import ImageLayout, create_image, create_labels

_COLOURS = ((230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0), (204, 121, 167))
"""Colours of classes, red, green, blue: those of Okabe and Ito, which the colour-blind can distinguish."""


def start_run(settings: VolumePrediction, device: str, *, overwrite: bool) -> Run:
    """Create the folder of a run with its empty images, or return that of a run that was interrupted.

    A new folder gets its name when it is complete, so that several processes may start the same run.

    Args:
        settings: settings of the prediction.
        device: where blocks are predicted; the model is only looked at here.
        overwrite: replace an interrupted run, unless it was itself started to overwrite.

    Raises:
        SelmaError: the model is incomplete, the volume does not fit it, or an interrupted run had other settings.
    """
    run = Run(settings.staging)
    model = Model(settings.model, "cpu")
    facts = _facts(settings, model, device)
    if run.folder.exists() and not (overwrite and _must_be_discarded(run, settings, facts)):
        run.check_same(settings, facts)
        return run
    if overwrite:
        remove_run(run.folder)
        settings.record.unlink(missing_ok=True)  # or the old record would be taken for that of the new result
    new = Run(run.folder.with_name(f"{run.folder.name}.{uuid4().hex[:8]}"))
    try:
        for part in ("slabs", "blocks"):
            (new.folder / part).mkdir(parents=True)
        write_json(new.folder / RUN, new_content(settings, facts, overwrite=overwrite))
        _create_images(new, model)
        try:
            new.folder.rename(run.folder)
        except OSError:
            if not run.folder.exists():
                raise
            run.check_same(settings, facts)  # another process was faster
    finally:
        remove_run(new.folder)
    return Run(run.folder)


def _must_be_discarded(run: Run, settings: VolumePrediction, facts: RunFacts) -> bool:
    """True if the existing run must be discarded; False if it was itself started with `--overwrite` and can resume."""
    if not (run.folder / RUN).is_file():  # no run at all
        return True
    return not run.overwrite or run.changed_setting(settings, facts) is not None


def _facts(settings: VolumePrediction, model: Model, device: str) -> RunFacts:
    """Facts that follow from the settings, the volume and the model."""
    volumes = open_channels(settings, len(model.channels))
    first, dtype = volumes[0], stored_dtype(volumes)
    spacing = first.spacing_um_zyx
    if settings.spacing_um_zyx is not None:
        edges = zip(settings.spacing_um_zyx, first.level_factor_zyx, strict=True)
        depth, height, width = (edge * factor for edge, factor in edges)
        spacing = (depth, height, width)
    z, y, x = (slice(0, length) for length in first.shape)
    unit = spacing_in_plans(spacing, model.plans)
    grids = make_grids(model.configuration, model.transpose, (z, y, x), unit, model.tile, settings.model.step_size)
    plan = MemoryPlan.for_model(model, dtype.itemsize, settings.probabilities, grids.scale)
    block, chunk = plan.choose_block(first.shape, settings.block, settings.max_memory)
    plane_wise = any(volume.plane_wise for volume in volumes)
    halo_z, halo_y, halo_x = (ceil(edge / scale / 2) for edge, scale in zip(plan.tile, grids.scale, strict=True))
    copied = is_ill_chunked(volumes, block, (halo_z, halo_y, halo_x), chunk)
    copied |= not settings.beside_input and (plane_wise or settings.raw)
    slab, rows = choose_slab(volumes, dtype.itemsize, settings.max_memory, copied=copied)
    return RunFacts(
        shape=first.shape,
        dtype=str(dtype),
        channels=len(volumes),
        spacing_um_zyx=spacing,
        model=settings.model.fingerprint(),
        block=block,
        chunk=chunk,
        in_voxels=trained_in_voxels(model.plans),
        slab=slab,
        rows=rows,
        copied=copied,
        precision="half" if device.startswith("cuda") else "single",
        versions={"nnunet_selma": __version__, "nnunetv2": version("nnunetv2")},
    )


def _create_images(run: Run, model: Model) -> None:
    """Create the images of a run, empty."""
    settings, facts = run.settings, run.facts
    common: dict[str, Any] = {
        "shape": facts.shape,
        "spacing_um_zyx": facts.spacing_um_zyx,
        "version": settings.version,
    }
    if run.raw is not None:
        first = open_channels(settings, facts.channels)[0]
        middle = first.read(slice(facts.shape[0] // 2, facts.shape[0] // 2 + 1))
        low, high = (float(value) for value in np.percentile(middle, (0.1, 99.9)))
        shard, raw_chunk = copy_layout(facts.shape, facts.slab, facts.rows, facts.chunk)
        create_image(
            run.raw,
            ImageLayout(
                dtype=np.dtype(facts.dtype),
                shard_zyx=shard,
                chunk_zyx=raw_chunk,
                reduction="mean",
                name=stem(settings.output),
                window=(low, high) if high > low else None,
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
        np.save(run.folder / "mask.npy", mask_boxes(open_volume(settings.mask), facts.shape, facts.spacing_um_zyx))
