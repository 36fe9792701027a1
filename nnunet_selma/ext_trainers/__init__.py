"""The folder that nnU-Net searches in an installed copy (`nnunet-selma env` prints it)."""

from pathlib import Path

FOLDER = Path(__file__).resolve().parent
