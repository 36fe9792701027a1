"""Segmentation of a case by a packed model: the router's choice, the voxel size, the prediction, and one file of 0 and 1."""

from collections.abc import Callable, Iterator
from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from nnunet_selma.errors import SelmaError, counted
from nnunet_selma.nnunet.voxel_sizes import as_text
from nnunet_selma.prediction import Execution, VolumePrediction, predict_volume
from nnunet_selma.prediction.grids import trained_in_voxels
from nnunet_selma.prediction.memory import GB
from nnunet_selma.prediction.model import Model, ModelSettings
from nnunet_selma.prediction.small_objects import remove_small
from nnunet_selma.routing.routers import OTHER, class_probabilities, most_probable, open_router
from nnunet_selma.running.devices import available_device, usual_device
from nnunet_selma.running.json_files import read_json
from nnunet_selma.sharing.cases import Case
from nnunet_selma.sharing.meta_image import geometry_of, write_mha
from nnunet_selma.sharing.packed_model import PackedModel, read_packed_model
from nnunet_selma.structures import SpacingUm
from nnunet_selma.volumes import Volume, open_volume
from nnunet_selma.volumes.base import Array

_SLAB_BYTES = 2**26
"""Bytes of labels that are read and written together."""
_BYTES_OF_REMOVAL = 12
"""Bytes for each voxel of a volume while its small components are removed."""


class Segmenter:
    """A packed model that is ready for cases.

    Args:
        folder: the packed model.
        device: cpu, cuda or mps; None for the usual one.
        max_memory: GB that a prediction may take; None for half of what the process may use.
        scratch: folder for temporary files.
        say: receives sentences about what is done.

    Raises:
        SelmaError: the folder is no packed model, a model or the router is damaged, or there is no such device.
    """

    def __init__(
        self,
        folder: Path,
        *,
        device: str | None,
        max_memory: float | None,
        scratch: Path,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._packed = read_packed_model(folder)
        self._device = available_device(device or usual_device())
        self._options: dict[str, Any] = {} if max_memory is None else {"max_memory": max_memory}
        self._scratch, self._say = scratch, say
        self._router = None if self._packed.router is None else open_router(self._packed.router, self._device)
        self._models = open_models(self._packed, str(self._device))
        say(f"model: {folder}, on {self._device}")

    def segment(self, case: Case, output: Path, dtype: str) -> None:
        """Write the segmentation of a case, 0 and 1, with the geometry of its image.

        Raises:
            SelmaError: the image cannot be read, its voxel size is not known, or it does not fit into the memory.
        """
        output.parent.mkdir(parents=True, exist_ok=True)
        volume = open_volume(case.path)
        model = self._chosen(volume)
        spacing, source = voxel_size(case, volume, self._packed.spacing_um_zyx, model.settings)
        self._say(
            f"{case.name}: {'×'.join(map(str, volume.shape))} voxels{f' of {as_text(spacing)} µm' if spacing else ''}, {source}"
        )
        with TemporaryDirectory(dir=self._scratch) as folder:
            settings = VolumePrediction(
                inputs=(case.path,),
                output=Path(folder) / "case.ome.zarr",
                model=model.settings,
                spacing_um_zyx=spacing,
                tissue_only=False,
                raw=False,
                **self._options,
            )
            self._check_removal(volume, settings.max_memory)
            predict_volume(settings, Execution(device=str(self._device)), model=model)
            labels = open_volume(settings.output / "labels" / settings.name)
            write_mha(output, labels.shape, dtype, geometry_of(case.path, labels.shape), self._masks(labels))
        self._say(f"{case.name}: {output}")

    def _chosen(self, volume: Volume) -> Model:
        """The model for a volume."""
        models = self._models
        if self._router is None:
            (model,) = models.values()
            return model
        probabilities = class_probabilities(self._router, [volume])
        shows = most_probable(probabilities)
        name = shows if shows in models else OTHER
        if name not in models:
            raise SelmaError(
                f"{volume.path}: shows {shows} (probability {probabilities[shows]:.2f}), for which there is no model; pack a model of it, or of "
                f"{OTHER}, with nnunet-selma container"
            )
        self._say(f"shows {shows} ({probabilities[shows]:.2f}), model {name}")
        return models[name]

    def _check_removal(self, volume: Volume, max_memory: float) -> None:
        """Raise `SelmaError` if small components are to be removed from more voxels than the memory, in GB, takes."""
        needed = prod(volume.shape) * _BYTES_OF_REMOVAL / GB
        if self._packed.remove_below > 1 and needed > max_memory:
            raise SelmaError(
                f"{volume.path}: removing small components takes about {needed:.1f} GB, and {max_memory:g} GB are allowed; pack the model "
                "without the removal"
            )

    def _masks(self, labels: Volume) -> Iterator[Array]:
        """The foreground, in parts along z; whole where small components are removed."""
        least = self._packed.remove_below
        depth, height, width = labels.shape
        if least > 1:
            mask, removed = remove_small((labels.read() > 0).view(np.uint8), least)
            self._say(f"{counted(removed, 'small component')} removed")
            yield mask
            return
        step = max(1, _SLAB_BYTES // (height * width))
        for z in range(0, depth, step):
            yield labels.read(slice(z, min(z + step, depth))) > 0


def open_models(packed: PackedModel, device: str) -> dict[str, Model]:
    """Class to its model, loaded; raises `SelmaError` for one that cannot be, or that takes more than one channel."""
    opened: dict[Path, Model] = {}
    for settings in packed.models.values():
        if settings.folder not in opened:  # two classes may share one
            model = opened[settings.folder] = Model(settings, device)
            if len(model.channels) != 1:
                raise SelmaError(
                    f"{settings.folder}: was trained on {len(model.channels)} channels ({', '.join(model.channels)}), and the challenge's images "
                    "have one"
                )
    return {name: opened[settings.folder] for name, settings in packed.models.items()}


def voxel_size(
    case: Case, volume: Volume, given: SpacingUm | None, model: ModelSettings
) -> tuple[SpacingUm | None, str]:
    """Voxel size of a case, µm, and where it comes from; None for a model that was trained in voxels.

    Headers of 1, 1, 1 are in voxels and state no size.

    Raises:
        SelmaError: no source states it, and the model needs it.
    """
    if trained_in_voxels(read_json(model.folder / "plans.json")):
        return None, "which the model takes whatever their size"
    if given is not None:
        return given, "as packed with the model"
    structure = case.structure
    if structure is not None and structure.spacing_um_zyx is not None:
        header = volume.spacing_um_zyx
        differs = header is not None and header != structure.spacing_um_zyx
        stated = f"; the header says {as_text(header)} µm" if header is not None and differs else ""
        return structure.spacing_um_zyx, f"as in SELMA3D's brains of {structure.title}{stated}"
    if volume.spacing_um_zyx is not None:
        return volume.spacing_um_zyx, "from the header"
    known = (
        f"SELMA3D states none for {structure.title}" if structure else "the name begins with no structure of SELMA3D"
    )
    raise SelmaError(
        f"{case.path}: the voxel size of {case.name} is not known, and the model needs it: the header states none, and {known}; write the "
        "container with --spacing Z,Y,X"
    )
