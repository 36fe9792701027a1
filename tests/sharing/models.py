"""Results folders as trainings leave them, without training: optimiser states, logs, folds, a validation, and paths of a machine."""

from pathlib import Path

import numpy as np
import torch

from nnunet_selma.running.json_files import read_json, write_json
from nnunet_selma.trainers.ssl import SelmaSSLTrainer
from tests.plans import plans
from tests.prediction.models import write_model
from tests.trainers.test_trainers import trainer

HOME = "/home/alice"
CASES = [f"cell_nuclei_{number}" for number in range(4)] + ["AD_plaques_7"]
SPLITS = [{"train": CASES[2:], "val": CASES[:2]}, {"train": CASES[:2], "val": CASES[2:]}]
PRETRAINED = {
    "weights": "pretrained",
    "path": f"{HOME}/nnUNet_results/Dataset500_B/SelmaSSLTrainer__p__3d_fullres/fold_all/checkpoint_final.pth",
    "sha256": "ab12",
    "trainer": "SelmaSSLTrainer_BYOL",
    "pretext": "Byol",
    "dataset": "Dataset500_B",
    "plans": "p",
    "configuration": "3d_fullres",
    "epochs": 7,
    "steps": 28,
    "ancestor": None,
}


def write_segmentation(workspace: Path, *, plain=False, **more) -> Path:
    """A fine-tuned model of two folds, two channels and two classes; `plain`: nothing but what nnU-Net needs to predict."""
    folder = workspace / "nnUNet_results" / "Dataset510_SELMA3D" / "SelmaFinetuneTrainer__nnUNetPlans__3d_fullres"
    content = plans()
    content["configurations"]["3d_fullres"] |= {"spacing": [5.0, 1.5, 2.0], "batch_size": 2}
    content["original_median_spacing_after_transp"] = [5.0, 1.5, 2.0]
    content["selma"] = {"finetuning": {"iterations_per_epoch": 3, "pretrained": f"{HOME}/weights.pth"}}
    labels = {"background": 0, "cell": 1, "plaque": 2}
    write_model(folder, content, folds=2, channels=2, labels=labels, **more)
    if plain:
        return folder
    description = read_json(folder / "dataset.json")
    write_json(folder / "dataset.json", {**description, "reference": f"{HOME}/raw/licence.txt", "licence": "ask"})
    write_json(folder / "dataset_fingerprint.json", {"spacings": [[5.0, 1.5, 2.0]]})
    for fold in range(2):
        place = folder / f"fold_{fold}"
        file = place / "checkpoint_final.pth"
        checkpoint = torch.load(file, weights_only=False)
        parameters = [torch.nn.Parameter(weight) for weight in checkpoint["network_weights"].values()]
        optimizer = torch.optim.Adam(parameters)
        for parameter in parameters:
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        checkpoint |= {
            "optimizer_state": optimizer.state_dict(),
            "grad_scaler_state": {"scale": 1.0},
            "logging": {"train_losses": [np.float32(0.5)]},
            "_best_ema": np.float64(0.25),
            "current_epoch": 11,
            "selma_ancestor": PRETRAINED,
        }
        checkpoint["init_args"] |= {
            "fold": fold,
            "plans": read_json(folder / "plans.json"),
            "device": torch.device("cpu"),
        }
        torch.save(checkpoint, file)
        (place / "validation").mkdir()
        write_json(place / "validation" / "summary.json", summary(fold))
    preprocessed, raw = (workspace / name / "Dataset510_SELMA3D" for name in ("nnUNet_preprocessed", "nnUNet_raw"))
    for place in (preprocessed, raw):
        place.mkdir(parents=True)
    write_json(preprocessed / "splits_final.json", SPLITS)
    records = {case: {"structure": case.rsplit("_", 1)[0]} for case in CASES}
    write_json(
        raw / "selma_manifest.json",
        {"layout": "challenge_zip", "cases": records, "groups": {case: case[:5] for case in CASES}},
    )
    return folder


def summary(fold):
    """nnU-Net's summary of a validation, with Dice 0.5 and 0.75 in fold 0, and 0.25 and no value in fold 1 for class 1."""
    values = [(0.5, 0.5), (0.75, 0.5)] if fold == 0 else [(0.25, 1.0), (float("nan"), 1.0)]
    return {"metric_per_case": [{"metrics": {"1": {"Dice": a}, "2": {"Dice": b}}} for a, b in values]}


def write_pretraining(folders) -> Path:
    """A pretraining of one fold, as `SelmaSSLTrainer` saves it, with the state of an optimiser that has stepped."""
    training = trainer(SelmaSSLTrainer, folders)
    training.initialize()
    folder = Path(training.output_folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder.parent / "plans.json", training.plans_manager.plans)
    write_json(folder.parent / "dataset.json", training.dataset_json)
    training.current_epoch = 4
    training.save_checkpoint(str(folder / "checkpoint_final.pth"))
    write_json(
        folder / "ssl_summary.json",
        {
            "trainer": "SelmaSSLTrainer",
            "pretext": "MaskedInpainting",
            "versions": {"torch": "2.0"},
            "warnings": [f"{HOME}/tiles: few"],
        },
    )
    return folder.parent
