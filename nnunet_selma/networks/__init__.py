"""Networks that nnU-Net lacks, with nnU-Net's constructor; plans name them as `network_class_name`."""

MONAI_MISSING = (
    "this network is built from MONAI's blocks, which are not installed: pip install 'nnunet-selma[networks]'"
)
"""Error message if the optional extra is missing."""
