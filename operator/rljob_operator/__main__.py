"""`python -m rljob_operator`."""

from rljob_operator.main import main

if __name__ == "__main__":
    main()
