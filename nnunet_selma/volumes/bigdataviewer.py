"""Datasets of BigDataViewer and BigStitcher: an XML file with HDF5 or N5 beside it.

Voxel size: the size of a setup, in its unit, is that of the recorded voxel. The transform that is applied first calibrates the world, whose
unit is a voxel size over its scale: Fiji's export writes the voxel size itself, so that the world is in its unit; BigStitcher divides it by
its smallest edge, so that the world is in voxels of that size (multiview-reconstruction, `calibration`). Later transforms may scale the axes
again, and these scales count. The first voxels of all levels cover the same corner.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nnunet_selma.errors import SelmaError
from nnunet_selma.volumes.base import Array, Volume, damaged_file
from nnunet_selma.volumes.bigdataviewer_views import Hdf5Views, N5Views, View, Views, has_views
from nnunet_selma.volumes.choice import Choice, Inventory, check_level, chosen_channel, chosen_scene, chosen_time
from nnunet_selma.volumes.hdf5 import hdf5_file, missing_h5py
from nnunet_selma.volumes.n5 import is_n5, numbered
from nnunet_selma.volumes.spim_data import Scene, Setup, SpimData, is_spim_data, product, scenes, spim_data
from nnunet_selma.volumes.stated_names import distinct_names, stated_names
from nnunet_selma.volumes.units import spacing_from_header, spacing_in_um

_ENDINGS = (".h5", ".hdf5")
_EQUAL = 1e-3
"""Largest relative difference of scales that are taken as equal; programs round them."""
_AWAY = 0.5
"""Least shift of a voxel, in voxels, by rotation or shear, that counts; numbers in the XML are rounded."""


def is_hdf5_name(path: Path) -> bool:
    """True for the file endings of HDF5."""
    return path.name.lower().endswith(_ENDINGS)


def is_bigdataviewer(path: Path) -> bool:
    """True for an XML file of BigDataViewer, and for HDF5 or N5 with its groups; without h5py, for every file with the ending of HDF5."""
    if is_n5(path):
        return bool(numbered(path, "setup"))
    if not is_hdf5_name(path):
        return is_spim_data(path)
    if not path.is_file():
        return False
    if missing_h5py(path):
        return True
    try:
        with hdf5_file(path) as file:
            return has_views(file)
    except SelmaError:
        return False


def missing_for_bigdataviewer(path: Path) -> str | None:
    """The reason why a dataset cannot be read, for a sentence, where its voxels are HDF5 and h5py is not installed; else None."""
    try:
        voxels = spim_data(path).voxels if is_spim_data(path) else path
    except SelmaError:
        return None  # opening it will say so
    return missing_h5py(path) if is_hdf5_name(voxels) else None


def _data(path: Path) -> tuple[SpimData, tuple[Path, ...]]:
    """The dataset that an XML file, an HDF5 file or a folder of N5 belongs to, and its other files.

    Voxels are described by the XML file of their folder that names them. Without such a file all setups are scenes without voxel size.
    """
    if not is_hdf5_name(path) and not is_n5(path):
        data = spim_data(path)
        if not data.voxels.exists():
            raise SelmaError(
                f"{path}: its voxels lie in {data.voxels}, which is missing; copy it there, or correct the path in the XML's element ImageLoader"
            )
        return data, (data.voxels, *data.partitions)
    description = _description(path)
    if description is not None:
        data = spim_data(description)
        return data, (description, *data.partitions)
    views = _views(path, path)
    stored, parts = views.stored(), views.parts()
    if not stored:
        raise damaged_file(path)
    times, setups = (tuple(sorted({*numbers})) for numbers in zip(*stored, strict=True))
    missing = frozenset((time, setup) for time in times for setup in setups) - {*stored}
    bare = tuple(Setup(setup, f"setup {setup}", None, None, {}) for setup in setups)
    return SpimData(path, parts, bare, times, {}, missing, {}), parts


def _views(path: Path, voxels: Path) -> Views:
    """The views of a dataset in HDF5 or N5; the path is the one that errors name."""
    return N5Views(path, voxels) if voxels.is_dir() else Hdf5Views(path, voxels)


def _description(path: Path) -> Path | None:
    """The XML file in the folder of an HDF5 file or N5 that names it; of several, the one with its name.

    Raises:
        SelmaError: several XML files name it, or one names it as a part of a dataset.
    """
    naming = []
    for xml in sorted(path.parent.glob("*.[xX][mM][lL]")):
        if not is_spim_data(xml):
            continue
        try:
            data = spim_data(xml)
        except SelmaError:
            if xml.stem == path.stem:
                raise
            continue  # describes other voxels
        if path.resolve() in [part.resolve() for part in data.partitions]:
            raise SelmaError(f"{path}: is a part of the dataset that {xml} describes; give that file")
        if path.resolve() == data.voxels.resolve():
            naming.append(xml)
    same = [xml for xml in naming if xml.stem == path.stem]
    if len(naming) > 1 and len(same) != 1:
        raise SelmaError(f"{path}: is described by {', '.join(xml.name for xml in naming)}; give one of them")
    return next(iter(same or naming), None)


def _first_view(data: SpimData, setup: Setup) -> View:
    """The first view of a setup that was recorded."""
    recorded = [time for time in data.times if (time, setup.number) not in data.missing]
    return View((recorded or data.times)[0], setup.number)


def _listed(images: tuple[Scene, ...]) -> tuple[str, ...]:
    """Names of the scenes; empty for a single one."""
    return distinct_names([image.name for image in images]) if len(images) > 1 else ()


def bigdataviewer_inventory(path: Path, scene: str | None = None) -> Inventory:
    """The images in a dataset of BigDataViewer: channels, and scenes for tiles, angles and illuminations.

    Raises:
        SelmaError: h5py is not installed, a file is missing or damaged, the voxels are neither HDF5 nor N5, or there is no such scene.
    """
    data, companions = _data(path)
    images = scenes(data)
    if not images or not data.times:
        raise damaged_file(path)
    image = images[0 if scene is None else chosen_scene(path, scene, _listed(images))]
    numbers = [setup.attributes.get("channel", 0) for setup in image.channels]
    return Inventory(
        scenes=_listed(images),
        channels=len(image.channels),
        channel_names=stated_names([data.names.get(("channel", number)) for number in numbers], numbers),
        times=len(data.times),
        levels=_views(path, data.voxels).levels(_first_view(data, image.channels[0])),
        companions=companions,
    )


class BigDataViewerVolume(Volume):
    """One resolution level of one setup at one time point of a dataset of BigDataViewer or BigStitcher, given by its XML, HDF5 file or N5.

    Raises:
        SelmaError: h5py is not installed, a file is missing or damaged, the voxels are neither HDF5 nor N5, there is no such image or several and no
            choice, it was not recorded, or its registration turns, shears or mirrors it.
    """

    plane_wise = False

    def __init__(self, path: Path, choice: Choice = Choice()) -> None:  # noqa: B008  # frozen
        self.path = path
        data, _ = _data(path)
        images = scenes(data)
        if not images or not data.times:
            raise damaged_file(path)
        image = images[chosen_scene(path, choice.scene, _listed(images))]
        setup = image.channels[chosen_channel(path, choice.channel, len(image.channels))]
        time = data.times[chosen_time(path, choice.time, len(data.times))]
        if (time, setup.number) in data.missing:
            raise SelmaError(
                f"{path}: {setup.name} was not recorded at the time point {data.times.index(time)}; choose another"
            )
        views, view = _views(path, data.voxels), View(time, setup.number)
        check_level(path, choice.level, views.levels(view))
        finest = views.voxels(view, 0)
        self._voxels = views.voxels(view, choice.level) if choice.level else finest
        self.shape, self.dtype, self.chunk_zyx = self._voxels.shape, self._voxels.dtype, self._voxels.chunk_zyx
        self.kept_bytes = self._voxels.kept_bytes
        factors_xyz = np.array(finest.shape[::-1], float) / self.shape[::-1]
        edges = views.factors_xyz(setup.number)
        if edges is not None:
            if edges.ndim != 2 or edges.shape[1] != 3 or len(edges) <= choice.level or edges.min() <= 0:
                raise damaged_file(data.voxels)
            factors_xyz = edges[choice.level] / edges[0]
        z, y, x = factors_xyz[::-1].tolist()
        self.level_factor_zyx = (z, y, x)
        matrices = data.registrations.get((time, setup.number))
        if matrices is not None:
            _check_axes(path, setup, product(matrices), finest.shape)
        self._set_place(setup, matrices, factors_xyz)

    def _set_place(
        self, setup: Setup, matrices: list[NDArray[np.float64]] | None, factors_xyz: NDArray[np.float64]
    ) -> None:
        """Set voxel size and origin of the level from the size of the setup and the registration, which lies along the axes."""
        self.spacing_um_zyx = None
        scales: NDArray[np.float64] = np.ones(3)
        if matrices is not None:
            whole = product(matrices)
            scales = np.diag(whole)[:3]
            z, y, x = ((whole[:3, 3] / scales + (factors_xyz - 1) / 2) / factors_xyz)[::-1].tolist()
            self.origin_voxels_zyx = (z, y, x)
        if setup.voxel_size_xyz is None or min(setup.voxel_size_xyz) <= 0:
            return
        size: NDArray[np.float64] = np.array(setup.voxel_size_xyz)
        if matrices and not _is_multiple(scales, size):
            calibration = np.diag(matrices[-1])[:3]
            if len(matrices) > 1 and _is_multiple(calibration, size):
                size = size * scales / calibration
            else:
                self.spacing_guess = (
                    f"the registration scales x, y and z by {_by_times(scales)}, which is not in proportion to the voxel size {_by_times(size)}; "
                    "the voxel size is taken"
                )
        spacing_zyx = (size * factors_xyz)[::-1].tolist()
        if setup.unit:
            self.spacing_um_zyx = spacing_in_um(spacing_zyx, [setup.unit] * 3)
        else:
            finest, guess = spacing_from_header(size[::-1].tolist())
            if finest is not None:
                z, y, x = (float(edge) for edge in np.array(finest) * factors_xyz[::-1])
                self.spacing_um_zyx, self.spacing_guess = (z, y, x), self.spacing_guess or guess

    def _read(self, z: slice, y: slice, x: slice) -> Array:
        return self._voxels.read(z, y, x)


def _is_multiple(scales: NDArray[np.float64], size: NDArray[np.float64]) -> bool:
    """True if positive scales are in proportion to a voxel size."""
    ratios = scales / size
    return bool(min(ratios) > 0 and max(ratios) <= min(ratios) * (1 + _EQUAL))


def _by_times(numbers: NDArray[np.float64]) -> str:
    return " × ".join(f"{number:g}" for number in numbers)


def _check_axes(path: Path, setup: Setup, registration: NDArray[np.float64], shape_zyx: tuple[int, ...]) -> None:
    """Raise `SelmaError` if a registration does more than scale and move the image along its axes.

    A rotation or shear that moves no voxel by half a voxel is left out, as a rounding error.
    """
    linear = registration[:3, :3]
    diagonal = np.diag(linear)
    shifts = np.abs(linear - np.diag(diagonal)) * np.array(shape_zyx[::-1])
    if (shifts >= _AWAY * np.abs(diagonal)[:, None]).any():
        fault = "turns or shears"
    elif (diagonal < 0).any():
        fault = "mirrors"
    else:
        return
    raise SelmaError(
        f"{path}: the registration of {setup.name} {fault} the image, which is read along its axes only; fuse the dataset in BigStitcher, "
        "export it as OME-Zarr, TIFF or HDF5, and give that"
    )
