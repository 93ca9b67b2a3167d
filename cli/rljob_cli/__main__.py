"""Entry point of `rljob`."""

import sys
from pathlib import Path

from rljob_cli.app import app

PLUGIN = "kubectl-rljob"
"""The name under which kubectl finds the command: `kubectl rljob status`."""


def main() -> None:
    """Run the command line and exit with its code."""
    app(prog_name="kubectl rljob" if Path(sys.argv[0]).stem == PLUGIN else "rljob")


if __name__ == "__main__":
    main()
