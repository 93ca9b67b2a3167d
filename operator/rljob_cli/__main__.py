"""Entry point of `rljob`."""

from rljob_cli.app import app


def main() -> None:
    """Run the command line and exit with its code."""
    app(prog_name="rljob")


if __name__ == "__main__":
    main()
