"""Networks that nnU-Net does not have, with its constructor; a plans file names one of them as `network_class_name`."""

MONAI_MISSING = (
    "this network is built from MONAI's blocks, which are not installed: pip install 'nnunet-selma[networks]'"
)
"""Message where the optional extra is missing."""
