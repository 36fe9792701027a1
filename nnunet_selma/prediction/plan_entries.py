"""Every entry of a model's files that changes nnU-Net's prediction: it is computed here too, or refused by its name.

The list follows nnU-Net 2.8.1: `PlansManager` and `ConfigurationManager` (plans_handler.py), `DefaultPreprocessor`, `LabelManager`,
`nnUNetPredictor` and export_prediction.py. Entries that are not on the list do not change a prediction.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from nnunet_selma.errors import SelmaError

Source = Literal["plans.json", "configuration", "dataset.json", "checkpoint"]


@dataclass(frozen=True, kw_only=True)
class Entry:
    """An entry that changes the prediction."""

    source: Source
    """File that holds it; `configuration` is a part of plans.json."""
    keys: tuple[str, ...]
    effect: str
    """How it changes the prediction, and where that is computed."""
    computed: Callable[[Any], bool] = lambda value: True
    """True for the values that are computed here; values that are absent or None are nnU-Net's default."""
    remedy: str = "predict with nnUNetv2_predict"


def _in(*names: str) -> Callable[[Any], bool]:
    return lambda value: value in names


def _is_turn(value: Any) -> bool:
    return isinstance(value, list) and sorted(value) == [0, 1, 2]


ENTRIES = (
    Entry(
        source="plans.json",
        keys=("image_reader_writer",),
        effect="reads the voxels and their spacing, and may turn them to RAS+",
        computed=_in("SimpleITKIO", "NibabelIO", "NibabelIOWithReorient", "Tiff3DIO", "NaturalImage2DIO"),
    ),
    Entry(
        source="plans.json",
        keys=("label_manager",),
        effect="turns logits into probabilities and labels",
        computed=_in("LabelManager"),
    ),
    Entry(
        source="plans.json",
        keys=("transpose_forward", "transpose_backward"),
        effect="order of the axes: grids",
        computed=_is_turn,
        remedy="give each of the axes 0, 1 and 2 once",
    ),
    Entry(
        source="plans.json",
        keys=("foreground_intensity_properties_per_channel", "foreground_intensity_properties_by_modality"),
        effect="numbers of CTNormalization: intensities",
    ),
    Entry(source="plans.json", keys=("original_median_spacing_after_transp",), effect="unit of the plans: grids"),
    Entry(source="plans.json", keys=("configurations",), effect="with inherits_from resolved by nnU-Net: model"),
    Entry(
        source="configuration",
        keys=("preprocessor_name",),
        effect="transposes, crops, normalises and resamples",
        computed=_in("DefaultPreprocessor"),
    ),
    Entry(
        source="configuration",
        keys=("previous_stage",),
        effect="a cascade: the network needs the segmentation of this stage",
        computed=lambda value: False,
        remedy="take 3d_fullres",
    ),
    Entry(source="configuration", keys=("inherits_from",), effect="resolved by nnU-Net: model"),
    Entry(source="configuration", keys=("patch_size",), effect="tiles: tiling"),
    Entry(source="configuration", keys=("spacing",), effect="voxel size of the network's grid: grids"),
    Entry(
        source="configuration",
        keys=("normalization_schemes", "use_mask_for_norm"),
        effect="normalisation; one that is not nnU-Net's own is refused: intensities",
    ),
    Entry(
        source="configuration",
        keys=(
            "resampling_fn_data",
            "resampling_fn_data_kwargs",
            "resampling_fn_probabilities",
            "resampling_fn_probabilities_kwargs",
        ),
        effect="another function or option than nnU-Net's default is refused where the grids differ: resampling",
    ),
    Entry(source="configuration", keys=("architecture",), effect="built by nnU-Net: model"),
    Entry(
        source="dataset.json",
        keys=("labels", "regions_class_order"),
        effect="heads, regions and their values; the label `ignore` has no head: nnU-Net's LabelManager",
    ),
    Entry(source="dataset.json", keys=("channel_names", "modality"), effect="number of channels: model"),
    Entry(source="checkpoint", keys=("network_weights",), effect="loaded by nnU-Net, fold by fold: model"),
    Entry(source="checkpoint", keys=("trainer_name",), effect="builds the network, without deep supervision: model"),
    Entry(source="checkpoint", keys=("init_args",), effect="name of the configuration: model"),
    Entry(source="checkpoint", keys=("inference_allowed_mirroring_axes",), effect="axes that are mirrored: model"),
)
"""The list."""


def check_entries(source: Source, content: Mapping[str, Any], file: Path) -> None:
    """Check that everything in a part of a model's files is computed here.

    Args:
        source: the part.
        content: its content.
        file: where it was read, for the message.

    Raises:
        SelmaError: an entry has a value that would change nnU-Net's prediction, and is not computed here.
    """
    for entry in ENTRIES:
        for key in entry.keys if entry.source == source else ():
            value = content.get(key)
            if value is not None and not entry.computed(value):
                raise SelmaError(
                    f"{file}: has the {key} {value} ({entry.effect}), which is not computed here; {entry.remedy}"
                )
    if source == "plans.json":
        _check_turns(content.get("transpose_forward"), content.get("transpose_backward"), file)


def _check_turns(forward: Sequence[int] | None, backward: Sequence[int] | None, file: Path) -> None:
    """Raise `SelmaError` if the axes are not turned back as they were turned."""
    if forward is not None and backward is not None and [forward[axis] for axis in backward] != sorted(forward):
        raise SelmaError(
            f"{file}: transpose_backward {backward} does not turn back transpose_forward {forward}; mend it"
        )
