"""Segmentations that a trained model is compared with: a threshold, and the same network untrained."""

from pathlib import Path

import numpy as np

from nnunet_selma.conversion.raw_dataset import write_nifti
from nnunet_selma.volumes import open_volume


def otsu(images: Path, output: Path) -> Path:
    """Threshold every image `<case>_0000.nii.gz` by Otsu's method; returns the folder of the segmentations."""
    from skimage.filters import threshold_otsu

    output.mkdir(parents=True, exist_ok=True)
    for path in sorted(images.glob("*_0000.nii.gz")):
        image = open_volume(path).read()
        mask = (image > threshold_otsu(image)).astype(np.uint8)
        write_nifti(output / path.name.replace("_0000", ""), mask, (1.0, 1.0, 1.0))
    return output


def untrained(model: Path, images: Path, output: Path, *, device: str, seed: int) -> Path:
    """Segment the images with the network of a trained model and random weights; returns the folder of the segmentations."""
    import torch
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    output.mkdir(parents=True, exist_ok=True)
    predictor = nnUNetPredictor(
        use_mirroring=False, device=torch.device(device), perform_everything_on_device=False, allow_tqdm=False
    )
    predictor.initialize_from_trained_model_folder(str(model), (0,), "checkpoint_final.pth")
    torch.manual_seed(seed)
    for layer in predictor.network.modules():
        if hasattr(layer, "reset_parameters"):
            layer.reset_parameters()
    predictor.list_of_parameters = [predictor.network.state_dict()]
    predictor.predict_from_files_sequential(str(images), str(output), save_probabilities=False, overwrite=True)
    return output
