"""The list of entries that change a prediction is complete, by nnU-Net's own sources, and what is not computed is refused by its name."""

import inspect
import re
from pathlib import Path

import pytest
from nnunetv2.inference import export_prediction, predict_from_raw_data
from nnunetv2.preprocessing.preprocessors import default_preprocessor
from nnunetv2.utilities.label_handling import label_handling
from nnunetv2.utilities.plans_handling import plans_handler

from nnunet_selma.errors import SelmaError
from nnunet_selma.prediction.plan_entries import ENTRIES, check_entries
from tests.plans import plans

LISTED = {key for entry in ENTRIES for key in entry.keys}
WITHOUT_EFFECT = {
    "dataset_name",
    "plans_name",
    "original_median_shape_after_transp",
    "experiment_planner_used",
    "data_identifier",
    "batch_size",
    "median_image_size_in_voxels",
    "batch_dice",
    "next_stage",
    "file_ending",  # of the files that nnU-Net reads and writes
    "resampling_fn_seg",  # of the segmentation of an earlier stage
    "resampling_fn_seg_kwargs",
    "key",  # of an example in a docstring
}
"""Entries that nnU-Net reads, and that do not change the voxels of a prediction."""
OLD_NETWORKS = {
    "UNet_class_name",
    "UNet_base_num_features",
    "unet_max_num_features",
    "n_conv_per_stage_encoder",
    "n_conv_per_stage_decoder",
    "num_pool_per_axis",
    "pool_op_kernel_sizes",
    "conv_kernel_sizes",
}
"""Entries of older plans that nnU-Net turns into `architecture`."""


def test_every_entry_that_nnunet_reads_is_listed_or_has_no_effect():
    modules = (plans_handler, default_preprocessor, label_handling, predict_from_raw_data, export_prediction)
    source = "\n".join(inspect.getsource(module).split("__main__")[0] for module in modules)
    objects = (
        r"(?:self\.plans|plans|self\.configuration|configuration|(?:self\.)?dataset_json(?:_dict_or_file)?|checkpoint)"
    )
    read = set(re.findall(objects + r"(?:\[|\.get\()\s*['\"](\w+)['\"]", source))
    read |= set(re.findall(r"['\"](\w+)['\"] (?:not )?in " + objects, source))
    assert {"preprocessor_name", "regions_class_order", "network_weights", "previous_stage", "inherits_from"} <= read
    assert read <= LISTED | WITHOUT_EFFECT | OLD_NETWORKS


def test_plans_as_nnunet_makes_them_are_computed():
    content = plans()
    check_entries("plans.json", content, Path("plans.json"))
    check_entries("configuration", content["configurations"]["3d_fullres"], Path("plans.json"))


@pytest.mark.parametrize(
    ("source", "key", "value"),
    [
        ("plans.json", "image_reader_writer", "MyIO"),
        ("plans.json", "label_manager", "MyLabelManager"),
        ("plans.json", "transpose_forward", [0, 1, 1]),
        ("configuration", "preprocessor_name", "MyLogPreprocessor"),
        ("configuration", "previous_stage", "3d_lowres"),
    ],
)
def test_what_is_not_computed_is_refused_by_its_name(source, key, value):
    with pytest.raises(SelmaError, match=rf"plans.json: has the {key} {re.escape(str(value))}"):
        check_entries(source, {key: value}, Path("plans.json"))
    check_entries(source, {key: None}, Path("plans.json"))


def test_axes_must_be_turned_back_as_they_were_turned():
    check_entries("plans.json", {"transpose_forward": [1, 2, 0], "transpose_backward": [2, 0, 1]}, Path("plans.json"))
    with pytest.raises(SelmaError, match="does not turn back"):
        check_entries(
            "plans.json", {"transpose_forward": [1, 2, 0], "transpose_backward": [1, 2, 0]}, Path("plans.json")
        )
