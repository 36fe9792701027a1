"""Filters for bright blobs and tubes, computed from invariants of the Hessian at several scales, on the device that trains.

With eigenvalues a ≤ b ≤ c of the Hessian, all three are well below 0 in a bright blob, a and b in a bright tube, and only a in a bright
plate. Eigenvalues are not computed: their second and third elementary symmetric polynomials are sums of minors of the Hessian. The roots of
these have the unit of an eigenvalue and rank voxels like the classic filters (Frangi et al. 1998; Sato et al. 1998) at a fraction of the cost.
"""

from collections.abc import Sequence
from functools import lru_cache
from itertools import combinations

import torch
from torch import Tensor

from nnunet_selma.pretraining.views import along, gaussian_matrices, in_full_precision


def structure_response(
    patches: Tensor, spacing: Sequence[float], *, scales: Sequence[float], kind: str = "both"
) -> Tensor:
    """Likeness of each voxel to a bright structure, from 0, (batch, *patch); the maximum over channels and scales.

    Args:
        patches: (batch, channel, *patch).
        spacing: voxel size along the axes.
        scales: standard deviations of the Gaussian before the second derivatives, voxels along the finest axes.
        kind: "bright" (intensity above the patch's mean, no Hessian), "blobs", "tubes", or "both".
    """
    axes = tuple(range(2, patches.ndim))
    if kind == "bright":
        return (patches - patches.mean(axes, keepdim=True)).clamp(min=0).amax(1)
    responses = []
    with in_full_precision(patches.device):
        for scale in scales:
            blob, tube = blob_and_tube(hessian_of(patches.float(), spacing, scale))
            responses.append({"blobs": blob, "tubes": tube, "both": torch.maximum(blob, tube)}[kind])
    return torch.stack(responses).amax((0, 2))


def hessian_of(patches: Tensor, spacing: Sequence[float], scale: float) -> dict[tuple[int, int], Tensor]:
    """Second derivatives of the smoothed patches, (axis, axis) to (batch, channel, *patch), times scale²; unit: the finest voxel."""
    lines = [
        [
            matrix.expand(len(patches), -1, -1)
            for matrix in _derivatives(length, scale * min(spacing) / size, size / min(spacing), patches.device)
        ]
        for length, size in zip(patches.shape[2:], spacing, strict=True)
    ]
    # orders of derivation along the axes so far, to the patches; derivatives with the same beginning share its products
    derived: dict[tuple[int, ...], Tensor] = {(): patches}
    for axis, matrices in enumerate(lines):
        derived = {
            (*orders, more): along(before, matrices[more], 2 + axis)
            for orders, before in derived.items()
            for more in range(3 - sum(orders))
            if axis < len(lines) - 1 or sum(orders) + more == 2
        }
    return {
        (row, column): derived[tuple((axis == row) + (axis == column) for axis in range(len(lines)))] * scale**2
        for row in range(len(lines))
        for column in range(row, len(lines))
    }


@lru_cache(maxsize=64)
def _derivatives(length: int, sigma: float, step: float, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Matrices that smooth a line, and that take its first and second derivative after smoothing, as `torch.gradient` does."""
    (smooth,) = gaussian_matrices(length, torch.full((1,), sigma, device=device), sigma)
    (derive,) = torch.gradient(torch.eye(length, device=device), spacing=step, dim=0)
    first = derive @ smooth
    return smooth, first, derive @ first


def blob_and_tube(hessian: dict[tuple[int, int], Tensor]) -> tuple[Tensor, Tensor]:
    """Responses of bright blobs and of bright tubes, both in the unit of an eigenvalue.

    With eigenvalues a, b and c, in 3D: blob = ∛(-abc), tube = √((ab + ac + bc) / 3) - blob, clipped at 0.
    With two eigenvalues, in 2D: blob = √(ab), line = -(a + b) / 2 - blob, clipped at 0.
    """
    count = max(hessian)[0] + 1
    trace = sum((hessian[axis, axis] for axis in range(count)), torch.zeros_like(hessian[0, 0]))
    bright = (trace < 0).to(trace.dtype)
    minors = sum(
        (hessian[a, a] * hessian[b, b] - hessian[a, b].square() for a, b in combinations(range(count), 2)),
        torch.zeros_like(trace),
    ).clamp(min=0)
    if count == 2:
        blob = minors.sqrt() * bright
        return blob, (-trace / 2 - blob).clamp(min=0) * bright
    # all three eigenvalues are negative exactly if their sum is negative, the sum of pairs positive and the product negative
    blob = (-determinant(hessian)).clamp(min=0).pow(1 / 3) * bright * (minors > 0)
    return blob, ((minors / 3).sqrt() * bright - blob).clamp(min=0)


def determinant(hessian: dict[tuple[int, int], Tensor]) -> Tensor:
    """Determinant of a symmetric matrix of three axes."""
    xx, yy, zz = hessian[0, 0], hessian[1, 1], hessian[2, 2]
    xy, xz, yz = hessian[0, 1], hessian[0, 2], hessian[1, 2]
    return xx * (yy * zz - yz.square()) - xy * (xy * zz - yz * xz) + xz * (xy * yz - yy * xz)
