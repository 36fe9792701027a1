"""Where blobs and tubes are, from the image alone: invariants of the Hessian at several scales, on the device that trains.

With eigenvalues a ≤ b ≤ c of the Hessian, a bright tube has a, b well below 0 and c near 0, a bright blob all three, a bright plate only a.
No eigenvalue is computed: second and third elementary symmetric polynomials of them are sums of minors of the Hessian. Their roots have the
unit of an eigenvalue, and what they say is that of the classic filters (Frangi et al. 1998; Sato et al. 1998) at a fraction of the cost.
"""

from collections.abc import Sequence
from itertools import combinations

import torch
from torch import Tensor

from nnunet_selma.pretexts.views import gaussian_blur


def structure_response(
    patches: Tensor, spacing: Sequence[float], *, scales: Sequence[float], kind: str = "both"
) -> Tensor:
    """How much a voxel looks like part of a bright structure, the greatest over channels and scales, (batch, *patch), from 0.

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
    for scale in scales:
        hessian = hessian_of(patches.float(), spacing, scale)
        blob, tube = blob_and_tube(hessian)
        responses.append({"blobs": blob, "tubes": tube, "both": torch.maximum(blob, tube)}[kind])
    return torch.stack(responses).amax(0).amax(1)


def hessian_of(patches: Tensor, spacing: Sequence[float], scale: float) -> dict[tuple[int, int], Tensor]:
    """Second derivatives of the smoothed patches, (axis, axis) to (batch, channel, *patch), times scale²; unit: the finest voxel."""
    finest, count = min(spacing), patches.ndim - 2
    smooth = gaussian_blur(patches, patches.new_full((len(patches),), scale), spacing, scale)
    gradients = torch.gradient(
        smooth, spacing=[size / finest for size in spacing], dim=[axis + 2 for axis in range(count)]
    )
    hessian = {}
    for row in range(count):
        for column in range(row, count):
            (second,) = torch.gradient(gradients[row], spacing=spacing[column] / finest, dim=column + 2)
            hessian[row, column] = second * scale**2
    return hessian


def blob_and_tube(hessian: dict[tuple[int, int], Tensor]) -> tuple[Tensor, Tensor]:
    """How much a bright blob, and how much a bright tube; both in the unit of an eigenvalue.

    In 3D a blob is the cube root of -abc, a tube what the root of ab + ac + bc has beyond it; in 2D, with two eigenvalues, a blob is the root
    of ab, a line what -(a + b) / 2 has beyond it.
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
    # a negative sum, a positive sum of pairs and a negative product: then, and only then, are all three negative
    blob = (-determinant(hessian)).clamp(min=0).pow(1 / 3) * bright * (minors > 0)
    return blob, ((minors / 3).sqrt() * bright - blob).clamp(min=0)


def determinant(hessian: dict[tuple[int, int], Tensor]) -> Tensor:
    """Of a symmetric matrix of three axes."""
    xx, yy, zz = hessian[0, 0], hessian[1, 1], hessian[2, 2]
    xy, xz, yz = hessian[0, 1], hessian[0, 2], hessian[1, 2]
    return xx * (yy * zz - yz.square()) - xy * (xy * zz - yz * xz) + xz * (xy * yz - yy * xz)
