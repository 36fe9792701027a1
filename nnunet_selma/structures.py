"""The biological structures of SELMA3D: their names, folders, voxel sizes and kinds.

Sources: [1] SELMA3D challenge paper (arXiv 2501.03880), table 1 (voxel size of the whole brains) and section 3.5 (spot-like, tree-like);
[2] the file tree of BioImage Archive S-BIAD1196; [3] the tree of the unannotated download of 2024; [4] the evaluator and the data page of
SELMA3D 2026 (file name prefixes, isolated or contiguous, dense or sparse); [5] DELiVR (Kaltenecker et al. 2024) and its released patches.
"""

import re
from dataclasses import dataclass, field
from typing import Literal

from nnunet_selma.errors import SelmaError

SpacingUm = tuple[float, float, float]


@dataclass(frozen=True, kw_only=True)
class Structure:
    """A row of the table of structures."""

    prefix: str
    """Beginning of the names of its cases; the prefix of the 2026 evaluator where that has one [4]."""
    title: str
    """Name in figures and tables."""
    kind_2024: Literal["spot", "tree"]
    """Shape that decides the metrics of 2024 [1]; judged by eye for structures that came later."""
    kind_2026: Literal["isolated", "contiguous"]
    """Shape that decides the metrics of 2026 [4]."""
    density: Literal["dense", "sparse"] | None = None
    """Ranking class of 2026 [4]; None where the structure is only in the unannotated data."""
    spacing_um_zyx: SpacingUm | None = None
    """Voxel size of the whole brains, µm, (z, y, x); None where no source states it."""
    annotated_folder: str | None = None
    """Folder of its annotated patches [2]."""
    unannotated_folder: str | None = None
    """Folder of its whole brains [3]."""
    delivr_folder: str | None = None
    """Folder of its patches in DELiVR [5]."""
    aliases: tuple[str, ...] = ()
    """Other names of its folders."""
    channels: dict[int, str] = field(default_factory=lambda: {0: "signal"})
    """Channel number in the annotated file names (`_0000`) to the name of the stain."""
    source: str
    """Sources of the row."""

    @property
    def names(self) -> tuple[str, ...]:
        """Prefix and folder names."""
        folders = (self.annotated_folder, self.unannotated_folder, self.delivr_folder, *self.aliases)
        return (self.prefix, *(folder for folder in folders if folder))

    @property
    def key(self) -> str:
        """Name by which `named` gives the structure back: the prefix, for a structure that the table does not know with the kind."""
        return self.prefix if self.prefix in PREFIXES else f"{self.prefix}:{self.kind_2024}"


STRUCTURES: tuple[Structure, ...] = (
    Structure(
        prefix="blood_vessel",
        title="blood vessel",
        kind_2024="tree",
        kind_2026="contiguous",
        density="dense",
        spacing_um_zyx=(3.0, 1.625, 1.625),
        annotated_folder="VessAP_vessel",
        unannotated_folder="vessel",
        aliases=("blood_vessels", "brain_vessels"),
        channels={0: "wga", 1: "eb"},
        source="[1] table 1; [2]; [3] C00 is wheat germ agglutinin, C01 is Evans blue; [4]",
    ),
    Structure(
        prefix="cfos_neuron",
        title="c-Fos+ cell",
        kind_2024="spot",
        kind_2026="isolated",
        density="dense",
        spacing_um_zyx=(6.0, 1.625, 1.625),
        annotated_folder="cFos-Active_Neurons",
        unannotated_folder="c-Fos_brain_cells",
        delivr_folder="cFos",
        aliases=("c_fos_positive",),
        source="[1] table 1; [2]; [3]; [4]; [5] gives 1.62 × 1.62 × 6 µm",
    ),
    Structure(
        prefix="cell_nuclei",
        title="cell nucleus",
        kind_2024="spot",
        kind_2026="isolated",
        density="dense",
        spacing_um_zyx=(5.0, 0.54, 0.54),
        annotated_folder="shannel_cells",
        unannotated_folder="cell_nucleus",
        aliases=("nuclei", "nucleus"),
        source="[1] table 1; [2]; [3]; [4]",
    ),
    Structure(
        prefix="AD_plaques",
        title="amyloid-β plaque",
        kind_2024="spot",
        kind_2026="isolated",
        density="sparse",
        spacing_um_zyx=(4.0, 1.63, 1.63),
        annotated_folder="AD_plaques",
        unannotated_folder="Ab_plaques",
        aliases=("amyloid_plaque", "plaques"),
        source="[1] table 1; [2]; [3]; [4]",
    ),
    Structure(
        prefix="microglia",
        title="microglia",
        kind_2024="tree",
        kind_2026="isolated",
        density="dense",
        spacing_um_zyx=(6.0, 1.62, 1.62),
        delivr_folder="microglia",
        source="[1] section 3.5 calls it tree-like; [4] isolated; [5] spacing",
    ),
    Structure(
        prefix="protein",
        title="EGFP protein",
        kind_2024="spot",
        kind_2026="isolated",
        density="sparse",
        aliases=("protein", "EGFP_protein"),
        source="[4]",
    ),
    Structure(
        prefix="lymphatic_vessel",
        title="gut lymphatic vessel",
        kind_2024="tree",
        kind_2026="contiguous",
        density="dense",
        aliases=("lymphatic_vessel", "lymphatic_vessels", "lymphatic"),
        source="[4]",
    ),
    Structure(
        prefix="peripheral_nerve",
        title="peripheral nerve",
        kind_2024="tree",
        kind_2026="contiguous",
        density="sparse",
        aliases=("peripheral_nerve", "peripheral_nerves", "PGP9.5"),
        source="[4]",
    ),
    Structure(
        prefix="axonalmarker",
        title="axonal marker",
        kind_2024="tree",
        kind_2026="contiguous",
        density="sparse",
        aliases=("axonalmarker", "axonal_marker", "axonal_markers"),
        source="[4]",
    ),
    Structure(
        prefix="gutnerve",
        title="gut nerve",
        kind_2024="tree",
        kind_2026="contiguous",
        density="sparse",
        aliases=("gutnerve", "gut_nerve", "gut_nerves"),
        source="[4]",
    ),
    # only in the unannotated data of 2026; these prefixes are our own
    Structure(
        prefix="chondrogenic_cell",
        title="chondrogenic cell",
        kind_2024="spot",
        kind_2026="isolated",
        aliases=("Sox9_Chondrogenic_cells", "chondrogenic_cells"),
        source="[4]",
    ),
    Structure(
        prefix="chondrocyte",
        title="chondrocyte",
        kind_2024="spot",
        kind_2026="isolated",
        aliases=("chondrocytes", "chondrocyte"),
        source="[4]",
    ),
    Structure(
        prefix="dopaminergic_neuron",
        title="dopaminergic neuron",
        kind_2024="spot",
        kind_2026="isolated",
        aliases=("dopaminergic_neurons", "dopaminergic_neuron"),
        source="[4]",
    ),
    Structure(
        prefix="astrocyte",
        title="astrocyte",
        kind_2024="tree",
        kind_2026="isolated",
        aliases=("astrocytes", "astrocyte"),
        source="[4]",
    ),
    Structure(
        prefix="artery",
        title="artery",
        kind_2024="tree",
        kind_2026="contiguous",
        aliases=("arteries", "artery"),
        source="[4]",
    ),
    Structure(
        prefix="sympathetic_nerve",
        title="sympathetic nerve",
        kind_2024="tree",
        kind_2026="contiguous",
        aliases=("sympathetic_nerves", "sympathetic_nerve"),
        source="[4]",
    ),
    Structure(
        prefix="cranial_nerve",
        title="cranial nerve",
        kind_2024="tree",
        kind_2026="contiguous",
        aliases=("cranial_nerves", "cranial_nerve"),
        source="[4]",
    ),
)

PREFIXES: tuple[str, ...] = tuple(structure.prefix for structure in STRUCTURES)


def _plain(name: str) -> str:
    """A name without case, hyphens and underscores: `cFos-Active_Neurons` and `cfos_active_neurons` are the same."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


_BY_NAME = {_plain(name): s for s in STRUCTURES for name in s.names}


def find_structure(name: str) -> Structure | None:
    """The structure with a prefix or folder name, in any spelling; None where there is none."""
    return _BY_NAME.get(_plain(name))


def named(name: str) -> Structure:
    """The structure with a prefix, a folder name or a key; raises `SelmaError`, which lists the known ones, where there is none."""
    kinds: tuple[Literal["spot", "tree"], ...] = ("spot", "tree")
    for kind in kinds:
        if name.endswith(f":{kind}"):
            return chosen_structure(name.removesuffix(f":{kind}"), kind)
    structure = find_structure(name)
    if structure is None:
        raise SelmaError(f"unknown structure {name!r}: choose one of {', '.join(PREFIXES)}")
    return structure


def chosen_structure(name: str, kind: Literal["spot", "tree"] | None = None) -> Structure:
    """The structure of a name that a user gives: a row of the table, or a new structure that the table does not know.

    Args:
        name: prefix or folder name of a known structure, or any name of a new one.
        kind: shape of a new structure, which decides the metrics; None for one that is not judged.

    Raises:
        SelmaError: the name has other characters than letters, digits, - and _, or the kind is not that of the known structure.
    """
    known = find_structure(name)
    if known is not None:
        if kind not in (None, known.kind_2024):
            raise SelmaError(f"{known.title}: is of kind {known.kind_2024} in SELMA3D, not {kind}; leave the kind out")
        return known
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name):
        raise SelmaError(f"structure {name!r}: use letters, digits, - and _ only")
    return Structure(
        prefix=name,
        title=name,
        kind_2024=kind or "spot",
        kind_2026="contiguous" if kind == "tree" else "isolated",
        source="the user",
    )


def of_case(case: str) -> Structure | None:
    """The structure of a case `<prefix or folder name>_<id>`; None where the name begins with no known one.

    Otherwise `cfos` or `microglia` anywhere in the name decides, as in the evaluator of SELMA3D 2024.
    """
    words = case.split("_")
    beginnings = ("_".join(words[:count]) for count in range(len(words), 0, -1))
    parts = (part for part in ("cfos", "microglia") if part in case)
    return next((structure for name in (*beginnings, *parts) if (structure := find_structure(name))), None)
