"""`python -m pyipvs`: the command `pyipvs`.

Does not: anything of its own.
"""

import sys

from pyipvs.cli import main

if __name__ == "__main__":
    sys.exit(main())
