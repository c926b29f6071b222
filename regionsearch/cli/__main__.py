"""`python -m regionsearch.cli` is `regionsearch`."""

from regionsearch.cli import main

if __name__ == "__main__":
    main()
