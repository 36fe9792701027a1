"""Synthetic light-sheet volumes whose labels, object counts and Betti numbers are known by construction.

`draw` makes one volume in memory; `download` writes folder trees like those of the public downloads.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nnunet_selma.demo.phantom.optics import STAINS, light_sheet, tissue_mask
from nnunet_selma.demo.phantom.shapes import draw_spots
from nnunet_selma.demo.phantom.vessels import draw_vessels
from nnunet_selma.morphology.topology import Betti
from nnunet_selma.structures import SpacingUm, named
from nnunet_selma.volumes.base import ShapeZYX

DRAWN = ("blood_vessel", "cfos_neuron", "cell_nuclei", "AD_plaques", "microglia")
"""Prefixes of the structures that can be drawn."""


@dataclass(frozen=True, kw_only=True)
class Phantom:
    """One synthetic volume and the truth about it; arrays are (z, y, x)."""

    structure: str
    """Prefix of the structure, one of `DRAWN`."""
    image: NDArray[np.uint16]
    """Image of the camera; of vessels, the channel stained with wheat germ agglutinin."""
    second_channel: NDArray[np.uint16] | None = None
    """Second channel of vessels, stained with Evans blue: major vessels are bright, minor ones faint."""
    label: NDArray[np.uint8]
    """1 on the structure, 0 elsewhere."""
    tissue: NDArray[np.bool_]
    """True where tissue is; elsewhere the image holds only the offset and noise of the camera."""
    betti: Betti
    """Objects, loops and cavities of the label: 26-connected foreground, 6-connected background."""
    spacing_um_zyx: SpacingUm
    """Voxel size, µm."""


def draw(
    structure: str,
    shape_zyx: ShapeZYX,
    rng: np.random.Generator,
    *,
    outside: float = 0.0,
    whole: bool = False,
    loops: int | None = None,
) -> Phantom:
    """Draw a phantom; the same state of `rng` gives the same volume.

    Args:
        structure: prefix of the structure, one of `DRAWN`.
        shape_zyx: shape of the volume, voxels.
        rng: source of all random numbers.
        outside: share of the volume that lies outside the tissue, 0 to below 1.
        whole: the tissue lies in the middle of the volume; otherwise the volume lies on its edge.
        loops: closed loops of a vessel network, by default about one per 28³ voxels of tissue; fewer are drawn if the volume is too small.

    Raises:
        ValueError: the structure is unknown, the shape has no voxels, or `outside` is out of range.
    """
    if structure not in DRAWN:
        raise ValueError(f"no phantom of structure {structure!r}: choose one of {', '.join(DRAWN)}")
    if loops is not None and structure != "blood_vessel":
        raise ValueError(f"{structure} has no loops: `loops` is for blood_vessel only")
    if len(shape_zyx) != 3 or min(shape_zyx) < 1:
        raise ValueError(f"shape {shape_zyx}: three positive lengths (z, y, x) are needed")
    tissue = tissue_mask(shape_zyx, outside, rng, whole=whole)
    vessels = structure == "blood_vessel"
    canvas = draw_vessels(tissue, rng, loops=loops) if vessels else draw_spots(structure, tissue, rng)
    spacing = named(structure).spacing_um_zyx or (1.0, 1.0, 1.0)
    stains = ("wheat_germ_agglutinin", "evans_blue") if vessels else (structure,)
    images = [light_sheet(canvas.pieces, canvas.calibre, tissue, spacing, STAINS[stain], rng) for stain in stains]
    return Phantom(
        structure=structure,
        image=images[0],
        second_channel=images[1] if vessels else None,
        label=(canvas.pieces > 0).astype(np.uint8),
        tissue=tissue,
        betti=canvas.betti,
        spacing_um_zyx=spacing,
    )
