"""A table of the objects of a segmentation of any size: volume, place, intensity and atlas region of each, and a summary of all.

One pass over the blocks finds and measures the objects. Further passes are made only when asked for: objects that touch (`splitting`), topology,
skeletons (`trees`), and the image of object numbers (`instances`). Memory: a block and what is computed of it (0.7 GB where it holds little, 1.5 GB where it is
full), slabs of slices (`reading`) and the objects (`measuring`). It does not grow with the volume otherwise.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_selma import __version__
from nnunet_selma.errors import SelmaError, counted
from nnunet_selma.morphology.components import Connectivity
from nnunet_selma.morphology.watershed import NECK
from nnunet_selma.objects.atlas import Atlas, open_atlas
from nnunet_selma.objects.brainreg import brainreg_output
from nnunet_selma.objects.instance_image import InstanceImage, check_free, write_instances
from nnunet_selma.objects.measuring import find_objects
from nnunet_selma.objects.reading import Sources, open_sources
from nnunet_selma.objects.regions import read_region_names, region_table, regions_of, registration_notes
from nnunet_selma.objects.splitting import MOST_VOXELS, SplitObjects, Splitting, probability_reader, split_touching
from nnunet_selma.objects.summary import HALO, counts, topology, trees
from nnunet_selma.objects.table import table_of
from nnunet_selma.objects.table_files import check_writable, write_table
from nnunet_selma.running.json_files import read_json, without_nan, write_json
from nnunet_selma.running.progress import Progress, silent
from nnunet_selma.structures import SpacingUm
from nnunet_selma.volumes import Volume


@dataclass(frozen=True, kw_only=True)
class ObjectSettings:
    """Options for measuring and writing objects."""

    labels: Path
    """The segmentation: any volume of labels, or an OME-Zarr image with label images."""
    output: Path
    """The table, .csv or .parquet; its summary gets the same name with .json."""
    label: str | None = None
    """Label image of an OME-Zarr that holds several."""
    raw: Path | None = None
    """The image whose intensities are measured; None: the image in the OME-Zarr, if there is one."""
    without_raw: bool = False
    """Measure no intensities."""
    scene: str | None = None
    """Name or number of the image in a raw file with several. None: the only one."""
    channel: int | None = None
    """Channel of an image with several, from 0."""
    time: int | None = None
    """Time point of a raw file with several, from 0. None: the only one."""
    spacing_um_zyx: SpacingUm | None = None
    """Voxel size, µm; None: that of the file."""
    connectivity: Connectivity = 26
    """Neighbours of a voxel: 6 share a face with it, 26 a face, an edge or a corner."""
    min_voxels: int = 1
    """Smallest object that is listed, voxels."""
    max_voxels: int | None = None
    """Largest object that is listed, voxels."""
    split_touching: bool = False
    """Part objects that touch, by a watershed of each component, which reads the labels once more."""
    neck: float | None = None
    """Bodies are parted where the neck between them is at most this share of the smaller one's radius. None: 0.85."""
    probabilities: Path | None = None
    """The OUT_probabilities.ome.zarr of predict-volume: touching objects are also parted where the probability drops between them."""
    topology: bool = False
    """Count components, loops and cavities (β0, β1, β2) of everything above 0, which reads the labels once more."""
    trees: bool = False
    """Measure length and branch points of the skeletons. Networks that span a brain need labels in chunks (OME-Zarr); slices are read many times."""
    instances: Path | None = None
    """OME-Zarr to write with the number of its object at every voxel; IMAGE.ome.zarr/labels/NAME adds it to an image."""
    overwrite: bool = False
    """Replace instances that are there."""
    atlas: Path | None = None
    """Volume of region numbers, or an output folder of brainreg. Without a transform it covers the field of view of the labels, at any resolution."""
    transform: Path | None = None
    """Transform from the sample (fixed image) to the atlas (moving image), as ITK and ANTs write it. Labels in NIfTI, NRRD and MHA, or predicted from them, are placed by their headers; others by their origin."""
    orientation: str | None = None
    """Side from which the first voxel of each axis of the labels is, as BrainGlobe writes it: psl for posterior, superior, left; None: that in brainreg.json, or what the headers of both files say."""
    atlas_orientation: str | None = None
    """The same of the atlas; None: asr for what brainreg wrote, or what the headers say."""
    atlas_spacing_um_zyx: SpacingUm | None = None
    """Voxel size of the atlas, µm; None: that of the file."""
    region_names: Path | None = None
    """CSV file with the columns id and name."""
    regions: Path | None = None
    """Table of regions to write; None: TABLE_regions.csv."""

    def __post_init__(self) -> None:
        """Check that the options fit together."""
        if self.min_voxels < 1 or (self.max_voxels is not None and self.max_voxels < self.min_voxels):
            raise SelmaError("--min-voxels is at least 1, and --max-voxels no less than --min-voxels")
        of_atlas = {
            "--transform": self.transform,
            "--orientation": self.orientation,
            "--atlas-orientation": self.atlas_orientation,
            "--atlas-spacing": self.atlas_spacing_um_zyx,
            "--region-names": self.region_names,
            "--regions": self.regions,
        }
        given = [option for option, value in of_atlas.items() if value is not None]
        if self.atlas is None and given:
            raise SelmaError(f"{given[0]} is for an atlas: give it with --atlas FILE")
        if self.neck is not None and not 0 < self.neck <= 1:
            raise SelmaError("--neck is a share above 0 and up to 1")
        of_touching = {"--neck": self.neck, "--probabilities": self.probabilities}
        given = [option for option, value in of_touching.items() if value is not None]
        if given and not self.split_touching:
            raise SelmaError(f"{given[0]} is for objects that touch: add --split-touching")
        if not self.output.name:
            raise SelmaError(f"{self.output}: is a folder; give the name of a file")
        if self.region_table == self.output:
            raise SelmaError(f"{self.output}: cannot hold objects and regions; give --regions another name")

    @property
    def summary(self) -> Path:
        """Path of the summary."""
        return self.output.with_suffix(".json")

    @property
    def region_table(self) -> Path:
        """Path of the table of regions."""
        return self.regions or self.output.with_name(f"{self.output.stem}_regions.csv")


def measure_objects(settings: ObjectSettings, progress: Progress[Any] = silent) -> dict[str, Any]:
    """Write the table of objects, its summary, and what else is asked for; returns the summary.

    Raises:
        SelmaError: a file cannot be read or written. Everything that can be checked is checked before the first pass.
    """
    check_writable(settings.output)
    sources = open_sources(
        settings.labels,
        name=settings.label,
        raw=settings.raw,
        without_raw=settings.without_raw,
        channel=settings.channel,
        scene=settings.scene,
        time=settings.time,
    )
    shape, edge = sources.labels.shape, sources.edge
    registered = brainreg_output(settings.atlas) if settings.atlas else None
    of_stack = registered.spacing_um_zyx if registered else None
    spacing = settings.spacing_um_zyx or sources.spacing_um_zyx or of_stack
    instances = settings.instances and settings.instances.resolve()
    if instances is not None:
        check_free(instances, sources.paths, shape, overwrite=settings.overwrite)
    atlas = _open_atlas(settings, sources.placed, spacing) if settings.atlas else None
    region_names = read_region_names(settings.region_names) if settings.region_names else {}
    if settings.summary.is_file() and "left_out_by_size" not in read_json(settings.summary):
        raise SelmaError(
            f"{settings.summary}: would be replaced by the summary of the table, and is none; give -o another name"
        )

    probability = probability_reader(settings.probabilities, sources) if settings.probabilities else None

    objects, rows = find_objects(sources, settings.connectivity, progress)
    touching = None
    if settings.split_touching:
        splitting = Splitting(
            neck=settings.neck or NECK,
            connectivity=settings.connectivity,
            spacing_um_zyx=spacing,
            probability=probability,
        )
        touching = split_touching(sources, objects, rows, splitting, progress, keep_shapes=instances is not None)
        objects, rows = touching.objects, touching.first[rows]
    kept = (objects.voxels >= settings.min_voxels) & (objects.voxels <= (settings.max_voxels or np.inf))
    numbers = np.where(kept, np.cumsum(kept), 0)
    objects, left_out = objects.select(kept), int(np.count_nonzero(~kept))
    columns, notes = dict(table_of(objects, shape, spacing, sources.placed.origin_voxels_zyx)), []
    if touching is not None:
        columns["component"] = touching.component[kept] + 1
    if atlas is not None and spacing is not None:
        columns["region"], sizes = regions_of(atlas, objects)
        write_table(
            settings.region_table, region_table(atlas, sizes, columns["region"], objects, spacing, region_names)
        )
        notes = registration_notes(atlas, columns["region"])
    settings.summary.unlink(missing_ok=True)  # the summary of an earlier table
    write_table(settings.output, columns)

    betti = topology(sources.read_labels, shape, edge, progress) if settings.topology else None
    skeleton = trees(sources.read_labels, shape, edge, spacing, progress) if settings.trees else None
    if instances is not None:
        target = InstanceImage(
            path=instances,
            shape=shape,
            edge=edge,
            spacing_um_zyx=spacing,
            like=sources.placed,
            connectivity=settings.connectivity,
        )
        draw = {} if touching is None else {"draw": touching.drawing(numbers)}
        write_instances(target, sources.read_labels, numbers[rows], progress, **draw)
    summary: dict[str, Any] = without_nan(
        {
            **_description(settings, sources, spacing, atlas),
            **counts(objects, left_out, shape, spacing, sources.classes),
            "touching": touching and touching.summary(),
            "betti": betti and betti._asdict(),
            "trees": skeleton,
            "notes": [*_notes(settings, spacing, left_out, skeleton, touching), *notes],
        }
    )
    write_json(settings.summary, summary)
    return summary


def _open_atlas(settings: ObjectSettings, labels: Volume, spacing: SpacingUm | None) -> Atlas:
    """The atlas that the settings name, for labels at a path; checks that the table of regions can be written."""
    assert settings.atlas is not None
    if spacing is None:
        raise SelmaError(
            f"{settings.labels}: does not say how large its voxels are, and an atlas is in µm; give the voxel size with --spacing Z,Y,X"
        )
    check_writable(settings.region_table)
    return open_atlas(
        settings.atlas,
        sample=labels,
        sample_um_zyx=spacing,
        transform=settings.transform,
        spacing_um_zyx=settings.atlas_spacing_um_zyx,
        orientation=settings.orientation,
        atlas_orientation=settings.atlas_orientation,
    )


def _description(
    settings: ObjectSettings, sources: Sources, spacing: SpacingUm | None, atlas: Atlas | None
) -> dict[str, Any]:
    """The files and settings of a measurement."""
    paths = {name: str(value) for name, value in asdict(settings).items() if isinstance(value, Path)}
    return {
        "version": __version__,
        **paths,
        "labels": str(sources.labels.path),
        "label": settings.label,
        "raw": sources.raw and str(sources.raw.path),
        "shape_zyx": list(sources.labels.shape),
        "spacing_um_zyx": spacing and list(spacing),
        "orientation": settings.orientation,
        "atlas_orientation": settings.atlas_orientation,
        "atlas_spacing_um_zyx": atlas and list(atlas.spacing_um_zyx),
        "connectivity": settings.connectivity,
        "min_voxels": settings.min_voxels,
        "max_voxels": settings.max_voxels,
    }


def _notes(
    settings: ObjectSettings,
    spacing: SpacingUm | None,
    left_out: int,
    skeleton: dict[str, Any] | None,
    touching: SplitObjects | None,
) -> list[str]:
    """Remarks that a reader of the numbers needs."""
    notes = []
    if spacing is None:
        notes.append(
            "the voxel size is not known, and columns in µm are empty; give it with --spacing Z,Y,X, or use the columns in voxels"
        )
    if touching is not None and spacing is None:
        notes.append("touching objects were split as if voxels were cubes")
    if touching is not None and touching.left_whole:
        notes.append(
            f"touching objects: {counted(touching.left_whole, 'component was', 'components were')} left whole, "
            f"because a box of more than {MOST_VOXELS} voxels is not split"
        )
    of_foreground = ["β0, β1, β2"] * settings.topology + ["skeleton"] * settings.trees
    if of_foreground and (left_out or settings.connectivity == 6):
        notes.append(
            f"{' and '.join(of_foreground)}: measured on the 26-connected foreground, objects of all sizes included"
        )
    if skeleton and skeleton["pieces"]:
        notes.append(
            f"a component too large to be thinned at once was thinned in pieces ({skeleton['pieces']}), each with {HALO} voxels around it; "
            "where it is not thin against that, its skeleton may not be that of the whole"
        )
    return notes
