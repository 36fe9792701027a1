import numpy as np
import pytest
import torch

from nnunet_selma.pretraining.structure import StructureInpainting
from nnunet_selma.pretraining.structure_response import blob_and_tube, hessian_of, structure_response
from tests.measures import calls
from tests.plans import network, plans
from tests.pretraining.tasks import task, unknown

SHAPE = (32, 32, 32)
AT = np.stack(np.meshgrid(*(np.arange(n) - 16 for n in SHAPE), indexing="ij"))


def gaussian(distance_squared, sigma=2.0):
    return torch.tensor(np.exp(-distance_squared / (2 * sigma**2)), dtype=torch.float32)[None, None]


BALL = gaussian((AT**2).sum(0))
TUBE = gaussian(AT[1] ** 2 + AT[2] ** 2)
PLATE = gaussian(AT[0] ** 2)


def centre(patches, kind, **more):
    options = {"scales": (2.0,), **more}
    return float(structure_response(patches, (1.0, 1.0, 1.0), kind=kind, **options)[0, 16, 16, 16])


def test_a_blob_is_a_blob_and_a_tube_a_tube():
    assert centre(BALL, "blobs") > 5 * centre(BALL, "tubes")
    assert centre(TUBE, "tubes") > 5 * centre(TUBE, "blobs")
    for kind in ("blobs", "tubes"):
        assert centre(PLATE, kind) < 0.1 * max(centre(BALL, "blobs"), centre(TUBE, "tubes"))
        assert centre(-BALL, kind) == 0.0  # dark structures are none
        assert centre(torch.full((1, 1, *SHAPE), 3.0), kind) == pytest.approx(0.0, abs=1e-4)
    assert centre(BALL, "both") == pytest.approx(centre(BALL, "blobs"))


def test_it_is_what_the_eigenvalues_say(rng):
    """Cube root of the product of three, and what the root of the mean of their products in pairs has beyond it."""
    patches = torch.tensor(rng.normal(size=(1, 1, 12, 12, 12)), dtype=torch.float32)
    hessian = hessian_of(patches, (1.0, 1.0, 1.0), 1.5)
    rows = [[hessian[min(a, b), max(a, b)] for b in range(3)] for a in range(3)]
    matrices = torch.stack([torch.stack(row, -1) for row in rows], -2).double()
    a, b, c = torch.linalg.eigvalsh(matrices).unbind(-1)
    bright = (a + b + c < 0).double()
    blob = (-a * b * c).clamp(min=0) ** (1 / 3) * (c < 0)  # the greatest is negative: no saddle
    tube = (((a * b + a * c + b * c).clamp(min=0) / 3).sqrt() * bright - blob).clamp(min=0)
    found = blob_and_tube(hessian)
    torch.testing.assert_close(found[0].double(), blob, atol=2e-3, rtol=1e-2)
    torch.testing.assert_close(found[1].double(), tube, atol=2e-3, rtol=1e-2)
    assert blob.max() > 0.05
    assert tube.max() > 0.05


def test_a_structure_is_found_best_at_its_own_scale():
    wide = gaussian((AT**2).sum(0), sigma=4.0)
    at = {
        scale: (centre(BALL, "blobs", scales=(scale,)), centre(wide, "blobs", scales=(scale,))) for scale in (1.0, 4.0)
    }
    assert at[1.0][0] > at[1.0][1]
    assert at[4.0][0] < at[4.0][1]
    assert centre(wide, "blobs", scales=(1.0, 4.0)) == pytest.approx(at[4.0][1])


def test_thick_slices_are_told_from_flat_objects():
    """A ball of true size on slices three times as thick is still a blob."""
    squeezed = gaussian(((AT * np.array([3, 1, 1])[:, None, None, None]) ** 2).sum(0))
    true = structure_response(squeezed, (3.0, 1.0, 1.0), scales=(2.0,), kind="blobs")[0, 16, 16, 16]
    assert float(true) == pytest.approx(centre(BALL, "blobs"), rel=0.25)


def test_in_two_dimensions_lines_are_tubes():
    line, spot = gaussian(AT[1][0] ** 2), gaussian(AT[1][0] ** 2 + AT[2][0] ** 2)
    response = {
        (name, kind): float(structure_response(image, (1.0, 1.0), scales=(2.0,), kind=kind)[0, 16, 16])
        for name, image in (("line", line), ("spot", spot))
        for kind in ("blobs", "tubes")
    }
    assert response["line", "tubes"] > 5 * response["line", "blobs"]
    assert response["spot", "blobs"] > 5 * response["spot", "tubes"]


def specks(count=4):
    """Patches with a few bright balls on noise."""
    patches = 0.05 * torch.randn(count, 1, *SHAPE, generator=torch.Generator().manual_seed(1))
    return patches + torch.roll(BALL, (6, -5, 3), (2, 3, 4)) + torch.roll(BALL, (-7, 4, -9), (2, 3, 4))


def pretext(net=None, patch=SHAPE, spacing=None, inpainting=None, **structure):
    settings = {"block_edges": [4], "mask_ratio": 0.2, **(inpainting or {})}
    return StructureInpainting(task(net, patch=patch, spacing=spacing, inpainting=settings, structure=structure))


def test_masks_fall_on_structures_and_hide_as_much_as_before():
    patches = specks(24)
    bright = (patches > 0.4).float()
    hidden = {}
    for preference in (0.0, 2.0):
        mask = pretext(preference=preference).draw_mask(patches).float()
        assert float(mask.mean()) == pytest.approx(0.2, abs=0.02)
        hidden[preference] = float((mask * bright).sum() / bright.sum())
    assert hidden[0.0] == pytest.approx(0.2, abs=0.06)
    assert hidden[2.0] > 0.8


@pytest.mark.parametrize("edge", [4, 8])
def test_a_preference_does_not_change_how_much_is_hidden(edge):
    """The grid is shifted, and blocks that lie outside of the patch would count if they were drawn less readily."""
    patches = torch.randn(16, 1, *SHAPE, generator=torch.Generator().manual_seed(0))
    for preference in (0.0, 1.0):
        one = pretext(preference=preference, inpainting={"mask_ratio": 0.6, "block_edges": [edge]})
        hidden = one.draw_mask(patches).float().mean((1, 2, 3, 4))
        assert float(hidden.mean()) == pytest.approx(0.6, abs=0.02)
        assert float(hidden.max()) < 0.75


def test_hidden_bright_cells_are_not_the_whole_loss():
    """Cells of 50 standard deviations of the background, nearly all hidden: the answer stays within a few units."""
    patches = 50 * (BALL > 0.5).float() + torch.randn(1, 1, *SHAPE)
    visible, target, mask = pretext(preference=4.0).draw_task(patches)
    assert float(mask[BALL > 0.5].float().mean()) > 0.9
    assert float(target.abs().max()) < 6.0
    shown = visible[~mask.expand_as(visible)]
    torch.testing.assert_close(torch.asinh(shown), target[~mask.expand_as(target)])


def test_cut_masks_lie_on_tubes_and_leave_most_of_the_patch():
    patches = TUBE.repeat(12, 1, 1, 1, 1) + 0.02 * torch.randn(12, 1, *SHAPE)
    mask = pretext(cut_share=1.0, cut_ratio=0.4, inpainting={"mask_ratio": 0.9}).draw_mask(patches)
    assert float(mask.float().mean()) < 0.1
    core = mask[:, 0, :, 15:18, 15:18].float()
    assert float(core.mean()) == pytest.approx(0.4, abs=0.1)  # cut here and there, not taken away
    none = pretext(cut_share=0.0, inpainting={"mask_ratio": 0.9}).draw_mask(patches)
    assert float(none.float().mean()) > 0.8


def test_errors_on_structures_count_more():
    target, mask = specks(1), torch.ones(1, 1, *SHAPE, dtype=torch.bool)
    bright = target > 0.4
    on, off = target + bright, target + torch.roll(bright, 16, 2)  # the same error, on the balls and elsewhere
    plain, weighted = pretext(weight=0.0), pretext(weight=1.0)
    assert plain.error(on, target, mask).item() == pytest.approx(plain.error(off, target, mask).item())
    assert weighted.error(on, target, mask) > 3 * weighted.error(off, target, mask)


def test_the_response_is_computed_once_a_step_with_few_kernels(monkeypatch):
    asked = []

    def response(patches, *more, **options):
        asked.append(patches)
        return structure_response(patches, *more, **options)

    monkeypatch.setattr("nnunet_selma.pretraining.structure.structure_response", response)
    one, net = pretext(), network(plans())
    patches = torch.randn(2, 1, *SHAPE)
    first = one(net, patches, unknown(patches))["inpainting"]  # constants are made in the first step
    assert len(asked) == 1
    assert calls(lambda: one(net, patches, unknown(patches))) < 480
    assert len(asked) == 2
    first.backward()


def test_errors_are_weighted_by_the_response_of_what_is_answered():
    one = pretext()
    for seed in range(2):  # not by that of the step before
        patches = torch.randn(2, 1, *SHAPE, generator=torch.Generator().manual_seed(seed))
        _, target, _ = one.draw_task(patches)
        expected = structure_response(target, one.spacing, scales=one.structure.scales, kind=one.structure.kind)
        expected = expected / expected.mean((1, 2, 3), keepdim=True)
        torch.testing.assert_close(one.target_response(target), expected)
