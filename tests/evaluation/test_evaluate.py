"""`nnunet-selma evaluate` on files: what it writes, and what it says to bad input."""

import csv
import json
import os
import shutil

import nibabel as nib
import numpy as np
import pytest
import tifffile
from nibabel.orientations import axcodes2ornt, ornt_transform
from scipy import ndimage

from nnunet_selma import cli
from nnunet_selma.evaluation import EvaluationSettings, evaluate, read_evaluation
from nnunet_selma.evaluation.cases import find_cases
from nnunet_selma.evaluation.metrics.mistakes import Mistake, mistakes
from nnunet_selma.evaluation.metrics.pair import Pair
from nnunet_selma.volumes import open_volume
from nnunet_selma.volumes.labels import read_mask
from tests.artists import saved_figures, titles
from tests.conftest import write_image
from tests.volumes.microscope_files import write_bdv, write_imaris

SHAPE = (14, 16, 18)


def blobs(rng):
    mask = np.zeros(SHAPE, np.uint8)
    for z, y, x in rng.integers(1, 11, (4, 3)):
        mask[z : z + 3, y : y + 3, x : x + 5] = 1
    return mask


@pytest.fixture
def data(tmp_path, rng):
    """Three cases: their truth, a prediction shifted by a voxel, an eroded one, and raw images."""
    for case in ("cfos_neuron_1", "cfos_neuron_2", "blood_vessel_1"):
        truth = blobs(rng)
        write_image(tmp_path / f"truth/{case}.nii.gz", truth)
        write_image(tmp_path / f"shifted/{case}.nii.gz", np.roll(truth, 1, 2))
        write_image(tmp_path / f"eroded/{case}.nii.gz", ndimage.binary_erosion(truth).astype(np.uint8))
        write_image(tmp_path / f"raw/{case}_0000.nii.gz", rng.integers(0, 900, SHAPE, dtype=np.uint16))
    (tmp_path / "shifted/dataset.json").write_text("{}")  # as nnU-Net leaves it
    return tmp_path


def run(data, *arguments, prediction="shifted", edition="2024", reference="truth"):
    return cli.main(
        [
            "evaluate",
            "--reference",
            str(data / reference),
            "--prediction",
            *(str(data / p) for p in prediction.split()),
            "--edition",
            edition,
            "--workers",
            "1",
            *arguments,
        ]
    )


def cases(folder):
    with (folder / "cases.csv").open(encoding="utf-8") as file:
        return {(row["method"], row["case"]): row for row in csv.DictReader(file)}


@pytest.mark.parametrize("edition", ["2024", "2026"])
def test_a_prediction_equal_to_the_truth_is_perfect(data, edition, capsys):
    assert run(data, "-o", str(data / "out"), "--corrected", "--no-sheets", prediction="truth", edition=edition) == 0
    for row in cases(data / "out").values():
        for key, value in row.items():
            if "error" in key and value:
                assert float(value) == 0
            elif key in ("dice", "cldice", "cldice_corrected", "panoptic_quality") and value:
                assert float(value) == pytest.approx(1)
    assert "| truth | 100.00 ±" in capsys.readouterr().out


def test_everything_is_written(data, capsys):
    out = data / "out"
    code = run(
        data,
        "-o",
        str(out),
        "--images",
        str(data / "raw"),
        "--corrected",
        "--against",
        str(data / "eroded"),
        "--objects",
        "iou:0.3",
        "--hd95",
        "--size",
        prediction="truth shifted",
    )
    assert code == 0
    content = json.loads((out / "evaluation.json").read_text())
    assert content["settings"]["year"] == 2024
    assert content["settings"]["extras"]["objects"] == {"kind": "iou", "threshold": 0.3}
    assert len(content["cases"]) == 9
    assert content["predictions"]["shifted"] == str(data / "shifted")
    assert "Objects match by iou:0.3." in (out / "tables.md").read_text()
    assert next(iter(content["ranks"]["overall"])) == "truth"
    assert set(content["against"]) == {"truth", "shifted"}
    assert (out / "tables.md").read_text() == capsys.readouterr().out.split("\ntables and pictures")[0]
    assert read_evaluation(out).markdown() == (out / "tables.md").read_text()
    assert r"\begin{tabular}" in (out / "tables.tex").read_text()
    assert {path.name for path in out.rglob("*.png")} == {
        "scores.png",
        "ranks.png",
        *(f"{c}.png" for _, c in cases(out)),
    }
    row = cases(out)["shifted", "blood_vessel_1"]
    assert float(row["length_um_reference"]) == float(row["length_um_prediction"]) > 0
    assert float(row["hd95_um"]) == pytest.approx(1.625)  # a voxel along x, by the structure table
    assert row["object_f1"] == ""
    assert cases(out)["shifted", "cfos_neuron_1"]["object_f1"] != ""


def test_several_processes_find_the_same(data):
    settings = EvaluationSettings(year=2026)
    folders = {name: data / name for name in ("shifted", "eroded")}
    one, two = (evaluate(data / "truth", folders, settings, workers=workers) for workers in (1, 2))
    assert repr(one.scores) == repr(two.scores)  # NaN is not equal to itself
    assert [(s.method, s.case) for s in one.scores[:3]] == [
        ("shifted", "blood_vessel_1"),
        ("shifted", "cfos_neuron_1"),
        ("shifted", "cfos_neuron_2"),
    ]


def test_a_second_run_goes_on_from_the_scores_of_the_first(data, monkeypatch):
    from nnunet_selma.evaluation import scoring

    out = str(data / "out")
    assert run(data, "-o", out) == 0
    first = cases(data / "out")
    scored = []
    score = scoring._score
    monkeypatch.setattr(scoring, "_score", lambda task, m, r: scored.append(task.cases[m].name) or score(task, m, r))
    assert run(data, "-o", out) == 0
    assert scored == []
    assert cases(data / "out") == first
    (data / "out/sheets/shifted/cfos_neuron_1.png").unlink()
    write_image(data / "shifted/cfos_neuron_2.nii.gz", np.ones(SHAPE, np.uint8))
    os.utime(data / "shifted/cfos_neuron_2.nii.gz", ns=(1, 1))
    assert run(data, "-o", out) == 0
    assert scored == ["cfos_neuron_1", "cfos_neuron_2"]
    scored.clear()
    assert run(data, "-o", out, edition="2026") == 0
    assert len(scored) == 3


def test_nan_is_null_in_json_and_named_in_the_table(data, capsys):
    for side in ("truth", "shifted"):
        write_image(data / side / "cfos_neuron_1.nii.gz", np.zeros(SHAPE, np.uint8))
    assert run(data, "-o", str(data / "out"), "--corrected", edition="2026") == 0
    out = capsys.readouterr().out
    assert "NaN (1 of 2 NaN)" in out
    assert "shifted: panoptic_quality has no value (NaN) in cfos_neuron_1." in out
    content = json.loads((data / "out/evaluation.json").read_text())
    (case,) = [case for case in content["cases"] if case["case"] == "cfos_neuron_1"]
    assert case["official"]["panoptic_quality"] is None
    assert case["corrected"]["panoptic_quality"] == 1.0
    assert cases(data / "out")["shifted", "cfos_neuron_1"]["panoptic_quality"] == "nan"
    # and a run that goes on reads it back
    assert run(data, "-o", str(data / "out"), edition="2026") == 0
    assert cases(data / "out")["shifted", "cfos_neuron_1"]["panoptic_quality"] == "nan"


def test_nifti_is_compared_with_mha_and_tiff(data, tmp_path):
    settings = EvaluationSettings(year=2024)
    expected = evaluate(data / "truth", {"p": data / "shifted"}, settings).scores
    for number, path in enumerate(sorted((data / "shifted").glob("*.nii.gz"))):
        mask = read_mask(open_volume(path)).mask
        name = path.name.removesuffix(".nii.gz")
        if number:
            write_image(tmp_path / f"other/{name}.mha", mask.astype(np.uint8))
        else:
            (tmp_path / "other").mkdir()
            tifffile.imwrite(tmp_path / f"other/{name}.tif", mask.astype(np.uint8), photometric="minisblack")
    assert repr(evaluate(data / "truth", {"p": tmp_path / "other"}, settings).scores) == repr(expected)


def test_two_files_are_a_pair_whatever_their_names(data, capsys):
    code = run(data, reference="truth/cfos_neuron_1.nii.gz", prediction="shifted/blood_vessel_1.nii.gz")
    assert code == 0
    assert "(c-Fos+ cell 1)" in capsys.readouterr().out


def test_a_truth_is_computed_once_for_all_methods(data, monkeypatch):
    from nnunet_selma.evaluation.metrics import pair

    thinned = []
    skeleton = pair.skeleton
    monkeypatch.setattr(pair, "skeleton", lambda labels: thinned.append(1) or skeleton(labels))
    assert run(data, prediction="shifted eroded truth") == 0
    assert len(thinned) == 4  # of the one vessel: its truth, and three predictions


def test_volumes_in_folders_are_one_case_and_noticed_when_they_change(data, capsys):
    mask = read_mask(open_volume(data / "shifted/blood_vessel_1.nii.gz")).mask
    (data / "slices").mkdir()
    for z, plane in enumerate(mask.astype(np.uint8)):
        tifffile.imwrite(data / f"slices/Z{z:03d}.tif", plane, photometric="minisblack")
    arguments = ["-o", str(data / "out"), "--structure", "blood_vessel"]
    for expected in (80, 0):
        assert run(data, *arguments, reference="truth/blood_vessel_1.nii.gz", prediction="slices") == 0
        assert f"| slices | {expected}.00" in capsys.readouterr().out
        for file in (data / "slices").iterdir():  # the folder's own time stays
            tifffile.imwrite(file, np.zeros(SHAPE[1:], np.uint8), photometric="minisblack")


def test_ome_zarr_is_compared_with_nifti(data, capsys):
    zarr = pytest.importorskip("zarr")
    mask = read_mask(open_volume(data / "shifted/blood_vessel_1.nii.gz")).mask
    array = zarr.create_array(data / "store.zarr", shape=mask.shape, chunks=(8, 8, 8), dtype="uint8")
    array[:] = mask.astype(np.uint8)
    code = run(data, reference="truth/blood_vessel_1.nii.gz", prediction="store.zarr")
    assert code == 0
    assert "| store | 80.00" in capsys.readouterr().out


@pytest.mark.parametrize("other", ["shifted", "{}/shifted", "other={}/shifted", "shifted={}/eroded/../shifted"])
def test_a_method_is_compared_with_one_that_is_there_by_name_or_by_folder(data, other, capsys):
    assert run(data, "--against", other.format(data), prediction="eroded shifted") == 0
    out = capsys.readouterr().out
    assert "## eroded against shifted" in out
    assert "## shifted against" not in out
    assert "| 3 |" not in out  # no third method


def test_images_that_do_not_fit_are_left_out_of_the_pictures(data, capsys, monkeypatch):
    saved = saved_figures(monkeypatch)
    write_image(data / "raw/cfos_neuron_1_0000.nii.gz", np.ones((3, 16, 18), np.uint16))
    (data / "raw/cfos_neuron_2_0000.nii.gz").unlink()
    assert run(data, "-o", str(data / "out"), "--images", str(data / "raw")) == 0
    out = capsys.readouterr().out
    assert "of the labels' shape are not shown: cfos_neuron_1" in out
    assert "no image, so none in the picture, of cfos_neuron_2" in out
    raw = {figure.get_suptitle().split()[0]: titles(figure)[0] == "raw" for figure in saved if figure.get_suptitle()}
    assert raw == {"blood_vessel_1": True, "cfos_neuron_1": False, "cfos_neuron_2": False}


def test_what_fits_no_structure_is_said(data, capsys):
    assert run(data, "--structure", "blood_vessel", "--objects", "overlap") == 0
    assert "--objects: nothing to measure" in capsys.readouterr().out
    # a protein has no voxel size, and no length to measure with it
    assert run(data, "--structure", "protein", "--size") == 0
    assert "--size: nothing to measure" in capsys.readouterr().out


def test_names_of_2024_are_understood(data):
    for side in ("truth", "shifted"):
        (data / side / "cfos_neuron_1.nii.gz").rename(data / side / "patch_cfos_001.nii.gz")
    found = evaluate(data / "truth", {"p": data / "shifted"}, EvaluationSettings(year=2024)).scores
    assert {score.case: score.structure for score in found}["patch_cfos_001"] == "cfos_neuron"


def test_scores_of_another_form_are_computed_anew(data):
    assert run(data, "-o", str(data / "out")) == 0
    first = cases(data / "out")
    for kept in (data / "out/scores/shifted").iterdir():
        kept.write_text('{"of": "another version"}')
    assert run(data, "-o", str(data / "out")) == 0
    assert cases(data / "out") == first


def other_shape(data):
    write_image(data / "shifted/cfos_neuron_1.nii.gz", np.ones((14, 16, 17), np.uint8))


def missing_prediction(data):
    (data / "shifted/cfos_neuron_1.nii.gz").unlink()


def missing_reference(data):
    (data / "truth/cfos_neuron_1.nii.gz").unlink()


def probabilities(data):
    write_image(
        data / "shifted/cfos_neuron_1.nii.gz", np.linspace(0, 1, np.prod(SHAPE), dtype=np.float32).reshape(SHAPE)
    )


def not_a_number(data):
    write_image(data / "shifted/cfos_neuron_1.nii.gz", np.full(SHAPE, np.nan, np.float32))


def only_probability_files(data):
    shutil.rmtree(data / "shifted")
    (data / "shifted").mkdir()
    np.savez(data / "shifted/cfos_neuron_1.npz", probabilities=np.ones(3))


def unknown_structure(data):
    for side in ("truth", "shifted"):
        (data / side / "cfos_neuron_1.nii.gz").rename(data / side / "kidney_1.nii.gz")


def twice(data):
    write_image(data / "shifted/cfos_neuron_1.mha", np.ones(SHAPE, np.uint8))


def nothing(data):
    shutil.rmtree(data / "shifted")


def damaged(data):
    path = data / "shifted/cfos_neuron_1.nii.gz"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    ("harm", "sentence"),
    [
        (other_shape, "cfos_neuron_1 (prediction 14×16×17, reference 14×16×18)"),
        (missing_prediction, "shifted: lacks 1 of the cases that another side has: cfos_neuron_1. --allow-missing"),
        (missing_reference, "truth: lacks 1 of the cases that another side has: cfos_neuron_1. --allow-missing"),
        (probabilities, "cfos_neuron_1.nii.gz: holds fractions (0.143 to 0.786), as images and probabilities do"),
        (not_a_number, "cfos_neuron_1.nii.gz: holds NaN"),
        (only_probability_files, "holds nnU-Net's probabilities (.npz)"),
        (unknown_structure, "names that begin with no known structure: kidney_1. Say what they show with --structure"),
        (twice, "are one case; remove one of them"),
        (nothing, "shifted: there is no such file or folder"),
        (damaged, "cfos_neuron_1.nii.gz: cannot be read"),
    ],
)
def test_bad_input_ends_in_a_sentence(data, harm, sentence, capsys):
    harm(data)
    assert run(data, "-o", str(data / "out")) == 2
    said = capsys.readouterr().err
    assert sentence in said.replace("\n", " ")
    assert "Traceback" not in said
    assert not (data / "out/evaluation.json").exists()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--edition", "2025"], "the rules of SELMA3D 2025 cannot be followed"),
        (["--objects", "nearest"], "matching rule 'nearest'"),
        (["--structure", "kidney"], "kidney: is no structure of SELMA3D"),
        (["--against", "shifted=truth"], "two methods are called shifted"),
        (["--against", "shifted"], "there is no other method to compare with it"),
        (["--images", "raw"], "--images is for the pictures of the cases: give -o"),
        (["--against", "..=truth"], "before = stands the name of the method"),
    ],
)
def test_bad_arguments_end_in_a_sentence(data, arguments, sentence, capsys):
    assert run(data, *arguments) == 2
    assert sentence in capsys.readouterr().err


def test_distances_need_a_voxel_size(data, capsys):
    arguments = ["--structure", "gutnerve", "--hd95"]
    assert run(data, *arguments) == 2
    assert "give --spacing Z,Y,X" in capsys.readouterr().err
    assert run(data, *arguments, "--spacing", "2,1,1") == 0


@pytest.mark.parametrize("harm", [missing_prediction, missing_reference])
def test_what_is_missing_is_scored_as_empty_or_left_out(data, harm, capsys):
    harm(data)
    assert run(data, "-o", str(data / "empty"), "--allow-missing") == 0
    assert "has, scored as empty: cfos_neuron_1" in capsys.readouterr().out
    found = cases(data / "empty")
    assert len(found) == 3
    assert float(found["shifted", "cfos_neuron_1"]["dice"]) == 0
    assert run(data, "-o", str(data / "rest"), "--leave-out-missing") == 0
    assert "left out: cfos_neuron_1" in capsys.readouterr().out
    assert len(cases(data / "rest")) == 2


def test_methods_are_compared_on_the_cases_that_all_have(data, capsys):
    missing_prediction(data)
    assert run(data, "-o", str(data / "out"), "--leave-out-missing", prediction="eroded shifted") == 0
    out = capsys.readouterr().out
    assert "shifted: lacks 1 of the cases that another side has, left out: cfos_neuron_1" in out
    assert {case for _, case in cases(data / "out")} == {"blood_vessel_1", "cfos_neuron_2"}
    assert len(cases(data / "out")) == 4
    assert run(data, "-o", str(data / "all"), "--allow-missing", prediction="eroded shifted") == 0
    found = cases(data / "all")
    assert len(found) == 6
    assert float(found["shifted", "cfos_neuron_1"]["dice"]) == 0 < float(found["eroded", "cfos_neuron_1"]["dice"])


def test_a_stray_slice_makes_no_stack_of_a_folder(data, capsys):
    tifffile.imwrite(data / "shifted/overview.tif", np.zeros((4, 5), np.uint8), photometric="minisblack")
    assert run(data) == 2
    assert "truth: lacks 1 of the cases that another side has: overview" in capsys.readouterr().err


def test_a_name_that_says_otherwise_is_warned_of(data, capsys):
    assert run(data, "--structure", "cfos_neuron") == 0
    assert (
        "taken for c-Fos+ cell, as --structure says, though the name says otherwise: blood_vessel_1"
        in capsys.readouterr().out
    )


def test_a_picture_is_that_of_the_scores(data):
    out, sheet = str(data / "out"), data / "out/sheets/shifted/cfos_neuron_1.png"
    assert run(data, "-o", out) == 0
    before = sheet.read_bytes()
    write_image(data / "shifted/cfos_neuron_1.nii.gz", np.ones(SHAPE, np.uint8))
    assert run(data, "-o", out, "--no-sheets") == 0
    assert run(data, "-o", out) == 0
    assert sheet.read_bytes() != before
    assert run(data, "-o", out, edition="2026", prediction="shifted") == 0
    assert not list((data / "out").rglob("*.partial"))


def test_a_raw_image_that_cannot_be_read_costs_a_picture_and_no_table(data, capsys):
    raw = data / "raw/cfos_neuron_1_0000.nii.gz"
    raw.write_bytes(raw.read_bytes()[: raw.stat().st_size // 2])
    assert run(data, "-o", str(data / "out"), "--images", str(data / "raw")) == 0
    assert "(not shown in the picture)" in capsys.readouterr().out
    assert (data / "out/sheets/shifted/cfos_neuron_1.png").is_file()


def test_two_processes_write_what_one_writes(data):
    for name, workers in (("one", "1"), ("two", "2")):
        arguments = ["-o", str(data / name), "--corrected", "--workers", workers]
        assert run(data, *arguments, prediction="shifted eroded") == 0
    assert (data / "one/cases.csv").read_text() == (data / "two/cases.csv").read_text()
    sheets = [sorted(p.relative_to(data / n) for p in (data / n).rglob("*.png")) for n in ("one", "two")]
    assert sheets[0] == sheets[1]
    damaged(data)
    assert run(data, "-o", str(data / "three"), "--workers", "2") == 2


def test_metrics_without_any_value_are_drawn(data, monkeypatch):
    saved = saved_figures(monkeypatch)
    for side in ("truth", "shifted"):
        for case in ("cfos_neuron_1", "cfos_neuron_2", "blood_vessel_1"):
            write_image(data / side / f"{case}.nii.gz", np.zeros(SHAPE, np.uint8))
    assert run(data, "-o", str(data / "out"), "--no-sheets", edition="2026") == 0
    assert [text.get_text() for axis in saved[-1].axes for text in axis.texts] == ["1 NaN", "2 NaN"]  # clDice, PQ


def test_other_labels_are_counted_and_taken_for_foreground(data, capsys):
    assert run(data, "-o", str(data / "before")) == 0
    mask = read_mask(open_volume(data / "shifted/cfos_neuron_1.nii.gz")).mask
    values = mask * np.uint8(255)
    values[values > 0] = np.where(np.arange(mask.sum()) < 5, 95, 255)
    write_image(data / "shifted/cfos_neuron_1.nii.gz", values)
    assert run(data, "-o", str(data / "after")) == 0
    assert f"95 (5 voxels), 255 ({mask.sum() - 5} voxels); every value above 0 becomes 1" in capsys.readouterr().out
    before, after = (cases(data / name)["shifted", "cfos_neuron_1"] for name in ("before", "after"))
    assert (before["dice"], before["betti_0_error"]) == (after["dice"], after["betti_0_error"])


def test_another_geometry_is_warned_of_and_ignored(data, capsys):
    assert run(data, "-o", str(data / "before")) == 0
    mask = read_mask(open_volume(data / "shifted/cfos_neuron_1.nii.gz")).mask
    write_image(data / "shifted/cfos_neuron_1.nii.gz", mask.astype(np.uint8), spacing_zyx=(6.0, 2.0, 2.0))
    assert run(data, "-o", str(data / "after")) == 0
    assert (
        "another spacing (voxels of 6 × 2 × 2 instead of 1 × 1 × 1, z, y, x) in the header than in the reference's; the arrays are compared "
        "as they lie, as the official evaluators do: cfos_neuron_1"
    ) in capsys.readouterr().out
    assert (
        cases(data / "before")["shifted", "cfos_neuron_1"]["dice"]
        == cases(data / "after")["shifted", "cfos_neuron_1"]["dice"]
    )


def turned(source, target, codes):
    """Write a NIfTI with its axes in another order."""
    image = nib.load(source)
    turn = ornt_transform(nib.io_orientation(image.affine), axcodes2ornt(codes))
    target.parent.mkdir(parents=True, exist_ok=True)
    nib.save(image.as_reoriented(turn), target)


@pytest.mark.parametrize("codes", ["RAS", "SAR", "LPI"])
def test_a_prediction_in_another_orientation_is_turned(codes, data, capsys, monkeypatch):
    """Scores and pictures are those of the prediction and the image as they were before they were turned."""
    saved = saved_figures(monkeypatch)
    for path in sorted((data / "shifted").glob("*.nii.gz")):
        turned(path, data / "turned/shifted" / path.name, codes)
    for path in sorted((data / "raw").glob("*.nii.gz")):
        turned(path, data / "turned_raw" / path.name, codes)
    assert run(data, "-o", str(data / "before"), "--images", str(data / "raw")) == 0
    before, pictures = capsys.readouterr().out, [figure for figure in saved if figure.get_suptitle()]
    assert len(pictures) == 3
    saved.clear()
    arguments = ["-o", str(data / "after"), "--images", str(data / "turned_raw")]
    assert run(data, *arguments, prediction="turned/shifted") == 0
    after = capsys.readouterr().out
    assert "the predictions were turned to the references (" in after
    assert ": blood_vessel_1, cfos_neuron_1, cfos_neuron_2" in after
    assert cases(data / "before") == cases(data / "after")
    assert "turned" not in before
    for figure, other in zip(pictures, [figure for figure in saved if figure.get_suptitle()], strict=True):
        for axis, same in zip(figure.axes, other.axes, strict=True):
            for picture, again in zip(axis.images, same.images, strict=True):
                np.testing.assert_array_equal(picture.get_array(), again.get_array())


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("place", ["with its image", "without image", "label image", "reference"])
def test_the_labels_of_an_ome_zarr_are_judged(place, version, data, capsys):
    pytest.importorskip("zarr")
    from tests.volumes.test_segmented import write_labels

    truth, prediction = (
        read_mask(open_volume(data / side / "blood_vessel_1.nii.gz")).mask.astype(np.uint8)
        for side in ("truth", "shifted")
    )
    sides = {"reference": "truth/blood_vessel_1.nii.gz", "prediction": "blood_vessel_1.ome.zarr"}
    if place == "reference":
        sides = {
            "reference": "blood_vessel_1.ome.zarr/labels/segmentation",
            "prediction": "shifted/blood_vessel_1.nii.gz",
        }
    voxels = truth if place == "reference" else prediction
    write_labels(data / "blood_vessel_1.ome.zarr", voxels, version, image=place != "without image")
    if place == "label image":
        sides["prediction"] += "/labels/segmentation"
    assert run(data, **sides) == 0
    assert "blood_vessel_1 | 80.00" in capsys.readouterr().out.replace("segmentation |", "blood_vessel_1 |")


def test_an_image_in_place_of_a_prediction_is_refused(data, rng, capsys):
    zarr = pytest.importorskip("zarr")
    zarr.create_array(data / "cfos_neuron_1.zarr", data=rng.poisson(500, SHAPE).astype(np.uint16))
    assert run(data, reference="truth/cfos_neuron_1.nii.gz", prediction="cfos_neuron_1.zarr") == 2
    assert "values that change from voxel to voxel, as in an image; give labels instead" in capsys.readouterr().err


def test_the_objects_of_the_references_are_named(data, capsys):
    assert run(data, "-o", str(data / "before")) == 0
    for path in (data / "truth").glob("*.nii.gz"):
        write_image(path, open_volume(path).read() + np.uint8(1))  # ilastik numbers its classes from 1
    assert run(data, "-o", str(data / "after")) == 2
    assert "has no background of 0" in (message := capsys.readouterr().err)
    assert "--foreground VALUE" in message
    assert run(data, "-o", str(data / "after"), "--foreground", "2") == 0
    assert cases(data / "before") == cases(data / "after")
    assert read_evaluation(data / "after").settings.foreground == 2


def test_mistakes_are_told_apart():
    truth, prediction = np.zeros((1, 8, 24), bool), np.zeros((1, 8, 24), bool)
    truth[0, 1, 1:20] = True  # found in two pieces
    prediction[0, 1, 1:12] = prediction[0, 1, 14:20] = True
    truth[0, 4, 1:6] = truth[0, 4, 8:18] = True  # two objects found as one
    prediction[0, 4, 1:18] = True
    truth[0, 7, 1:4] = True
    prediction[0, 7, 10:12] = True
    shown = mistakes(Pair(prediction, truth))[0]
    assert (shown[1, 1:12] == Mistake.RIGHT).all()
    assert (shown[1, 12:14] == Mistake.MISSED).all()
    assert (shown[1, 14:20] == Mistake.SPLIT).all()
    assert (shown[4, 8:18] == Mistake.RIGHT).all()
    assert (shown[4, 1:6] == Mistake.MERGED).all()
    assert (shown[4, 6:8] == Mistake.EXTRA).all()
    assert (shown[7, 1:4] == Mistake.MISSED).all()
    assert (shown[7, 10:12] == Mistake.EXTRA).all()
    assert (shown > 0).sum() == (truth | prediction).sum()


@pytest.mark.parametrize("edition", ["2024", "2026"])
@pytest.mark.parametrize(("kind", "known"), [("spot", "cfos_neuron"), ("tree", "blood_vessel")])
def test_a_structure_of_a_laboratory_is_judged_by_its_kind(kind, known, edition, tmp_path, rng, capsys):
    """As a structure of the same kind that the table knows is; its results are read back."""
    truth = blobs(rng)
    write_image(tmp_path / "truth" / "m1.nii.gz", truth)
    write_image(tmp_path / "shifted" / "m1.nii.gz", np.roll(truth, 1, 2))
    assert run(tmp_path, edition=edition) == 2
    assert run(tmp_path, "--structure", "TH", edition=edition) == 2
    assert "say with --kind whether" in capsys.readouterr().err
    tables = []
    for structure in (["TH", "--kind", kind], [known]):
        folder = tmp_path / structure[0]
        assert run(tmp_path, "--structure", *structure, "-o", str(folder), edition=edition) == 0
        (score,) = read_evaluation(folder).scores
        tables.append(score.official)
    assert tables[0] == tables[1]
    assert "TH" in capsys.readouterr().out


@pytest.mark.parametrize("several", [{"times": 2}, {"channels": 2}, {"data_sets": 2}])
def test_several_images_in_a_file_end_in_a_sentence_without_options_of_others(several, data, capsys):
    mask = np.ones(SHAPE, np.uint8)
    for number in range(several.get("data_sets", 1)):
        write_imaris(
            data / "brain.ims",
            [mask] * several.get("channels", 1),
            spacing_um_zyx=(2.0, 2.0, 2.0),
            levels=1,
            times=several.get("times", 1),
            data_set=str(number or ""),
        )
    assert run(data, "--structure", "cfos_neuron", reference="truth/cfos_neuron_1.nii.gz", prediction="brain.ims") == 2
    said = capsys.readouterr().err
    assert "brain.ims: h" in said
    assert "save one of them" in said
    assert " --" not in said


def test_changed_voxels_beside_an_xml_are_scored_anew(data):
    h5py = pytest.importorskip("h5py")
    truth = open_volume(data / "truth" / "cfos_neuron_1.nii.gz").read()
    write_bdv(data / "brain.h5", [truth], spacing_um_zyx=(1.0, 1.0, 1.0), levels=1)
    arguments = ["--structure", "cfos_neuron", "--no-sheets", "-o", str(data / "out")]
    files = {"reference": "truth/cfos_neuron_1.nii.gz", "prediction": "brain.xml"}
    assert run(data, *arguments, **files) == 0
    first = cases(data / "out")
    with h5py.File(data / "brain.h5", "a") as file:
        file["t00000/s00/0/cells"][:7] = 0
    assert run(data, *arguments, **files) == 0
    assert cases(data / "out") != first


def test_a_volume_in_several_files_is_one_case(data):
    pytest.importorskip("h5py")
    truth = open_volume(data / "truth" / "cfos_neuron_1.nii.gz").read()
    (data / "bdv").mkdir()
    write_bdv(data / "bdv" / "cfos_neuron_1.h5", [truth], spacing_um_zyx=(1.0, 1.0, 1.0), levels=1)
    assert sorted(path.suffix for path in (data / "bdv").iterdir()) == [".h5", ".xml"]
    _, warnings = find_cases(data / "truth", {"a": data / "bdv"}, missing="leave out")
    cases, _ = find_cases(data / "bdv", {"a": data / "truth"}, missing="leave out")
    assert [case.reference for case in cases["a"]] == [data / "bdv" / "cfos_neuron_1.xml"]
    assert "lacks 2 of the cases" in warnings[0]
