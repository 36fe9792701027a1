"""Brains as they are opened and read for proposals."""

import numpy as np
import pytest

from nnunet_selma.annotation.brains import open_brains
from nnunet_selma.annotation.proposal import propose
from nnunet_selma.annotation.record import CubeRecord
from nnunet_selma.annotation.settings import ProposalSettings
from nnunet_selma.errors import SelmaError
from nnunet_selma.volumes import open_volume
from tests.annotation.brains import SPACING_UM, brain, write_brain
from tests.conftest import write_image
from tests.volumes.brains import BRAINS

SETTINGS = ProposalSettings(count=1, size=20, pool=2)


def boxes_of(*starts):
    return [tuple(slice(s, s + n) for s, n in zip(start, (4, 5, 6), strict=True)) for start in starts]


@pytest.mark.parametrize("kind", ["slices", "memory map"])
def test_boxes_are_read_as_they_lie_and_slices_once(kind, tmp_path, rng, monkeypatch):
    voxels = rng.integers(0, 999, (12, 20, 24), dtype=np.uint16)
    path = write_image(tmp_path / ("a.nii.gz" if kind == "slices" else "a.nii"), voxels, (0.002, 0.002, 0.002))
    ((opened,), _) = open_brains([path], SETTINGS)
    boxes = boxes_of((6, 0, 0), (0, 3, 7), (6, 12, 13), (6, 2, 18), (0, 15, 0))
    reads, real = [], type(opened.first).read
    monkeypatch.setattr(type(opened.first), "read", lambda self, *box: reads.append(box) or real(self, *box))
    read = dict(opened.read_boxes(boxes))
    assert sorted(read) == [0, 1, 2, 3, 4]
    for number, box in enumerate(boxes):
        np.testing.assert_array_equal(read[number], voxels[box][None])
    assert len(reads) == (8 if kind == "slices" else 5)  # two layers of four slices, or five boxes


def test_brains_have_different_names(tmp_path):
    for folder in ("one", "two"):
        write_brain(tmp_path / folder / "mouse.nii.gz")
    write_brain(tmp_path / "rat.nii.gz")
    opened, passed = open_brains([tmp_path], SETTINGS)
    assert {b.name for b in opened} == {"rat", "one-mouse", "two-mouse"}
    assert passed == []
    with pytest.raises(SelmaError, match="would both be named mouse"):
        open_brains([tmp_path / "one" / "mouse.nii.gz", tmp_path / "two" / "mouse.nii.gz"], SETTINGS)
    again, _ = open_brains([tmp_path / "rat.nii.gz", tmp_path / "rat.nii.gz"], SETTINGS)
    assert len(again) == 1


def test_what_is_no_brain_is_passed_by_and_said(tmp_path):
    write_brain(tmp_path / "mouse.nii.gz")
    write_brain(tmp_path / "mouse_mask.nii.gz")
    (tmp_path / "notes.txt").write_text("")
    opened, passed = open_brains([tmp_path], SETTINGS)
    assert [b.name for b in opened] == ["mouse"]
    assert "mouse_mask.nii.gz" in " ".join(passed)
    assert "notes.txt" in " ".join(passed)


@pytest.mark.parametrize(
    ("content", "taken"), [('{"label_sha256": "0"}', False), ('{"edges": 12}', True), ("[1", True), ("[1]", True)]
)
def test_only_our_cubes_are_passed_by(content, taken, tmp_path):
    write_brain(tmp_path / "mouse.nii.gz")
    write_brain(tmp_path / "other" / "rat.nii.gz")
    (tmp_path / "other" / "cube.json").write_text(content)
    opened, _ = open_brains([tmp_path], SETTINGS)
    assert {b.name for b in opened} == ({"mouse", "rat"} if taken else {"mouse"})


def test_a_coarser_level_of_an_ome_zarr(tmp_path):
    pytest.importorskip("zarr", reason="zarr 3 needs Python 3.11")
    path = BRAINS["OME-Zarr"](tmp_path, [brain(0), brain(1)], SPACING_UM, ["nuclei", "cells"])
    coarse = ProposalSettings(count=2, size=16, pool=6, channels=(1,), level=1)
    first = propose([path], tmp_path / "cubes", coarse)
    whole = open_volume(path, channel=1, level=1)
    for cube in first.cubes:
        volume = open_volume(first.folder / cube["name"] / "image.nii.gz")
        box = tuple(slice(s, s + n) for s, n in zip(cube["start_zyx"], cube["shape_zyx"], strict=True))
        np.testing.assert_array_equal(volume.read(), whole.read(*box))
        assert volume.spacing_um_zyx == pytest.approx(whole.spacing_um_zyx, rel=1e-5)
        expected = [
            (o + s) * e
            for o, s, e in zip(whole.origin_voxels_zyx, cube["start_zyx"], whole.spacing_um_zyx, strict=True)
        ]
        assert volume.origin_um_zyx == pytest.approx(expected, abs=1e-3)
        assert cube["level_factor_zyx"] == list(whole.level_factor_zyx) != [1, 1, 1]
    fine = propose([path], tmp_path / "cubes", ProposalSettings(count=3, size=24, pool=12, channels=(1,)))
    taken = [e.place for e in CubeRecord.at(tmp_path / "cubes").earlier()]
    assert len(taken) == 2 + len(fine.cubes)
    for number, place in enumerate(taken):
        for other in taken[:number]:
            apart = [
                a > d or c > b for a, b, c, d in zip(place.start, place.stop, other.start, other.stop, strict=True)
            ]
            assert any(apart)


def test_several_channels_and_no_choice_are_asked_about(tmp_path):
    pytest.importorskip("zarr", reason="zarr 3 needs Python 3.11")
    path = BRAINS["OME-Zarr"](tmp_path, [brain(0), brain(1)], SPACING_UM, ["nuclei", "cells"])
    with pytest.raises(SelmaError, match="has 2 channels") as error:
        open_brains([path], SETTINGS)
    assert "--channel" in error.value.for_command({"--channel"})
