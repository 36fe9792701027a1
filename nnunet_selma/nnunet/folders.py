"""nnU-Net's folders, and the paths of datasets and plans in them."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from nnunet_selma.errors import SelmaError

TRAINER_FOLDER = Path(__file__).resolve().parents[1] / "ext_trainers"
"""With this folder in nnUNet_extTrainer, nnU-Net finds SelmaSSLTrainer and SelmaFinetuneTrainer."""
FOLDER_VARIABLES = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
MANIFEST = "selma_manifest.json"
"""File in the folder of a dataset that this package converted: source, voxel size and warnings of each case."""


@dataclass(frozen=True, kw_only=True)
class Folders:
    """nnU-Net's three folders, which its environment variables name."""

    raw: Path
    preprocessed: Path
    results: Path

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> "Folders":
        """The folders that the variables name, all of which are set."""
        raw, preprocessed, results = (Path(environment[name]) for name in FOLDER_VARIABLES)
        return cls(raw=raw, preprocessed=preprocessed, results=results)

    def dataset(self, dataset_id: int) -> str:
        """The folder name of a dataset, or of models if its data are gone; raises `SelmaError` if there is none, or more than one."""

        def among(*roots: Path) -> set[str]:
            existing = [root for root in roots if root.is_dir()]
            return {path.name for root in existing for path in root.glob(f"Dataset{dataset_id:03d}_*")}

        names = among(self.raw, self.preprocessed) or among(self.results)
        if len(names) != 1:
            fault = (
                f"there are several: {', '.join(sorted(names))}"
                if names
                else f"there is none in {self.raw}; convert it first"
            )
            raise SelmaError(f"dataset {dataset_id}: {fault}")
        return names.pop()

    def plans(self, dataset: str, plans_name: str) -> Path:
        """The plans file of a dataset; raises `SelmaError` if it does not exist."""
        path = self.preprocessed / dataset / f"{plans_name}.json"
        if not path.is_file():
            known = [p.stem for p in sorted(path.parent.glob("*lans*.json")) if "manifest" not in p.stem]
            command = f"run nnUNetv2_plan_and_preprocess -d {int(dataset[7:10])} -c 3d_fullres first"
            remedy = f"known plans are {', '.join(known)}" if known else command
            raise SelmaError(f"{path} does not exist: {remedy}")
        return path
