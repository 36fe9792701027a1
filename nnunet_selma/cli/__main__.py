"""`python -m nnunet_selma.cli …`."""

import sys

from nnunet_selma.cli import main

if __name__ == "__main__":
    sys.exit(main())
