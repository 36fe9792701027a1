"""Datasets written straight into `nnUNet_preprocessed`, as tile stores with the plans of another dataset."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nnunet_selma.conversion.raw_dataset import dataset_description
from nnunet_selma.conversion.staging import StagedFolder
from nnunet_selma.errors import SelmaError
from nnunet_selma.nnunet.folders import MANIFEST
from nnunet_selma.nnunet.settings import KEY
from nnunet_selma.nnunet.tile_store import check_supported, write_case
from nnunet_selma.running.json_files import read_json, write_json
from nnunet_selma.structures import SpacingUm
from nnunet_selma.volumes.base import Array


class PreprocessedDataset:
    """A tile store that is being written into `nnUNet_preprocessed`.

    Args:
        preprocessed_root: the `nnUNet_preprocessed` folder.
        folder_name: name of the dataset's folder.
        plans: nnU-Net's plans with one configuration, as `nnunet.plans.store_plans` makes them.
        settings: everything else on which the cases depend.

    Raises:
        SelmaError: the store exists already, made with other settings or plans, or the normalisation of the plans is not supported.
    """

    needs_labels = False

    def __init__(
        self, preprocessed_root: Path, folder_name: str, plans: Mapping[str, Any], settings: Mapping[str, Any]
    ) -> None:
        self.dataset_folder, self.plans = preprocessed_root / folder_name, dict(plans)
        ((self.configuration, self._planned),) = plans["configurations"].items()
        check_supported(self._planned)
        self._check_channels()
        identifier = self._planned["data_identifier"]
        self.folder = self.dataset_folder / identifier
        # nnU-Net allows no file but cases in the folder it reads
        manifest = self.dataset_folder / f"{identifier}_{MANIFEST}"
        staging = preprocessed_root / f".{folder_name}_{identifier}.partial"
        self.staged = StagedFolder(self.folder, staging, manifest, {**settings, "preprocessing": self._preprocessing()})
        if self.staged.complete:
            self._write_plans()

    def _check_channels(self) -> None:
        description = self.dataset_folder / "dataset.json"
        count = len(self._planned["normalization_schemes"])
        if description.is_file() and len(read_json(description)["channel_names"]) != count:
            raise SelmaError(
                f"{description} says another number of input channels than the plans ({count}); choose another dataset id"
            )

    def _preprocessing(self) -> dict[str, Any]:
        """Settings on which the stored voxels depend; the patch size is none, because it decides only about chunks."""
        keys = ("spacing", "normalization_schemes", "resampling_fn_data", "resampling_fn_data_kwargs")
        return {"transpose_forward": self.plans["transpose_forward"], **{key: self._planned[key] for key in keys}}

    def _write_plans(self) -> None:
        """Write the plans; other configurations of an existing file stay, and so do settings that a user has changed."""
        path = self.dataset_folder / f"{self.plans['plans_name']}.json"
        before = read_json(path) if path.is_file() else {}
        configurations = {**before.get("configurations", {}), **self.plans["configurations"]}
        write_json(
            path,
            {**self.plans, "configurations": configurations, KEY: {**self.plans.get(KEY, {}), **before.get(KEY, {})}},
        )

    def write(
        self, case: str, images: Sequence[Array], label: Array | None, spacing_zyx: SpacingUm, record: Mapping[str, Any]
    ) -> None:
        """Write a case: its channels, (z, y, x), and last its record, which marks it as whole; a label is not kept."""
        properties = write_case(self.staged.files / case, images, spacing_zyx, self.plans, self.configuration)
        shape = [int(length) for length in properties["shape_after_cropping_and_before_resampling"]]
        moments = {"mean": properties["mean"], "standard_deviation": properties["standard_deviation"]}
        self.staged.record(case, {**record, "shape_after_cropping": shape, **moments})

    def finish(
        self, *, channels: Sequence[str], foreground: str, description: str, facts: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Write the files that nnU-Net's training reads beside the cases, and the manifest, and give the folder its name; returns the manifest."""
        cases = self.staged.cases()
        self.dataset_folder.mkdir(exist_ok=True)
        write_json(
            self.dataset_folder / "dataset.json",
            dataset_description(channels, foreground, len(cases), self.dataset_folder.name, description),
        )
        # nnU-Net copies the fingerprint beside every training; its intensities are those that the plans were made from
        fingerprint = {
            "spacings": [case["spacing_zyx"] for case in cases.values()],
            "shapes_after_crop": [case["shape_after_cropping"] for case in cases.values()],
            "foreground_intensity_properties_per_channel": self.plans["foreground_intensity_properties_per_channel"],
            "median_relative_size_after_cropping": 1.0,
        }
        write_json(self.dataset_folder / "dataset_fingerprint.json", fingerprint)
        self._write_plans()
        return self.staged.finish(facts)
