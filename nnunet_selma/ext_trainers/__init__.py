"""The folder that nnU-Net searches in an installed copy (`nnunet-selma env` prints it)."""

from nnunet_selma.nnunet.folders import TRAINER_FOLDER as FOLDER

__all__ = ["FOLDER"]
