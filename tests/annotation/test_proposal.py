"""Proposals into folders: geometry, rounds, kills, and labels that are never written twice."""

import json
from collections import Counter

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_selma import cli
from nnunet_selma.annotation import cubes, proposal
from nnunet_selma.annotation.cubes import NOT_FOR_ANNOTATION
from nnunet_selma.annotation.layout import file_hash, label_hash
from nnunet_selma.annotation.proposal import propose
from nnunet_selma.annotation.settings import ProposalSettings
from nnunet_selma.annotation.uncertainty import ModelPrediction
from nnunet_selma.errors import SelmaError
from nnunet_selma.running.json_files import read_json
from nnunet_selma.volumes import open_volume
from nnunet_selma.volumes.segmented import image_at
from tests import artists
from tests.annotation.brains import SPACING_UM, brain, write_brain
from tests.conftest import write_image
from tests.plans import plans
from tests.prediction.models import write_model

pytest.importorskip("zarr", reason="zarr 3 needs Python 3.11")
SETTINGS = ProposalSettings(count=3, size=20, pool=12)


@pytest.fixture(scope="module")
def brains(tmp_path_factory):
    folder = tmp_path_factory.mktemp("brains")
    for seed, name in enumerate("ab"):
        write_brain(folder / f"mouse-{name}.nii.gz", seed)
    return folder


def files_of(folder):
    return {
        str(path.relative_to(folder)): file_hash(path) for path in sorted(folder.glob("cube_*/**/*")) if path.is_file()
    }


@pytest.fixture
def one_round(brains, tmp_path):
    return propose([brains], tmp_path / "cubes", SETTINGS)


def test_a_cube_is_the_box_of_the_brain_at_its_place(one_round, brains):
    assert (
        Counter(cube["brain"] for cube in one_round.cubes) == {"mouse-a": 2, "mouse-b": 1} or len(one_round.cubes) == 3
    )
    for cube in one_round.cubes:
        folder = one_round.folder / cube["name"]
        whole = open_volume(cube["path"])
        box = tuple(slice(s, s + n) for s, n in zip(cube["start_zyx"], cube["shape_zyx"], strict=True))
        assert json.loads((folder / "cube.json").read_text()) == cube
        assert cube["label_sha256"] == label_hash(folder / "label.nii.gz")
        assert cube["suggestion"] == "empty"
        assert cube["reason"]["words"]
        image, label, stored = (open_volume(folder / n) for n in ("image.nii.gz", "label.nii.gz", "image.ome.zarr"))
        for volume in (image, stored):
            np.testing.assert_array_equal(volume.read(), whole.read(*box))
            assert volume.spacing_um_zyx == pytest.approx(SPACING_UM)
            assert volume.origin_um_zyx == pytest.approx(cube["origin_um_zyx"])
        np.testing.assert_array_equal(label.read(), np.zeros(cube["shape_zyx"]))
        np.testing.assert_array_equal(label.affine, image.affine)
        # the centre of the first voxel in the world of the brain, by nibabel and by ITK
        index = cube["start_zyx"][::-1]
        np.testing.assert_allclose(image.affine[:3, 3], (whole.affine @ [*index, 1])[:3], atol=1e-6)
        by_itk, of_brain = sitk.ReadImage(str(folder / "label.nii.gz")), sitk.ReadImage(cube["path"])
        np.testing.assert_allclose(by_itk.GetOrigin(), of_brain.TransformIndexToPhysicalPoint(index), atol=1e-6)
        np.testing.assert_allclose(by_itk.GetDirection(), of_brain.GetDirection(), atol=1e-6)
        np.testing.assert_allclose(by_itk.GetSpacing(), of_brain.GetSpacing(), rtol=1e-5)
        around = open_volume(folder / "context.ome.zarr")
        content = read_json(folder / "context.ome.zarr" / "zarr.json")["attributes"][NOT_FOR_ANNOTATION]
        assert content["not_to_be_annotated"]
        inside = tuple(
            slice(s, s + n) for s, n in zip(content["cube_start_zyx"], content["cube_shape_zyx"], strict=True)
        )
        np.testing.assert_array_equal(around.read()[inside], image.read())
        start = [s - c for s, c in zip(cube["start_zyx"], content["cube_start_zyx"], strict=True)]
        end = [s + n for s, n in zip(start, around.shape, strict=True)]
        for s, n, length, first, last in zip(
            cube["start_zyx"], cube["shape_zyx"], whole.shape, start, end, strict=True
        ):
            assert (first, last) == (max(0, s - n // 2), min(length, s + n + n // 2))
        assert around.origin_um_zyx == pytest.approx(
            [w * e for w, e in zip((np.array(whole.origin_voxels_zyx) + start), SPACING_UM, strict=True)], abs=1e-3
        )


def test_a_brain_without_a_matrix_is_placed_by_voxel_size_and_start(tmp_path, rng):
    path = tmp_path / "mouse.tif"
    import tifffile

    tifffile.imwrite(path, brain(3), photometric="minisblack")
    result = propose([path], tmp_path / "cubes", ProposalSettings(count=1, size=20, pool=2, spacing_um_zyx=SPACING_UM))
    (cube,) = result.cubes
    expected = [s * e for s, e in zip(cube["start_zyx"], SPACING_UM, strict=True)]
    assert cube["origin_um_zyx"] == pytest.approx(expected)
    for name in ("image.nii.gz", "label.nii.gz", "image.ome.zarr"):
        volume = open_volume(result.folder / cube["name"] / name)
        assert volume.origin_um_zyx == pytest.approx(expected, abs=1e-3)
        assert volume.spacing_um_zyx == pytest.approx(SPACING_UM)
    header = nibabel.load(result.folder / cube["name"] / "image.nii.gz").header
    assert header.get_zooms() == pytest.approx([e / 1000 for e in SPACING_UM[::-1]])


def test_channels_are_one_image_and_several_nifti(tmp_path):
    import tifffile

    voxels = np.stack([brain(4), brain(5)], axis=1)
    tifffile.imwrite(tmp_path / "mouse.tif", voxels, imagej=True, metadata={"axes": "ZCYX"})
    settings = ProposalSettings(count=1, size=20, pool=2, spacing_um_zyx=SPACING_UM, channels=(1, 0))
    result = propose([tmp_path / "mouse.tif"], tmp_path / "cubes", settings)
    (cube,) = result.cubes
    folder = result.folder / cube["name"]
    box = tuple(slice(s, s + n) for s, n in zip(cube["start_zyx"], cube["shape_zyx"], strict=True))
    assert cube["images"] == ["image.nii.gz", "image_channel_1.nii.gz"]
    for number, (name, channel) in enumerate(zip(cube["images"], (1, 0), strict=True)):
        np.testing.assert_array_equal(open_volume(folder / name).read(), voxels[:, channel][box])
        np.testing.assert_array_equal(
            image_at(folder / "image.ome.zarr").channels[number][0].read(), voxels[:, channel][box]
        )


def test_the_seed_decides_and_progress_does_not(brains, tmp_path):
    first = propose([brains], tmp_path / "one", SETTINGS)
    again = propose([brains], tmp_path / "two", SETTINGS, progress=lambda items, _: iter(list(items)))
    other = propose([brains], tmp_path / "three", ProposalSettings(count=3, size=20, pool=12, seed=1))
    assert [c["start_zyx"] for c in first.cubes] == [c["start_zyx"] for c in again.cubes]
    assert [c["start_zyx"] for c in first.cubes] != [c["start_zyx"] for c in other.cubes]
    assert files_of(tmp_path / "one") == files_of(tmp_path / "two")


def test_a_second_round_adds_cubes_and_changes_none(one_round, brains, monkeypatch):
    label = one_round.folder / "cube_0001" / "label.nii.gz"
    label.write_bytes(b"what a person has painted")
    before = files_of(one_round.folder)
    figures = artists.saved_figures(monkeypatch)
    numbers, choose = [], proposal.choose_cubes
    monkeypatch.setattr(proposal, "choose_cubes", lambda *a, **k: numbers.append(k["round_number"]) or choose(*a, **k))
    second = propose([brains], one_round.folder, SETTINGS)
    assert numbers == [2]  # chance is that of the round
    assert "label.nii.gz cannot be read" in figures[0].axes[0].get_xlabel()
    assert {k: v for k, v in files_of(one_round.folder).items() if k in before} == before
    assert [c["name"] for c in second.cubes] == ["cube_0004", "cube_0005", "cube_0006"]
    assert {c["round"] for c in second.cubes} == {2}
    record = read_json(one_round.folder / "selma_cubes.json")
    assert [c["number"] for c in record["cubes"]] == [1, 2, 3, 4, 5, 6]
    assert record["cubes"] == [*one_round.cubes, *second.cubes]
    assert [r["complete"] for r in record["rounds"]] == [True, True]


def test_a_cube_whose_folder_was_removed_is_not_proposed_again(one_round, brains):
    import shutil

    shutil.rmtree(one_round.folder / "cube_0002")
    places = [(c["brain"], c["start_zyx"]) for c in one_round.cubes]
    second = propose([brains], one_round.folder, SETTINGS)
    assert not [c for c in second.cubes if (c["brain"], c["start_zyx"]) in places]
    assert not (one_round.folder / "cube_0002").exists()


def test_a_readme_of_a_person_stays(one_round, brains):
    readme, lines = one_round.folder / "README.md", []
    ours = readme.read_bytes()
    readme.write_bytes(ours + b"\nTo the lab: begin with cube 3.\n")
    propose([brains], one_round.folder, SETTINGS, say=lines.append)
    assert readme.read_bytes() == ours + b"\nTo the lab: begin with cube 3.\n"
    assert any("README.md: is not as it was written, and stays" in line for line in lines)


def test_a_model_renews_only_a_readme_of_ours(tmp_path):
    path, lines = tmp_path / "README.md", []
    first = proposal._write_instructions(path, None, None, lines.append)
    second = proposal._write_instructions(path, {1: "cell"}, first, lines.append)
    assert "1 cell" in path.read_text()
    assert proposal._write_instructions(path, None, second, lines.append) == second
    third = proposal._write_instructions(path, {1: "soma"}, second, lines.append)
    assert "1 soma" in path.read_text()
    assert third == file_hash(path) != second
    assert lines == []
    path.write_text(path.read_text().replace("1 soma", "1 soma of a neuron"))
    assert proposal._write_instructions(path, {1: "cell"}, third, lines.append) == third
    assert "1 soma of a neuron" in path.read_text()
    assert lines[0].endswith("stays as it is; classes of the model: 1 cell")


def test_cubes_without_their_record_are_refused(one_round, brains):
    (one_round.folder / "selma_cubes.json").unlink()
    before = files_of(one_round.folder)
    with pytest.raises(SelmaError, match="holds cube_0001 without selma_cubes"):
        propose([brains], one_round.folder, SETTINGS)
    assert files_of(one_round.folder) == before


def test_a_sheet_that_fails_leaves_a_complete_round(brains, tmp_path, monkeypatch):
    monkeypatch.setattr(proposal, "draw_sheet", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        propose([brains], tmp_path / "cubes", SETTINGS)
    assert [r["complete"] for r in read_json(tmp_path / "cubes" / "selma_cubes.json")["rounds"]] == [True]


def test_the_sheet_says_what_it_cannot_draw(one_round, brains, monkeypatch):
    import shutil

    contents = one_round.cubes
    shutil.rmtree(one_round.folder / "cube_0001" / "image.ome.zarr")
    many = np.arange(np.prod(contents[1]["shape_zyx"]), dtype=np.uint16).reshape(contents[1]["shape_zyx"])
    write_image(one_round.folder / "cube_0002" / "label.nii.gz", many)
    figures = artists.saved_figures(monkeypatch)
    proposal.draw_sheet(
        one_round.folder / "sheet.png", contents, [one_round.folder / cube["name"] for cube in contents], ()
    )
    first, second, _ = (figures[0].axes[n] for n in range(3))
    assert "image.ome.zarr is missing" in first.get_xlabel()
    assert "too many for outlines" in second.get_xlabel().replace("\n", " ")
    assert not second.collections


@pytest.mark.parametrize("unit", ["mm", "micron", "meter"])
def test_cubes_of_a_brain_in_any_unit_are_in_mm(unit, tmp_path):
    factor = {"mm": 1.0, "micron": 1000.0, "meter": 0.001}[unit]
    turned = np.array([[0, -2e-3, 0, 0.3], [3e-3, 0, 0, -0.2], [0, 0, 6e-3, 0.1], [0, 0, 0, 1.0]])
    scaled = np.vstack([turned[:3] * factor, turned[3]])
    image = nibabel.Nifti1Image(np.ascontiguousarray(brain(0).T), scaled)
    image.header.set_xyzt_units(unit)
    nibabel.save(image, tmp_path / "mouse.nii.gz")
    result = propose([tmp_path / "mouse.nii.gz"], tmp_path / "cubes", ProposalSettings(count=1, size=20, pool=2))
    (cube,) = result.cubes
    for name in ("image.nii.gz", "label.nii.gz"):
        stored = nibabel.load(result.folder / cube["name"] / name)
        assert stored.header.get_xyzt_units()[0] == "mm"
        assert stored.header.get_zooms() == pytest.approx((3e-3, 2e-3, 6e-3), rel=1e-5)
        np.testing.assert_allclose(stored.affine[:, :3], turned[:, :3], rtol=1e-5, atol=1e-9)
        corner = turned @ [*cube["start_zyx"][::-1], 1]
        np.testing.assert_allclose(stored.affine[:3, 3], corner[:3], atol=1e-6)
        volume = open_volume(result.folder / cube["name"] / name)
        for spacing in (volume.spacing_um_zyx, cube["spacing_um_zyx"]):
            assert spacing == pytest.approx((6, 2, 3), rel=1e-5)
        assert volume.origin_um_zyx == pytest.approx(cube["origin_um_zyx"], abs=1e-2)


@pytest.mark.parametrize(("lowest", "highest"), [(0.0, 1.0), (5.0, 5.0)])
def test_the_window_of_a_dim_image_is_its_values(lowest, highest, tmp_path, monkeypatch):
    voxels = brain(0).astype(np.float32)
    voxels = lowest + (highest - lowest) * voxels / voxels.max()
    path = write_image(tmp_path / "mouse.nii.gz", voxels, (0.006, 0.002, 0.003))
    ((opened,), _) = proposal.open_brains([path], SETTINGS)
    box = tuple(slice(20, 40) for _ in range(3))
    content = {"start_zyx": [20] * 3, "shape_zyx": [20] * 3, "spacing_um_zyx": SPACING_UM}
    content |= {"number": 1, "round": 1, "brain": "mouse", "reason": {"words": "bright"}}
    cube = cubes.write_cube(tmp_path / "cube_0001", opened, content, None)
    window = read_json(tmp_path / "cube_0001" / "image.ome.zarr" / "zarr.json")["attributes"]["ome"]["omero"]
    figures = artists.saved_figures(monkeypatch)
    proposal.draw_sheet(tmp_path / "sheet.png", [cube], [tmp_path / "cube_0001"], ())
    black, white = figures[0].axes[0].images[0].get_clim()
    whole, middle = (np.percentile(voxels[box], (0.5, share)) for share in (99.8, 99.7))
    for place, (low, high) in (
        (window["channels"][0]["window"], whole),
        ({"start": black, "end": white}, middle),
    ):
        assert place["start"] == pytest.approx(low, rel=1e-4)
        assert place["end"] == pytest.approx(high if high > low else low + 1, rel=1e-4)


class Killed(Exception):
    """Stands for the end of a process."""


KILLS = [
    "write_image_nifti",
    "write_label_nifti",
    "create_image",
    "write_box",
    "fill_pyramid",
    "write_json",
    "os.rename",
]


@pytest.fixture(scope="module")
def undisturbed(brains, tmp_path_factory):
    return propose([brains], tmp_path_factory.mktemp("undisturbed"), SETTINGS)


@pytest.mark.parametrize("at", KILLS)
def test_a_kill_leaves_whole_cubes_and_the_same_command_goes_on(at, brains, undisturbed, tmp_path, monkeypatch):
    module, _, name = at.rpartition(".")
    owner = cubes.os if module else cubes
    real = getattr(owner, name)

    def killed(*arguments, **more):
        if "cube_0002" in str(arguments[0]):
            raise Killed
        return real(*arguments, **more)

    monkeypatch.setattr(owner, name, killed)
    folder = tmp_path / "cubes"
    with pytest.raises(Killed):
        propose([brains], folder, SETTINGS)
    monkeypatch.undo()
    assert [p.parent.name for p in folder.glob("*/cube.json")] == ["cube_0001"]
    assert not (folder / "cube_0002").exists()
    painted = folder / "cube_0001" / "label.nii.gz"
    painted.write_bytes(b"painted meanwhile")
    result = propose([brains], folder, SETTINGS)
    assert result.round == 1
    assert painted.read_bytes() == b"painted meanwhile"
    same, there = files_of(undisturbed.folder), files_of(folder)
    same["cube_0001/label.nii.gz"] = there["cube_0001/label.nii.gz"]
    assert there == same
    assert [c["start_zyx"] for c in result.cubes] == [c["start_zyx"] for c in undisturbed.cubes]
    assert not (folder / ".partial").exists()


def test_an_interrupted_round_goes_on_with_its_settings_only(brains, tmp_path, monkeypatch):
    def killed(*_):
        raise Killed

    monkeypatch.setattr(proposal, "write_cube", killed)
    with pytest.raises(Killed):
        propose([brains], tmp_path / "cubes", SETTINGS)
    monkeypatch.undo()
    with pytest.raises(SelmaError, match="interrupted, with count 3, and now it is 4"):
        propose([brains], tmp_path / "cubes", ProposalSettings(count=4, size=20, pool=12))
    with pytest.raises(SelmaError, match="interrupted, with mouse-b"):
        propose([brains / "mouse-a.nii.gz"], tmp_path / "cubes", SETTINGS)
    assert len(propose([brains], tmp_path / "cubes", SETTINGS).cubes) == 3


def test_a_model_chooses_and_fills_the_labels(brains, tmp_path):
    settings = write_model(tmp_path / "model", plans(), labels={"background": 0, "cell": 1, "vessel": 2})
    model = ModelPrediction(settings, "cpu")
    result = propose(
        [brains / "mouse-a.nii.gz"], tmp_path / "cubes", ProposalSettings(count=3, size=16, pool=5), prediction=model
    )
    assert [c["reason"]["numbers"]["class"] for c in result.cubes] == ["cell", "vessel", "background"]
    (whole,), _ = proposal.open_brains([brains / "mouse-a.nii.gz"], SETTINGS)
    for cube in result.cubes:
        box = tuple(slice(s, s + n) for s, n in zip(cube["start_zyx"], cube["shape_zyx"], strict=True))
        label = result.folder / cube["name"] / "label.nii.gz"
        ((_, answer),) = model.answers(whole, [box])
        np.testing.assert_array_equal(open_volume(label).read(), answer.labels)
        assert cube["suggestion"] == "model"
        assert cube["label_sha256"] == label_hash(label)
    record = read_json(result.folder / "selma_cubes.json")
    assert record["model"] == settings.fingerprint()
    assert "1 cell, 2 vessel" in (result.folder / "README.md").read_text()
    second = propose(
        [brains / "mouse-a.nii.gz"], result.folder, ProposalSettings(count=1, size=16, pool=2), prediction=model
    )
    assert second.cubes[0]["reason"]["numbers"]["beta"] == 4


def test_the_sheet_has_a_panel_for_each_cube_and_each_brain(brains, tmp_path, monkeypatch):
    figures = artists.saved_figures(monkeypatch)
    result = propose([brains], tmp_path / "cubes", SETTINGS)
    (figure,) = figures
    assert artists.titles(figure) == [
        *(f"cube {c['number']}, {c['brain']}" for c in result.cubes), "places in mouse-a", "places in mouse-b"
    ]  # fmt: skip
    for axis, cube in zip(figure.axes, result.cubes, strict=False):
        image = open_volume(result.folder / cube["name"] / "image.nii.gz").read()
        shown = artists.image(axis)
        # 2 µm pixels: 40 µm along y, 60 along x, 120 along z
        assert shown.shape == (20 + 2 + 60, 30 + 2 + 60)
        assert set(np.unique(shown[:20, :30])) == set(np.unique(image[10]))
        assert np.isnan(shown[25:, 35:]).all()
        assert "structure response" in axis.get_xlabel().replace("\n", " ")
    assert sum(len(axis.patches) for axis in figure.axes) == 3
    assert (result.folder / "sheet.png").stat().st_size > 10000


def no_spacing(folder, brains):
    import tifffile

    tifffile.imwrite(folder / "plain.tif", brain(0), photometric="minisblack")
    return [folder / "plain.tif"], SETTINGS, "does not state its voxel size; give it with --spacing"


def a_mask(folder, brains):
    path = write_image(folder / "m.nii.gz", (brain(0) > 300).astype(np.uint8), (1, 1, 1))
    return [path], SETTINGS, "only two values"


def nothing(folder, brains):
    (folder / "empty").mkdir()
    return [folder / "empty"], SETTINGS, "holds no brain"


@pytest.mark.parametrize("case", [no_spacing, a_mask, nothing])
def test_what_cannot_be_proposed_from_is_named(case, brains, tmp_path):
    sources, settings, message = case(tmp_path, brains)
    with pytest.raises(SelmaError, match=message):
        propose(sources, tmp_path / "cubes", settings)
    assert not list(tmp_path.glob("cubes/cube_*"))


@pytest.mark.parametrize("numbers", [{"count": 0}, {"size": 8}, {"count": 5, "pool": 4}])
def test_numbers_that_give_no_cubes_are_refused(numbers):
    with pytest.raises(SelmaError, match="at least 1 cube"):
        ProposalSettings(**numbers)


def test_when_no_candidate_is_left_fewer_cubes_come_and_then_a_sentence(brains, tmp_path):
    lines = []
    settings = ProposalSettings(count=20, size=60, pool=20)
    result = propose([brains / "mouse-a.nii.gz"], tmp_path / "cubes", settings, say=lines.append)
    assert 0 < len(result.cubes) < 20
    assert any("instead of 20" in line for line in lines)
    with pytest.raises(SelmaError, match="no candidate is left"):
        propose([brains / "mouse-a.nii.gz"], tmp_path / "cubes", settings)


def test_the_command(brains, tmp_path, capsys, monkeypatch):
    import shutil

    inside = tmp_path / "our data"
    shutil.copytree(brains, inside)
    arguments = ["propose", inside, "-o", inside / "cubes", "-n", 2, "--size", 20, "--pool", 6]
    for number in (1, 2):  # cubes in the folder of the brains are no brains
        assert cli.main([str(a) for a in arguments]) == 0
        out = capsys.readouterr().out
        assert f"round {number}: 2 cubes; picture: {inside / 'cubes' / 'sheet.png'}" in out
        lines, first = out.split("next:\n")[1].splitlines(), f"cube_000{2 * number - 1}"
        assert [line.strip() for line in lines if not line.startswith("  #")] == [
            f"nnunet-selma view '{inside / 'cubes' / first}'"
        ]
        assert lines[0].startswith(f"  # annotate {first}, cube_000{2 * number}, as README.md")
        assert lines[-1].endswith(f": nnunet-selma convert annotated '{inside / 'cubes'}' -d 510")
    assert cli.main([str(a) for a in [*arguments, "--probabilities", inside / "x_probabilities.ome.zarr"]]) == 2
    assert "2 brains and 1 file of probabilities" in capsys.readouterr().err
    assert cli.main([str(a) for a in [*arguments, "-f", 0]]) == 2
    assert "give it with --model" in capsys.readouterr().err
