from pathlib import Path

import pytest

from nnunet_selma.challenge.data import ChallengeData, arrange, held_out_groups
from nnunet_selma.conversion.layouts import find_patches
from nnunet_selma.errors import SelmaError
from nnunet_selma.json_files import read_json
from nnunet_selma.volumes import open_volume
from tests.conftest import write_image, write_patch


def octants(root, folder, cubes, rng):
    for cube, labelled in cubes.items():
        for octant in range(8):
            name = f"patchvolume_{cube}_{octant}.nii.gz"
            write_image(root / folder / "raw" / name, rng.integers(0, 9999, (6, 7, 8)).astype("uint16"))
            if octant < labelled:
                write_image(root / folder / "gt" / name, (rng.random((6, 7, 8)) < 0.2).astype("uint8"))


@pytest.fixture
def sources(tmp_path, rng):
    delivr = tmp_path / "delivr"
    octants(delivr, "cFos", {695: 8, 1147: 8, 1230: 2}, rng)
    octants(delivr, "microglia", {1874: 8, 3941: 8}, rng)
    selma = tmp_path / "selma"
    write_patch(selma, "AD_plaques", 0, rng)
    write_patch(selma, "VessAP_vessel", 6, rng, channels=2)
    more = tmp_path / "more"
    write_image(more / "brain.nii.gz", rng.integers(0, 9999, (6, 7, 8)).astype("uint16"))
    return [delivr, selma], [more]


def test_test_cubes_are_in_no_training_set(sources, tmp_path):
    data = arrange(*sources, tmp_path / "out", test_patches=None)
    origins = read_json(tmp_path / "out" / "origins.json")
    below = {
        part: {origin for link, origin in origins.items() if link.startswith(str(root))}
        for part, root in (
            ("train", data.annotated),
            ("unlabelled", data.unlabelled),
            ("test", tmp_path / "out" / "test"),
        )
    }
    for cube in ("_1147_", "_3941_"):
        assert not [one for part in ("train", "unlabelled") for one in below[part] if cube in one]
        assert len([one for one in below["test"] if cube in one]) == 16  # images and truths
    assert not [one for one in below["train"] if "microglia" in one]
    assert len([one for one in below["unlabelled"] if "_1874_" in one]) == 8  # raw, without its labels
    assert len([one for one in below["unlabelled"] if "_1230_" in one]) == 8  # six of them have no label at all
    assert [one for one in below["unlabelled"] if one.endswith("brain.nii.gz")]


def test_the_trees_are_what_the_converters_take(sources, tmp_path):
    data = arrange(*sources, tmp_path / "out", test_patches=3)
    found = find_patches(data.annotated)
    assert not found.problems + found.unpaired
    counts = {}
    for patch in found.patches:
        counts[patch.structure.prefix] = counts.get(patch.structure.prefix, 0) + 1
    assert counts == {"cfos_neuron": 10, "AD_plaques": 1, "blood_vessel": 1}
    tested = sorted(path.name for path in data.references.iterdir())
    assert tested == [f"{s}_{o}.nii.gz" for s in ("cfos_neuron_1147", "microglia_3941") for o in range(3)]
    for path in data.references.iterdir():
        image = open_volume(data.images / path.name.replace(".nii.gz", "_0000.nii.gz"))
        assert image.shape == open_volume(path).shape == (6, 7, 8)


def test_what_a_challenge_needs_is_said(sources, tmp_path, rng):
    with pytest.raises(SelmaError, match=r"c-Fos\+ cell patches of at least 2 cube"):
        arrange([sources[0][1]], [], tmp_path / "out", test_patches=None)
    only = tmp_path / "only"
    octants(only, "cFos", {1: 8, 2: 8}, rng)
    with pytest.raises(SelmaError, match="microglia patches of at least 1 cube"):
        held_out_groups(find_patches(only).patches)


def test_places():
    data = ChallengeData.below(Path("x"), tile=8, tiles_per_volume=1)
    assert str(data.references) == "x/test/references"
