"""The command line: `regionsearch --help`."""

from regionsearch.cli.app import app, main

__all__ = ["app", "main"]
