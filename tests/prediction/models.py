"""Models of random weights, volumes that have structure, and what stock nnU-Net says about them."""

from pathlib import Path

import numpy as np
import torch
from scipy.ndimage import gaussian_filter

from nnunet_selma.prediction.model import ModelSettings
from nnunet_selma.running.json_files import write_json
from tests.plans import plans


def write_model(
    folder: Path, content=None, *, folds=1, channels=1, labels=None, regions_order=None, seed=0
) -> ModelSettings:
    """A model folder as nnU-Net leaves it after training, with random weights."""
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    content = content or plans()
    (name,) = content["configurations"]
    description = {
        "channel_names": {str(i): f"stain {i}" for i in range(channels)},
        "labels": labels or {"background": 0, "cell": 1},
        "file_ending": ".nii.gz",
        "numTraining": 1,
    }
    if regions_order:
        description["regions_class_order"] = regions_order
    configuration = content["configurations"][name]
    configuration["normalization_schemes"] = (configuration["normalization_schemes"] * channels)[:channels]
    configuration["use_mask_for_norm"] = [False] * channels
    properties = content["foreground_intensity_properties_per_channel"]
    content["foreground_intensity_properties_per_channel"] = {str(i): properties["0"] for i in range(channels)}
    manager = PlansManager(content)
    heads = manager.get_label_manager(description).num_segmentation_heads
    write_json(folder / "plans.json", content) if folder.mkdir(parents=True) is None else None
    write_json(folder / "dataset.json", description)
    for fold in range(folds):
        torch.manual_seed(seed + fold)
        network = nnUNetTrainer.build_network_architecture(
            manager, manager.get_configuration(name), channels, heads, enable_deep_supervision=False
        )
        (folder / f"fold_{fold}").mkdir()
        torch.save(
            {
                "network_weights": network.state_dict(),
                "trainer_name": "nnUNetTrainer",
                "init_args": {"configuration": name},
                "inference_allowed_mirroring_axes": tuple(range(len(manager.get_configuration(name).patch_size))),
            },
            folder / f"fold_{fold}" / "checkpoint_final.pth",
        )
    return ModelSettings(folder=folder, folds=tuple(str(fold) for fold in range(folds)))


def pointwise_plans(spacing):
    """Plans of a network of 1×1×1 convolutions, which takes little time; the voxels that are predicted are of 1 µm."""
    content = plans()
    configuration = content["configurations"]["3d_fullres"]
    configuration |= {"patch_size": [32] * 3, "spacing": [spacing] * 3}
    configuration["architecture"]["arch_kwargs"]["kernel_sizes"] = [[1] * 3] * 3
    return content | {"original_median_spacing_after_transp": [2.0] * 3}


def texture(rng, shape, *, channels=1, dark_border=0):
    """Blobs on a background, uint16, (c, z, y, x); a border of zeros where one is asked for."""
    image = np.stack([gaussian_filter(rng.random(shape), 1.5) for _ in range(channels)])
    image = 200 + 4000 * (image - image.min()) / np.ptp(image) + 20 * rng.random(image.shape)
    image = image.astype(np.uint16)
    if dark_border:
        inside = (slice(None), *(slice(dark_border + axis, length - dark_border) for axis, length in enumerate(shape)))
        framed = np.zeros_like(image)
        framed[inside] = image[inside]
        return framed
    return image


def stock(settings: ModelSettings, image, spacing_zyx, *, probabilities=False, device=None):
    """nnU-Net's own segmentation of an image (c, z, y, x), on a CPU by default; with `probabilities` those too, (head, z, y, x)."""
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    device = device or torch.device("cpu")
    predictor = nnUNetPredictor(
        tile_step_size=settings.step_size,
        use_mirroring=settings.mirroring,
        device=device,
        allow_tqdm=False,
        perform_everything_on_device=device.type == "cuda",
    )
    predictor.initialize_from_trained_model_folder(str(settings.folder), settings.folds, settings.checkpoint)
    return predictor.predict_single_npy_array(
        image.astype(np.float32), {"spacing": list(spacing_zyx)}, None, None, save_or_return_probabilities=probabilities
    )
