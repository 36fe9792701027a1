"""SELMA3D's unannotated whole brains (folders of TIFF slices) to tiles in Dataset500_SELMA3Dunlabelled.

    python dataset_conversion/Dataset500_SELMA3D_unannotated.py ~/Downloads/brain_microscopy_image -d 500

The same as `nnunet-selma convert unannotated`, with the same arguments.
"""

import sys
from collections.abc import Sequence

from nnunet_selma import cli


def main(arguments: Sequence[str]) -> int:
    """Convert the volumes below a folder; see `--help` for the choices."""
    return cli.main(["convert", "unannotated", *arguments])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
