"""Options of a proposal of cubes."""

from dataclasses import dataclass

from nnunet_selma.errors import SelmaError
from nnunet_selma.structures import SpacingUm
from nnunet_selma.volumes import OnBadSlice

_LEAST_SIZE = 16
"""Least edge of a cube, voxels; a smaller one shows nothing that a person could tell apart."""


@dataclass(frozen=True, kw_only=True)
class ProposalSettings:
    """Options that decide which cubes are proposed."""

    count: int = 10
    """Cubes to propose."""
    size: int = 100
    """Edge of a cube, voxels; shorter axes of a brain are taken whole."""
    seed: int = 0
    """Seed of what is drawn by chance."""
    pool: int | None = None
    """Candidates that are looked at closely, over all brains; None: 8 for each cube, at least 48."""
    scene: str | None = None
    """Name or number of the image in files with several, as tiles, positions or series. None: the only one."""
    channels: tuple[int, ...] | None = None
    """Channels of a file with several, from 0, or of files C00, C01, … by their numbers; the first decides about tissue and structure. None: the only one, or all files."""
    time: int | None = None
    """Time point of files with several, from 0. None: the only one."""
    level: int = 0
    """Resolution level of files with several, from 0, which is the finest."""
    spacing_um_zyx: SpacingUm | None = None
    """Voxel size, of the finest level, µm; None: that of the file."""
    on_bad_slice: OnBadSlice = "error"
    """A slice that is missing or unreadable: stop, or interpolate from its neighbours."""
    slice_pattern: str | None = None
    """Regular expression whose parenthesis finds the number of a slice in its name, as in 'Z([0-9]+)'; None: the number is found by rules."""

    def __post_init__(self) -> None:
        """Refuse numbers that give no cubes."""
        if self.count < 1 or self.size < _LEAST_SIZE or (self.pool is not None and self.pool < self.count):
            raise SelmaError(
                f"at least 1 cube is proposed, its edge is at least {_LEAST_SIZE} voxels, and there are at least as many candidates as cubes"
            )

    @property
    def candidates(self) -> int:
        """Candidates that are looked at closely."""
        return self.pool or max(48, 8 * self.count)
