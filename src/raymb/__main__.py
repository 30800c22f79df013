"""`python -m raymb` and the console script `raymb`. Import-safe: a checkpoint's spawned helper imports this module."""

import sys

from raymb.cli import main

if __name__ == "__main__":
    sys.exit(main())
