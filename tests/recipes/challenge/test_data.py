from pathlib import Path

import pytest
import tifffile

from nnunet_selma.conversion.annotated_sources import find_patches
from nnunet_selma.conversion.volume_tree import find_volumes
from nnunet_selma.errors import SelmaError
from nnunet_selma.recipes.challenge.data import ChallengeData, arrange, draw, held_out_groups
from nnunet_selma.running.json_files import read_json
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
        for part, root in (("train", data.annotated), ("unlabelled", data.unlabelled))
    }
    for cube in ("1147", "3941"):
        assert not [one for part in ("train", "unlabelled") for one in below[part] if f"_{cube}_" in one]
        assert len(list(data.images.glob(f"*_{cube}_*"))) == len(list(data.references.glob(f"*_{cube}_*"))) == 8
    assert not [one for one in below["train"] if "microglia" in one]
    assert len([one for one in below["unlabelled"] if "_1874_" in one]) == 8  # raw, without its labels
    assert len([one for one in below["unlabelled"] if "_1230_" in one]) == 8  # six of them have no label at all
    assert [one for one in below["unlabelled"] if one.endswith("brain.nii.gz")]


def test_test_cubes_can_be_named(sources, tmp_path):
    data = arrange(*sources, tmp_path / "out", test_patches=None, test_groups=["cfos_neuron_1230", "microglia_1874"])
    tested = {path.name.rpartition("_")[0] for path in data.references.iterdir()}
    assert tested == {"cfos_neuron_1230", "microglia_1874"}
    trained = list(read_json(tmp_path / "out" / "origins.json").values())
    assert not [path for path in trained if "_1230_" in path or "_1874_" in path]
    assert [path for path in trained if "_3941_" in path]
    with pytest.raises(SelmaError, match="microglia_1: no such cube is annotated"):
        arrange(*sources, tmp_path / "out", test_patches=None, test_groups=["microglia_1"])


def test_tissue_of_a_test_cube_under_another_name_is_refused(sources, tmp_path):
    tested = sources[0][0] / "cFos" / "raw" / "patchvolume_1147_0.nii.gz"
    (sources[1][0] / "copy.nii.gz").write_bytes(tested.read_bytes())
    with pytest.raises(
        SelmaError, match=r"copy\.nii\.gz: shows the same tissue as the test case cfos_neuron_1147_0 \(identical"
    ):
        arrange(*sources, tmp_path / "out", test_patches=None)


def test_nothing_but_its_own_is_ever_removed(sources, tmp_path):
    own = tmp_path / "delivr"
    with pytest.raises(SelmaError, match="holds something else"):
        arrange(*sources, own, test_patches=None)
    with pytest.raises(SelmaError, match="holds something else"):
        arrange(*sources, tmp_path, test_patches=None)
    with pytest.raises(SelmaError, match="holds something else"):
        draw(own, seed=0)
    assert len(list(own.rglob("*.nii.gz"))) > 50
    arrange(*sources, tmp_path / "out", test_patches=1)
    arrange(*sources, tmp_path / "out", test_patches=2)  # its own is made anew
    assert len(list((tmp_path / "out" / "test" / "images").iterdir())) == 4


def test_whole_brains_of_one_name_are_kept_apart(sources, tmp_path, rng):
    for sample in (1, 2):
        for z in range(3):
            path = tmp_path / "brains" / "c-Fos_brain_cells" / f"sample{sample}" / "C01" / f"s_{z}.tif"
            path.parent.mkdir(parents=True, exist_ok=True)
            tifffile.imwrite(path, rng.integers(0, 999, (9, 8)).astype("uint16"))
    data = arrange(sources[0], [tmp_path / "brains"], tmp_path / "out", test_patches=1)
    assert len(list((data.unlabelled / "cfos_neuron").glob("volume-*"))) == 2
    assert len({volume.name for volume in find_volumes(data.unlabelled)}) == len(find_volumes(data.unlabelled))


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
