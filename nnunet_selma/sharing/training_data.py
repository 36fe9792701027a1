"""Training data of a model, as far as files of the workspace describe them: folds, cases, and the record of their conversion."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from nnunet_selma.nnunet.folders import MANIFEST, Folders
from nnunet_selma.running.json_files import read_json
from nnunet_selma.structures import find_structure, of_case

SPLITS = "splits_final.json"
SELMA3D_LAYOUTS = ("bioimage_archive", "challenge_zip")
"""Layouts of SELMA3D's annotated data, as a manifest names them."""
DELIVR_LAYOUT = "delivr"


@dataclass(frozen=True, kw_only=True)
class DataFacts:
    """The training data, as far as files of the workspace describe them."""

    splits: Sequence[Mapping[str, Sequence[str]]]
    """The folds of nnU-Net's splits_final.json: cases of "train" and of "val"; empty where the file is not there."""
    manifest: Mapping[str, Any] | None
    """Manifest of the conversion; None where the data were not converted by this package, or are not there."""

    @property
    def layouts(self) -> tuple[str, ...]:
        """Layouts of the download that the annotated data were converted from; empty where no manifest records them."""
        recorded = (self.manifest or {}).get("layout")
        return tuple(str(recorded).split(" and ")) if recorded else ()

    @cached_property
    def cases(self) -> tuple[str, ...]:
        """Names of all cases, by the folds, or else by the manifest."""
        split = {case for fold in self.splits for part in ("train", "val") for case in fold.get(part, ())}
        return tuple(sorted(split or (self.manifest or {}).get("cases", {})))

    @property
    def groups(self) -> Mapping[str, str]:
        """Case to the group (animal, brain) that no fold parts; empty where it is not recorded."""
        groups: Mapping[str, str] = (self.manifest or {}).get("groups", {})
        return groups

    @cached_property
    def structures(self) -> Mapping[str, int]:
        """Prefix of each structure to its number of cases, by the manifest or the names of the cases; empty where neither says."""
        records = (self.manifest or {}).get("cases", {})
        counts: dict[str, int] = {}
        for case in self.cases:
            recorded = records.get(case, {}).get("structure")
            known = find_structure(recorded) if recorded else of_case(case)
            name = known.prefix if known else recorded
            if name:
                counts[name] = counts.get(name, 0) + 1
        return dict(sorted(counts.items()))


def folders_around(results: Path) -> Folders | None:
    """nnU-Net's three folders, if the results lie in a workspace that has them side by side."""
    root = results.resolve().parent.parent
    if root.name != "nnUNet_results":
        return None
    return Folders(raw=root.parent / "nnUNet_raw", preprocessed=root.parent / "nnUNet_preprocessed", results=root)


def data_of(dataset: str, folders: Folders | None) -> DataFacts:
    """Folds and manifest of a dataset, as far as they are there."""
    if folders is None:
        return DataFacts(splits=(), manifest=None)
    preprocessed, raw = folders.preprocessed / dataset, folders.raw / dataset
    splits: Any = read_json(preprocessed / SPLITS) if (preprocessed / SPLITS).is_file() else ()
    manifests = [raw / MANIFEST, *(sorted(preprocessed.glob(f"*{MANIFEST}")) if preprocessed.is_dir() else ())]
    manifest = next((read_json(path) for path in manifests if path.is_file()), None)
    return DataFacts(splits=splits, manifest=manifest)
