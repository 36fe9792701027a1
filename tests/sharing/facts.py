"""Facts of trained models, without a training and without files."""

from pathlib import Path

from nnunet_selma.sharing.results import FoldFacts, ResultFacts
from nnunet_selma.sharing.training_data import DataFacts
from tests.plans import plans

DATASET = {"channel_names": {"0": "signal"}, "labels": {"background": 0, "structure": 1}, "file_ending": ".nii.gz"}
PRETRAINED = {
    "weights": "pretrained",
    "path": "a.pth",
    "trainer": "SelmaSSLTrainer",
    "pretext": "Byol",
    "ancestor": None,
}


def model(
    *, ancestor=None, content=None, dataset="Dataset007_Mine", network=None, manifest=None, cases=(), **changes
) -> ResultFacts:
    content = {**(content or plans()), "dataset_name": dataset}
    if network:
        content["configurations"]["3d_fullres"]["architecture"]["network_class_name"] = network
    fold = FoldFacts(
        fold="0", checkpoint=Path("checkpoint_final.pth"), entries={}, epochs=2, ancestor=ancestor, dice={}
    )
    known = {
        "folder": Path("SelmaFinetuneTrainer__nnUNetPlans__3d_fullres"),
        "kind": "segmentation",
        "trainer": "SelmaFinetuneTrainer",
        "stored_trainer": "nnUNetTrainer",
        "configuration": "3d_fullres",
        "plans": content,
        "dataset": DATASET,
        "folds": (fold,),
        "data": DataFacts(splits=[{"train": list(cases), "val": []}], manifest=manifest),
        "summary": {},
    }
    return ResultFacts(**{**known, **changes})
