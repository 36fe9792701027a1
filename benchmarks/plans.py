"""Plans as nnU-Net's planner configures them for SELMA3D's structures, with few features so that a CPU can step."""

from typing import Any

ARCHITECTURES = {
    # name: patch, spacing, strides, kernels
    "112³, strides 16, (1,3,3) stem": (
        (112, 112, 112),
        (2.0, 1.0, 1.0),
        [[1] * 3, [2] * 3, [2] * 3, [2] * 3, [2] * 3],
        [[1, 3, 3], *[[3, 3, 3]] * 4],
    ),
    "32×256×256, strides 8,64,64": (
        (32, 256, 256),
        (5.0, 0.54, 0.54),
        [[1, 1, 1], [1, 2, 2], [1, 2, 2], [1, 2, 2], [2, 2, 2], [2, 2, 2], [2, 2, 2]],
        [*[[1, 3, 3]] * 3, *[[3, 3, 3]] * 4],
    ),
    "64×160×160, strides 8,32,32": (
        (64, 160, 160),
        (6.0, 1.625, 1.625),
        [[1, 1, 1], [1, 2, 2], [1, 2, 2], [2, 2, 2], [2, 2, 2], [2, 2, 2]],
        [*[[1, 3, 3]] * 2, *[[3, 3, 3]] * 4],
    ),
    "128×128×112": (
        (128, 128, 112),
        (1.0, 1.0, 1.0),
        [[1] * 3, [2] * 3, [2] * 3, [2] * 3, [2] * 3, [2, 2, 1]],
        [[3, 3, 3]] * 6,
    ),
    "2d, 256×256": ((256, 256), (1.0, 1.0), [[1] * 2, *[[2] * 2] * 6], [[3, 3]] * 7),
}


def plans(name: str = "small", *, residual: bool = False, features: int = 4, batch: int = 1) -> dict[str, Any]:
    """A complete plans dictionary with one configuration, 3d_fullres (2d for the flat one)."""
    patch, spacing, strides, kernels = ARCHITECTURES.get(
        name, ((16, 16, 16), (1.0, 1.0, 1.0), [[1] * 3, [2] * 3, [2] * 3], [[3] * 3] * 3)
    )
    stages, dimension = len(strides), len(patch)
    blocks = (
        {"n_blocks_per_stage": [1] * stages, "n_conv_per_stage_decoder": [1] * (stages - 1)}
        if residual
        else {"n_conv_per_stage": [2] * stages, "n_conv_per_stage_decoder": [2] * (stages - 1)}
    )
    configuration = {
        "data_identifier": "nnUNetPlans_3d_fullres",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": batch,
        "patch_size": list(patch),
        "median_image_size_in_voxels": list(patch),
        "spacing": list(spacing),
        "normalization_schemes": ["ZScoreNormalization"],
        "use_mask_for_norm": [False],
        "resampling_fn_data": "resample_data_or_seg_to_shape",
        "resampling_fn_seg": "resample_data_or_seg_to_shape",
        "resampling_fn_data_kwargs": {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None},
        "resampling_fn_seg_kwargs": {"is_seg": True, "order": 1, "order_z": 0, "force_separate_z": None},
        "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
        "resampling_fn_probabilities_kwargs": {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": None},
        "architecture": {
            "network_class_name": "dynamic_network_architectures.architectures.unet."
            + ("ResidualEncoderUNet" if residual else "PlainConvUNet"),
            "arch_kwargs": {
                "n_stages": stages,
                "features_per_stage": [min(features * 2**i, 4 * features) for i in range(stages)],
                "conv_op": f"torch.nn.modules.conv.Conv{dimension}d",
                "kernel_sizes": kernels,
                "strides": strides,
                **blocks,
                "conv_bias": True,
                "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{dimension}d",
                "norm_op_kwargs": {"eps": 1e-05, "affine": True},
                "dropout_op": None,
                "dropout_op_kwargs": None,
                "nonlin": "torch.nn.LeakyReLU",
                "nonlin_kwargs": {"inplace": True},
            },
            "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
        },
        "batch_dice": False,
    }
    return {
        "dataset_name": "Dataset510_SELMA3D",
        "plans_name": "nnUNetPlans",
        "original_median_spacing_after_transp": list(spacing),
        "original_median_shape_after_transp": list(patch),
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "configurations": {"2d" if dimension == 2 else "3d_fullres": configuration},
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {
            "0": {"max": 1, "mean": 0, "median": 0, "min": 0, "percentile_00_5": 0, "percentile_99_5": 1, "std": 1}
        },
    }
