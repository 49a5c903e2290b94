"""`python -m sedd_fast` is the command `sedd-fast`."""

import sys

from sedd_fast.cli import main

if __name__ == "__main__":
    sys.exit(main())
