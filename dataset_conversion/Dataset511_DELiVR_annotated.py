"""DELiVR's annotated c-Fos and microglia patches (octants of 200³ cubes) to Dataset511_DELiVR.

    python dataset_conversion/Dataset511_DELiVR_annotated.py ~/Downloads/delivr_train

The same as `nnunet-selma convert annotated --layout delivr -d 511 --name DELiVR`, with the same arguments.
"""

import sys
from collections.abc import Sequence

from nnunet_selma import cli


def main(arguments: Sequence[str]) -> int:
    """Convert the patches below a folder; see `--help` for the choices."""
    return cli.main(["convert", "annotated", "--layout", "delivr", "-d", "511", "--name", "DELiVR", *arguments])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
