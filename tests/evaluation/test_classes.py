"""`nnunet-selma evaluate --per-class` against the same command on masks of one class, made by hand."""

import csv
import json

import numpy as np
import pytest

from nnunet_selma import cli
from nnunet_selma.errors import SelmaError
from nnunet_selma.evaluation import EvaluationSettings, evaluate, read_evaluation, write_evaluation
from nnunet_selma.volumes import open_volume
from nnunet_selma.volumes.labels import label_values
from tests.conftest import write_image

SHAPE = (12, 14, 16)
CASES = ("cfos_neuron_1", "cfos_neuron_2", "blood_vessel_1")
METHODS = ("truth", "shifted", "noisy")


def blobs(rng, values):
    labels = np.zeros(SHAPE, np.uint8)
    for value in values:
        for z, y, x in rng.integers(0, 9, (3, 3)):
            labels[z : z + 3, y : y + 4, x : x + 5] = value
    return labels


@pytest.fixture
def data(tmp_path, rng):
    """Three cases of the classes 1, 2 and 5, the last of which one case lacks, and three methods."""
    for case in CASES:
        truth = blobs(rng, (1, 2) if case == "cfos_neuron_2" else (1, 2, 5))
        noisy = np.where(rng.random(SHAPE) < 0.1, rng.choice([0, 1, 2, 5], SHAPE), truth).astype(np.uint8)
        for side, labels in (("truth", truth), ("shifted", np.roll(truth, 1, 2)), ("noisy", noisy)):
            write_image(tmp_path / side / f"{case}.nii.gz", labels)
    return tmp_path


def describe(folder, **labels):
    folder.mkdir(exist_ok=True)
    (folder / "dataset.json").write_text(json.dumps({"labels": {"background": 0, **labels}}))


def run(data, output, *arguments, methods=METHODS[1:]):
    arguments = ["--edition", "2024", "--workers", "1", "--no-sheets", "-o", str(data / output), *arguments]
    predictions = [str(data / method) for method in methods]
    return cli.main(["evaluate", "--reference", str(data / "truth"), "--prediction", *predictions, *arguments])


def binarised(data, values):
    """The same files with these values as 1 and all others as 0."""
    folder = data / f"only_{values}"
    for side in METHODS:
        for case in CASES:
            labels = open_volume(data / side / f"{case}.nii.gz").read()
            write_image(folder / side / f"{case}.nii.gz", np.isin(labels, values).astype(np.uint8))
    return folder


def rows(folder):
    with (folder / "cases.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def content(folder):
    return json.loads((folder / "evaluation.json").read_text())


@pytest.mark.parametrize("names", [{"1": 1, "2": 2, "5": 5}, {"soma": 1, "cell": [1, 2], "vessel": 5}], ids=str)
def test_each_class_has_the_scores_of_its_mask(names, data, capsys):
    if "soma" in names:
        describe(data / "shifted", **names)
    more = ("--against", "noisy", "--objects", "iou:0.3", "--hd95", "--corrected", "--spacing", "1,1,1")
    assert run(data, "out", "--per-class", *more) == 0
    page = capsys.readouterr().out
    together, table = content(data / "out"), rows(data / "out")
    assert len(table) == len(together["cases"]) == 2 * len(CASES) * len(names)
    means = {}
    for name, values in names.items():
        folder = binarised(data, values)
        assert run(folder, "out", *more) == 0
        alone = content(folder / "out")
        of_class = [case for case in together["cases"] if case["label"] == name]
        parts = ("method", "case", "structure", "official", "corrected", "extra")
        assert [[c[part] for part in parts] for c in of_class] == [[c[part] for part in parts] for c in alone["cases"]]
        of_class = [{**row, "label": ""} for row in together["against"]["shifted"] if row["label"] == name]
        assert of_class == alone["against"]["shifted"]
        in_table = [
            {key: row[key] for key in row if key not in ("class", "warnings")} for row in table if row["class"] == name
        ]
        assert in_table == [{key: row[key] for key in row if key != "warnings"} for row in rows(folder / "out")]
        capsys.readouterr()
        for case in alone["cases"]:
            kind = "tree-like" if "vessel" in case["case"] else "spot-like"
            means.setdefault((case["method"], kind), []).append(case["official"]["dice"])
        for text in (page, (data / "out/tables.md").read_text(), (data / "out/tables.tex").read_text()):
            assert f"c-Fos+ cell, {name}" in text
            assert f"blood vessel, {name}" in text
    for (method, kind), values in means.items():
        assert together["means"][method][kind]["dice"] == pytest.approx(np.mean(values))
    places = {
        method: [ranks["spot-like"]["dice"], ranks["tree-like"]["dice"]]
        for method, ranks in together["ranks"]["metrics"].items()
    }
    for place, kind in enumerate(("spot-like", "tree-like")):
        best = max(("shifted", "noisy"), key=lambda method: np.mean(means[method, kind]))
        assert places[best][place] == 1
    assert read_evaluation(data / "out").markdown() == (data / "out/tables.md").read_text()


def test_without_the_option_every_value_is_foreground(data):
    assert run(data, "out") == 0
    folder = binarised(data, (1, 2, 5))
    assert run(folder, "out") == 0
    parts = ("method", "case", "structure", "official", "corrected", "extra", "label")
    alone, together = ([[c[part] for part in parts] for c in content(f / "out")["cases"]] for f in (folder, data))
    assert alone == together
    assert "class" not in rows(data / "out")[0]


def test_scores_of_classes_are_kept(data, monkeypatch):
    assert run(data, "out", "--per-class") == 0
    before = (data / "out/tables.md").read_text()
    assert len(list((data / "out/scores").rglob("*_class_*.json"))) == 18
    monkeypatch.setattr("nnunet_selma.evaluation.scoring._score", None)
    assert run(data, "out", "--per-class") == 0
    assert (data / "out/tables.md").read_text() == before


def test_the_classes_of_an_ome_zarr_have_its_names(data):
    pytest.importorskip("zarr")
    import zarr

    from tests.volumes.test_segmented import write_labels

    labels = label_values(open_volume(data / "truth/cfos_neuron_1.nii.gz").read(), data)
    path = write_labels(data / "cfos_neuron_1.ome.zarr", labels, 3)
    group = zarr.open_group(str(path / "labels/segmentation"))
    properties = [{"label-value": 1, "class": "soma"}, {"label-value": 5, "class": "soma"}]
    group.attrs["ome"] = {**group.attrs["ome"], "image-label": {"properties": properties}}
    settings = EvaluationSettings(year=2024, per_class=True)
    evaluation = evaluate(data / "truth/cfos_neuron_1.nii.gz", {"zarr": path}, settings)
    assert [score.label for score in evaluation.scores] == ["soma", "2"]
    assert [score.official["dice"] for score in evaluation.scores] == [1.0, 1.0]
    write_evaluation(evaluation, data / "out")
    assert (data / "out/scores.png").is_file()


@pytest.mark.parametrize(("more", "number"), [(["--per-class"], 12), ([], 6)])
def test_voxels_that_nobody_annotated_are_background_on_both_sides(more, number, data):
    """The same files with these voxels set to 0 by hand are scored alike."""
    describe(data / "truth", soma=1, cell=2, ignore=5)
    by_hand = data / "by_hand"
    for case in CASES:
        truth, *predictions = (open_volume(data / side / f"{case}.nii.gz").read() for side in METHODS)
        for side, labels in zip(METHODS, (truth, *predictions), strict=True):
            write_image(data / side / f"{case}.nii.gz", np.where(labels == 5, 1, labels) if side != "truth" else labels)
            cut = np.where(labels == 5, 1, labels) * (truth != 5)
            write_image(by_hand / side / f"{case}.nii.gz", cut.astype(np.uint8))
    describe(by_hand / "truth", soma=1, cell=2)
    for folder in (data, by_hand):
        assert run(folder, "out", *more) == 0
    parts = ("method", "case", "label", "official")
    alone, together = ([[c[part] for part in parts] for c in content(f / "out")["cases"]] for f in (by_hand, data))
    assert alone == together
    assert len(alone) == number


@pytest.mark.parametrize("more", [["--per-class"], []])
def test_the_ignored_value_of_predictions_is_not_applied(more, data):
    """A model's dataset.json says nothing about ground truths, in which the value may be an object."""
    assert run(data, "before") == 0
    describe(data / "shifted", first=1, second=2, ignore=5)
    if more:
        describe(data / "truth", first=1, second=[2, 5])
        describe(data / "shifted", first=1, second=[2, 5], ignore=7)
    assert run(data, "after", *more) == 0
    after = content(data / "after")
    assert [w for w in after["warnings"] if "it is not applied" in w and "shifted/dataset.json" in w]
    if not more:
        scores = [[case["official"] for case in content(data / name)["cases"]] for name in ("before", "after")]
        assert scores[0] == scores[1]


def test_a_damaged_description_stops_only_what_needs_it(data, capsys):
    for side in ("truth", "shifted"):
        (data / side / "dataset.json").write_text("{")
    assert run(data, "out") == 0
    assert any("truth/dataset.json: is no valid JSON" in warning for warning in content(data / "out")["warnings"])
    assert run(data, "classes", "--per-class") == 2
    assert "dataset.json: is no valid JSON" in capsys.readouterr().err


def other_classes(data):
    describe(data / "truth", soma=1, cell=2, vessel=5)
    describe(data / "shifted", cell=1, soma=2, vessel=5)


def unknown_value(data):
    describe(data / "truth", soma=1, cell=2)


def equal_values(data):
    describe(data / "truth", soma=1, cell=[1, 2], whole=[2, 1], vessel=5)


def empty_files(data):
    for path in data.rglob("*.nii.gz"):
        write_image(path, np.zeros(SHAPE, np.uint8))


def instances(data):
    write_image(
        data / "noisy/cfos_neuron_1.nii.gz", np.arange(np.prod(SHAPE) // 8).repeat(8).reshape(SHAPE).astype(np.uint16)
    )


def image(data):
    write_image(data / "noisy/cfos_neuron_1.nii.gz", np.random.default_rng(0).poisson(900, SHAPE).astype(np.uint16))


def old_description(data):
    (data / "truth/dataset.json").write_text(json.dumps({"labels": {"0": "background", "1": "soma"}}))


@pytest.mark.parametrize(
    ("harm", "sentence"),
    [
        (other_classes, "shifted/dataset.json: names other classes or values (cell 1, soma 2, vessel 5) than"),
        (unknown_value, "holds the values 5, which dataset.json gives to no class"),
        (equal_values, "dataset.json: gives the values 1, 2 to cell and to whole; give each class values of its own"),
        (empty_files, "no file holds a value above 0"),
        (instances, "noisy/cfos_neuron_1.nii.gz: holds 336 values, as files of instances do; classes are 64 at most"),
        (image, "noisy/cfos_neuron_1.nii.gz: holds"),
        (old_description, "truth/dataset.json: its labels are not those of nnU-Net v2"),
    ],
)
def test_what_has_no_classes_ends_in_a_sentence(harm, sentence, data, capsys):
    harm(data)
    assert run(data, "out", "--per-class") == 2
    assert sentence in capsys.readouterr().err.replace("\n", " ")


def test_a_foreground_value_is_refused(data):
    with pytest.raises(SelmaError, match="--per-class scores every class; leave --foreground out"):
        evaluate(data / "truth", {"a": data / "noisy"}, EvaluationSettings(year=2024, per_class=True, foreground=1))
