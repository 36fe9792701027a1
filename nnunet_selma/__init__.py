"""Stock nnU-Net v2, taught to learn from unlabelled light-sheet volumes (SELMA3D)."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("nnunet-selma")
except PackageNotFoundError:  # a checkout that was never installed
    __version__ = "0+unknown"
