"""Channels of a brain in separate files: from the proposal to the folds of the dataset."""

import shlex
from pathlib import Path

import numpy as np
import pytest
import tifffile

from nnunet_selma import cli
from nnunet_selma.annotation import proposal
from nnunet_selma.annotation.brain_files import find_brains
from nnunet_selma.annotation.brains import open_brains
from nnunet_selma.annotation.conversion import convert_cubes
from nnunet_selma.annotation.cube_settings import CubeSettings
from nnunet_selma.annotation.next_commands import _proposing
from nnunet_selma.annotation.proposal import propose
from nnunet_selma.annotation.rounds import standing
from nnunet_selma.annotation.settings import ProposalSettings
from nnunet_selma.annotation.uncertainty import ModelPrediction, StoredPrediction, first_answer
from nnunet_selma.conversion.annotated import AnnotatedSettings
from nnunet_selma.errors import SelmaError
from nnunet_selma.prediction import Execution, VolumePrediction, predict_volume
from nnunet_selma.running.json_files import read_json, write_json
from nnunet_selma.volumes import open_volume
from tests.annotation.brains import SPACING, SPACING_UM, brain
from tests.annotation.folders import write_cubes
from tests.conftest import write_image
from tests.plans import plans
from tests.prediction.models import stock, texture, write_model
from tests.volumes.brains import BRAINS

SHAPE = (12, 20, 24)
SMALL = ProposalSettings(spacing_um_zyx=SPACING_UM)
SETTINGS = ProposalSettings(count=2, size=20, pool=12, spacing_um_zyx=SPACING_UM)


def write_slices(folder, voxels):
    folder.mkdir(parents=True)
    for z, plane in enumerate(voxels):
        tifffile.imwrite(folder / f"scan_Z{z:04d}.tif", plane)
    return folder


def write_file(path, voxels):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix:
        return write_image(path, voxels, SPACING)
    return write_slices(path, voxels)


def two_channels(rng, shape=SHAPE):
    return rng.integers(1, 999, (2, *shape), dtype=np.uint16)


@pytest.mark.parametrize(
    "names",
    [
        ("mouse/C00", "mouse/C01"),
        ("C00/mouse.tif", "C01/mouse.tif"),
        ("mouse_C00.tif", "mouse_C01.nii.gz"),
        ("mouse_ch0.nii.gz", "mouse_ch1.nii.gz"),
        ("C1-mouse.tif", "C2-mouse.tif"),
    ],
)
def test_channels_in_files_are_one_brain(names, tmp_path, rng):
    voxels = two_channels(rng)
    files = [write_file(tmp_path / name, of_channel) for name, of_channel in zip(names, voxels, strict=True)]
    for sources in ([tmp_path], files[::-1]):
        (opened,), said = open_brains(sources, SMALL)
        assert opened.name == "mouse"
        assert opened.files == tuple(files)
        box = slice(2, 6), slice(1, 9), slice(3, 20)
        np.testing.assert_array_equal(opened.read(box), voxels[(slice(None), *box)])
        numbers = [1, 2] if names[0].startswith("C1-") else [0, 1]
        listed = ", ".join(f"{number} ({path})" for number, path in zip(numbers, files, strict=True))
        assert said == [f"channels of mouse: {listed}"]


def test_channels_are_chosen_by_the_numbers_of_their_files(tmp_path, rng):
    voxels = two_channels(rng)
    for number, of_channel in zip((1, 2), voxels, strict=True):
        write_slices(tmp_path / "mouse" / f"C{number:02d}", of_channel)
    whole = tuple(slice(0, n) for n in SHAPE)
    (opened,), (said,) = open_brains([tmp_path], ProposalSettings(spacing_um_zyx=SPACING_UM, channels=(2, 1)))
    np.testing.assert_array_equal(opened.read(whole), voxels[::-1])
    assert said.endswith("taken: 2, 1")
    for sources in ([tmp_path], [tmp_path / "mouse" / "C01"]):
        with pytest.raises(SelmaError, match="has no channel 0; its channels are 1 "):
            open_brains(sources, ProposalSettings(spacing_um_zyx=SPACING_UM, channels=(0,)))
    (alone,), said = open_brains(
        [tmp_path / "mouse" / "C02"], ProposalSettings(spacing_um_zyx=(1, 1, 1), channels=(2,))
    )
    np.testing.assert_array_equal(alone.read(whole), voxels[1:])
    assert said == []


@pytest.mark.parametrize(
    "names",
    [
        ("mouse_0000.nii.gz", "mouse_0001.nii.gz"),
        ("mouse_C1.nii.gz", "mouse_C2.nii.gz"),
        ("mouse_C01.nii.gz", "mouse_C02.nii.gz"),
    ],
)
def test_names_that_leave_a_doubt_are_asked_about(names, tmp_path, rng):
    voxels = two_channels(rng)
    for name, of_channel in zip(names, voxels, strict=True):
        write_file(tmp_path / "together" / name, of_channel)
        write_file(tmp_path / "apart" / name.split(".")[0] / name, of_channel)
    with pytest.raises(SelmaError, match="may be channels of one brain, or two brains") as error:
        open_brains([tmp_path / "together"], SMALL)
    numbers = (0, 1) if "0000" in names[0] else (1, 2)
    assert f"--channel {numbers[0]} {numbers[1]};" in str(error.value)
    chosen = ProposalSettings(spacing_um_zyx=SPACING_UM, channels=numbers)
    (opened,), (said,) = open_brains([tmp_path / "together"], chosen)
    assert opened.name == "mouse"
    assert said.startswith("channels of mouse: ")
    np.testing.assert_array_equal(opened.read(tuple(slice(0, n) for n in SHAPE)), voxels)
    assert len(open_brains([tmp_path / "apart"], SMALL)[0]) == 2


def test_folders_of_two_digits_without_zero_are_asked_about(tmp_path, rng):
    """Cages C01 and C02, or channels."""
    voxels = two_channels(rng)
    files = [
        write_file(tmp_path / f"C{number:02d}" / "brain.nii.gz", of) for number, of in zip((1, 2), voxels, strict=True)
    ]
    with pytest.raises(SelmaError, match="may be channels of one brain, or two brains") as error:
        open_brains([tmp_path], SMALL)
    assert f"{files[0]} and {files[1]}: " in str(error.value)
    assert str(error.value).endswith(
        "choose them with --channel 1 2; if they are brains, rename the files or folders with the number"
    )
    (opened,), _ = open_brains([tmp_path], ProposalSettings(spacing_um_zyx=SPACING_UM, channels=(1, 2)))
    np.testing.assert_array_equal(opened.read(tuple(slice(0, n) for n in SHAPE)), voxels)
    for number in (1, 2):
        (tmp_path / f"C{number:02d}").rename(tmp_path / f"cage{number}")
    assert [of.name for of in open_brains([tmp_path], SMALL)[0]] == ["cage1-brain", "cage2-brain"]


def test_numbered_samples_stay_brains(tmp_path, rng):
    for number in range(1, 4):
        write_file(tmp_path / f"mouse_{number:04d}.nii.gz", two_channels(rng)[0])
    opened, said = open_brains([tmp_path], SMALL)
    assert [b.name for b in opened] == ["mouse_0001", "mouse_0002", "mouse_0003"]
    assert said == []


def test_a_file_beside_its_channels_and_two_formats_are_asked_about(tmp_path, rng):
    for name in ("mouse.nii.gz", "mouse_C00.nii.gz", "mouse_C01.nii.gz"):
        write_file(tmp_path / "a" / name, two_channels(rng)[0])
    for name in ("mouse.nii.gz", "mouse.nrrd"):
        write_file(tmp_path / "b" / name, two_channels(rng)[0])
    for folder in ("a", "b"):
        with pytest.raises(SelmaError, match="would both be named mouse; rename one"):
            open_brains([tmp_path / folder], SMALL)


def of_other_shape(folder, rng):
    write_file(folder / "mouse_C01.nii.gz", two_channels(rng, (12, 20, 25))[0])
    return "they cannot belong together, choose --channel, or rename them if they are brains"


def elsewhere(folder, rng):
    write_image(folder / "mouse_C01.nii.gz", two_channels(rng)[0], (0.004, 0.002, 0.003))
    return r"C01.nii.gz: has .* than .*mouse_C00.nii.gz; register the channels, or choose --channel"


def of_two_values(folder, rng):
    write_file(folder / "mouse_C01.nii.gz", (two_channels(rng)[0] > 500).astype(np.uint16))
    return "C01.nii.gz: only two values"


def one_slice(folder, rng):
    write_file(folder / "mouse_C01.nii.gz", two_channels(rng, (1, 20, 24))[0])
    return "C01.nii.gz: is a single slice"


def in_some_brains_only(folder, rng):
    write_file(folder / "mouse_C01.nii.gz", two_channels(rng)[0])
    write_file(folder / "rat.nii.gz", two_channels(rng)[0])
    return "rat has 1 channel, and mouse 2; choose those that all brains have with --channel"


@pytest.mark.parametrize("case", [of_other_shape, elsewhere, of_two_values, one_slice, in_some_brains_only])
def test_channels_that_do_not_belong_together_are_refused(case, tmp_path, rng):
    write_file(tmp_path / "mouse_C00.nii.gz", two_channels(rng)[0])
    message = case(tmp_path, rng)
    with pytest.raises(SelmaError, match=message):
        open_brains([tmp_path], ProposalSettings())
    assert open_brains([tmp_path / "mouse_C00.nii.gz"], ProposalSettings())[0][0].name == "mouse_C00"


@pytest.mark.parametrize("ending", ["C", "000"])
def test_files_with_several_channels_are_no_channels(ending, tmp_path):
    pytest.importorskip("zarr", reason="zarr 3 needs Python 3.11")
    for number in range(2):
        folder = tmp_path / f"made{number}"
        folder.mkdir()
        made = BRAINS["OME-Zarr"](folder, [brain(0, (16, 64, 64))] * 2, SPACING_UM, ["nuclei", "cells"])
        width = 2 if ending == "C" else 1
        made.rename(tmp_path / f"mouse_{ending}{number:0{width}d}.ome.zarr")
        folder.rmdir()
    settings = ProposalSettings(channels=(1,))
    if ending == "000":
        assert len(open_brains([tmp_path], settings)[0]) == 2
        return
    with pytest.raises(SelmaError, match="holds several channels, and is a channel by its name") as error:
        open_brains([tmp_path], settings)
    assert "rename them if they are brains" in str(error.value)
    assert len(open_brains([tmp_path / "mouse_C00.ome.zarr"], settings)[0]) == 1


def test_names_of_links_count(tmp_path, rng):
    stacks = [write_slices(tmp_path / "raw" / name, of) for name, of in zip("ab", two_channels(rng), strict=True)]
    for number, stack in enumerate(stacks):
        (tmp_path / "mouse").mkdir(exist_ok=True)
        (tmp_path / "mouse" / f"C{number:02d}").symlink_to(stack)
    (opened,), _ = open_brains([tmp_path / "mouse"], SMALL)
    assert (opened.name, opened.files) == ("mouse", tuple(stacks))


def test_nan_is_named_by_its_channel(tmp_path, rng):
    voxels = two_channels(rng).astype(np.float32)
    voxels[1, 4] = np.nan
    for number in range(2):
        write_file(tmp_path / f"mouse_C{number:02d}.nii.gz", voxels[number])
    (opened,), _ = open_brains([tmp_path], SMALL)
    with pytest.raises(SelmaError, match=r"mouse_C01.nii.gz: holds NaN"):
        opened.read((slice(4, 6), slice(0, 5), slice(0, 5)))


@pytest.fixture(scope="module")
def two_brains(tmp_path_factory):
    """Two brains of two channels in folders, as in SELMA3D."""
    folder = tmp_path_factory.mktemp("brains")
    for number in range(2):
        for channel in range(2):
            write_slices(folder / f"mouse{number}" / f"C{channel:02d}", brain(number, gain=1 + channel))
    return folder


@pytest.fixture
def no_zarr():
    pytest.importorskip("zarr", reason="zarr 3 needs Python 3.11")


@pytest.mark.usefixtures("no_zarr")
def test_from_files_of_channels_to_folds(two_brains, tmp_path, folders, capsys):
    cubes = tmp_path / "cubes"
    more = ["-n", "2", "--size", "20", "--pool", "12", "--spacing", ",".join(map(str, SPACING_UM)), "-o", str(cubes)]
    assert cli.main(["propose", str(two_brains), *more]) == 0
    files = {f"mouse{n}": [str(two_brains / f"mouse{n}" / f"C0{c}") for c in range(2)] for n in range(2)}
    out = capsys.readouterr().out
    for name, (first, second) in files.items():
        assert f"channels of {name}: 0 ({first}), 1 ({second})\n" in out
    record = read_json(cubes / "selma_cubes.json")
    assert {name: of_brain[:-1] for name, of_brain in record["rounds"][0]["brains"].items()} == files
    assert {cube["brain"] for cube in record["cubes"]} == set(files)
    for cube in record["cubes"]:
        assert cube["images"] == ["image.nii.gz", "image_channel_1.nii.gz"]
        assert (cube["path"], cube["channel_paths"]) == (files[cube["brain"]][0], files[cube["brain"]])
        box = tuple(slice(s, s + n) for s, n in zip(cube["start_zyx"], cube["shape_zyx"], strict=True))
        for number, (image, path) in enumerate(zip(cube["images"], files[cube["brain"]], strict=True)):
            expected = open_volume(path).read(*box)
            np.testing.assert_array_equal(open_volume(cubes / cube["name"] / image).read(), expected)
            stored = open_volume(cubes / cube["name"] / "image.ome.zarr", channel=number)
            np.testing.assert_array_equal(stored.read(), expected)
    everything = {"as_is": ("cube_0001", "cube_0002")}
    with pytest.raises(SelmaError, match="name all channels with --stains"):
        convert_cubes(cubes, AnnotatedSettings(), CubeSettings(**everything), folders)
    manifest = convert_cubes(cubes, AnnotatedSettings(stains=("TH", "auto")), CubeSettings(**everything), folders)
    assert len(set(manifest["groups"].values())) == 2


def test_the_next_command_names_all_files_of_a_brain(tmp_path, folders, rng):
    source = tmp_path / "cubes"
    write_cubes(source, rng, ["a"])
    record = read_json(source / "selma_cubes.json")
    record["rounds"][0]["brains"] = {"a": ["/brains/a/C00", "/brains/a/C01", "fingerprint"]}
    write_json(source / "selma_cubes.json", record)
    assert _proposing(standing(510, folders, source), "m").startswith(
        "nnunet-selma propose /brains/a/C00 /brains/a/C01 -n"
    )


def a_folder_of_files_with_one_name(folder):
    for number in (1, 2):
        write_file(folder / "brains" / f"mouse{number}" / "stack.nii.gz", brain(number))
    return ["brains"], ["mouse1-stack", "mouse2-stack"]


def links_beside_channels(folder):
    for number, laser in enumerate(("Ex_488", "Ex_561")):
        write_file(folder / laser / "mouse1.nii.gz", brain(1, gain=1 + number))
        (folder / f"C{number:02d}").symlink_to(laser)
    return ["C00", "C01"], ["mouse1"]


@pytest.mark.usefixtures("no_zarr")
@pytest.mark.parametrize("layout", [a_folder_of_files_with_one_name, links_beside_channels])
def test_the_next_command_finds_the_same_brains(layout, tmp_path, folders, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given, names = layout(tmp_path)
    brains, _ = find_brains([tmp_path / source for source in given], SETTINGS)
    assert [of.name for of in brains] == names
    sources = [Path(source) for source in given]
    for number in (1, 2):
        assert propose(sources, Path("cubes"), SETTINGS).round == number
        command = shlex.split(_proposing(standing(510, folders, tmp_path / "cubes"), "m"))
        sources = [Path(word) for word in command[2 : command.index("-n")]]
        assert sources == [tmp_path / source for source in given]
        assert find_brains(sources, SETTINGS)[0] == brains
    rounds = read_json(tmp_path / "cubes" / "selma_cubes.json")["rounds"]
    assert [list(of_round["brains"]) for of_round in rounds] == [names] * 2


@pytest.mark.usefixtures("no_zarr")
def test_an_interrupted_round_goes_on_from_other_sources_of_the_same_brains(tmp_path, monkeypatch):
    write_file(tmp_path / "brains" / "mouse.nii.gz", brain(1))

    def killed(*_):
        raise Killed

    monkeypatch.setattr(proposal, "write_cube", killed)
    with pytest.raises(Killed):
        propose([tmp_path / "brains"], tmp_path / "cubes", SETTINGS)
    monkeypatch.undo()
    result = propose([tmp_path / "brains" / "mouse.nii.gz"], tmp_path / "cubes", SETTINGS)
    assert (result.round, len(result.cubes)) == (1, 2)


@pytest.mark.usefixtures("no_zarr")
def test_a_place_is_not_proposed_again_in_another_channel(two_brains, tmp_path):
    """Rounds of single channels, as earlier versions recorded them too, are of one brain."""
    mouse = two_brains / "mouse0"
    first = propose([mouse / "C00"], tmp_path / "cubes", SETTINGS)
    second = propose([mouse / "C01"], tmp_path / "cubes", SETTINGS)
    third = propose([mouse], tmp_path / "cubes", ProposalSettings(**{**vars(SETTINGS), "channels": (1,)}))
    assert [r.cubes[0]["brain"] for r in (first, second, third)] == ["C00", "C01", "mouse0"]
    boxes = [(cube["start_zyx"], cube["shape_zyx"]) for r in (first, second, third) for cube in r.cubes]
    assert len(boxes) == 6
    for number, (start, shape) in enumerate(boxes):
        for other, extent in boxes[:number]:
            assert any(
                s > o + e or o > s + n for s, n, o, e in zip(start, shape, other, extent, strict=True)
            )  # apart along an axis
    with pytest.raises(SelmaError, match="cube_0001 has 1 channel, and cubes would now have 2; choose the same"):
        propose([mouse], tmp_path / "cubes", SETTINGS)


@pytest.mark.parametrize("ends", [("C00", "C01"), ("x_C00.tif", "x_C01.tif")])
def test_no_fold_parts_channels_that_were_proposed_as_brains(ends, tmp_path, folders, rng):
    """As in folders of cubes that earlier versions wrote: one path for each cube, and a brain for each channel."""
    source = tmp_path / "cubes"
    names = write_cubes(source, rng, ["a", "b", "c"])
    for name, end in zip(names, (*ends, "y.tif"), strict=True):
        content = read_json(source / name / "cube.json")
        write_json(source / name / "cube.json", {**content, "path": f"/brains/mouse/{end}"})
    manifest = convert_cubes(source, AnnotatedSettings(), CubeSettings(as_is=tuple(names)), folders)
    assert manifest["groups"]["cube_0001"] == manifest["groups"]["cube_0002"] != manifest["groups"]["cube_0003"]
    assert manifest["folds"]["cube_0001"] == manifest["folds"]["cube_0002"] != manifest["folds"]["cube_0003"]


class Killed(Exception):
    """Stands for the end of a process."""


def test_a_change_of_any_channel_is_noticed(tmp_path, monkeypatch):
    for channel in range(2):
        write_file(tmp_path / "brains" / f"mouse_C{channel:02d}.nii.gz", brain(channel))

    def killed(*_):
        raise Killed

    monkeypatch.setattr(proposal, "write_cube", killed)
    with pytest.raises(Killed):
        propose([tmp_path / "brains"], tmp_path / "cubes", SETTINGS)
    write_file(tmp_path / "brains" / "mouse_C01.nii.gz", brain(3))
    with pytest.raises(SelmaError, match="holds a round that was interrupted, with mouse "):
        propose([tmp_path / "brains"], tmp_path / "cubes", SETTINGS)


@pytest.mark.usefixtures("no_zarr")
def test_a_model_reads_channels_from_their_files(tmp_path, rng):
    image = texture(rng, (24, 28, 33), channels=2)
    files = [
        write_image(tmp_path / "brains" / f"mouse_ch{n}.nii.gz", of, (0.001, 0.001, 0.001))
        for n, of in enumerate(image)
    ]
    model = write_model(tmp_path / "model", plans(), channels=2)
    whole = tuple(slice(0, n) for n in image.shape[1:])
    given = {"spacing_um_zyx": (1.0, 1.0, 1.0)}
    (opened,), _ = open_brains([tmp_path / "brains"], ProposalSettings(**given))
    (turned,), _ = open_brains([tmp_path / "brains"], ProposalSettings(**given, channels=(1, 0)))
    computed = ModelPrediction(model, "cpu")
    for of_brain, voxels in ((opened, image), (turned, image[::-1])):
        labels = stock(model, voxels, (1.0, 1.0, 1.0))
        assert np.mean(first_answer(computed, of_brain, whole).labels == labels) > 0.999
    settings = VolumePrediction(
        inputs=tuple(files),
        output=tmp_path / "out.ome.zarr",
        model=model,
        probabilities=True,
        tissue_only=False,
        **given,
    )
    predict_volume(settings, Execution(device="cpu"))
    stored = StoredPrediction({opened.name: tmp_path / "out_probabilities.ome.zarr"})
    from_files, from_model = (first_answer(source, opened, whole) for source in (stored, computed))
    np.testing.assert_array_equal(from_files.labels, from_model.labels)
    np.testing.assert_allclose(from_files.entropy, from_model.entropy, atol=0.02)
