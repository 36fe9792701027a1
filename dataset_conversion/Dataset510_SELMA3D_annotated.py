"""SELMA3D's annotated patches (BioImage Archive S-BIAD1196, or the challenge's zips) to Dataset510_SELMA3D.

    python dataset_conversion/Dataset510_SELMA3D_annotated.py ~/Downloads/SELMA3D_training_annotated -d 510

The same as `nnunet-selma convert annotated`, with the same arguments.
"""

import sys
from collections.abc import Sequence

from nnunet_selma import cli


def main(arguments: Sequence[str]) -> int:
    """Convert the patches below a folder; see `--help` for the choices."""
    return cli.main(["convert", "annotated", *arguments])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
