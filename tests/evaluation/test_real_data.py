"""Both editions on real labels: against themselves, and against eroded, dilated and shifted copies, value by value as the official evaluators."""

import csv
from math import isnan

import numpy as np
import pytest
from scipy import ndimage

from benchmarks import official
from nnunet_selma import cli
from nnunet_selma.structures import find_structure
from nnunet_selma.volumes import open_volume, stem
from tests.conftest import write_image

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::RuntimeWarning")]

COPIES = {
    "itself": lambda mask: mask,
    "eroded": ndimage.binary_erosion,
    "dilated": ndimage.binary_dilation,
    "shifted": lambda mask: np.roll(mask, (1, 2), (1, 2)),
}
CROPS = "selma3d_crops/SELMA3D_training_annotated"
LABELS = {
    "cFos": ["delivr/cFos/gt/patchvolume_695_1.nii.gz", "delivr/cFos/gt/patchvolume_1147_6.nii.gz"],
    "microglia": [f"delivr/microglia/gt/patchvolume_{name}.nii.gz" for name in ("1874_0", "3941_2", "4923_5")],
    "AD_plaques": [f"{CROPS}/AD_plaques/gt/patchvolume_{number}.nii.gz" for number in ("000", "016")],
    "shannel_cells": [f"{CROPS}/shannel_cells/gt/patchvolume_007.nii.gz"],
    "VessAP_vessel": [f"{CROPS}/VessAP_vessel/gt/patchvolume_{number}.nii.gz" for number in ("006", "013")],
}


def expected(year, structure, reference, prediction):
    """What the official evaluator says, by its own formulation."""
    total = int(reference.sum()) + int(prediction.sum())
    scores = {"dice": 2 * int((reference & prediction).sum()) / total if total else 1.0}
    if year == 2026:
        if structure.kind_2026 == "isolated":
            return {**scores, "panoptic_quality": official.panoptic_quality_2026(reference, prediction)}
        return {**scores, "cldice": official.cldice_2026(reference, prediction)}
    errors = [abs(a - b) for a, b in zip(official.betti_2024(reference), official.betti_2024(prediction), strict=True)]
    scores["betti_0_error"] = errors[0]
    if structure.kind_2024 == "tree":
        scores |= {"betti_1_error": errors[1], "cldice": official.cldice_2024(reference, prediction)}
    return scores


@pytest.mark.parametrize("name", LABELS)
def test_real_labels_score_as_in_the_official_evaluators(real_data, tmp_path, name):
    structure = find_structure(name)
    masks = {stem(real_data / path): open_volume(real_data / path).read() > 0 for path in LABELS[name]}
    for copy, change in COPIES.items():
        for case, mask in masks.items():
            write_image(tmp_path / copy / f"{case}.nii.gz", change(mask).astype(np.uint8))
    for year in (2024, 2026):
        out = tmp_path / str(year)
        arguments = [
            "--reference",
            str(tmp_path / "itself"),
            "--prediction",
            *(str(tmp_path / copy) for copy in COPIES),
        ]
        assert (
            cli.main(
                ["evaluate", *arguments, "--edition", str(year), "--structure", name, "--corrected", "-o", str(out)]
            )
            == 0
        )
        with (out / "cases.csv").open(encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        assert len(rows) == len(masks) * len(COPIES)
        for row in rows:
            reference = masks[row["case"]].astype(np.uint8)
            prediction = COPIES[row["method"]](masks[row["case"]]).astype(np.uint8)
            for key, value in expected(year, structure, reference, prediction).items():
                assert float(row[key]) == pytest.approx(value, abs=1e-8, nan_ok=True), (row["method"], row["case"], key)
                if row.get(f"{key}_corrected") and not isnan(value) and value not in (0.0, 1.0):
                    assert row[f"{key}_corrected"] == row[key]
            if row["method"] == "itself":
                assert float(row["dice"]) == 1
