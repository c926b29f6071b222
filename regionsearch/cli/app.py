"""The root of the command line; each group of commands is a module of its own."""

from __future__ import annotations

import sys

import typer

from regionsearch.cli import ingesting, managing, models, running, searching
from regionsearch.cli.output import never_fail, tell
from regionsearch.errors import RegionSearchError

app = typer.Typer(
    name="regionsearch",
    help="Find any object in any image: by words, by an example, or by pointing at it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in (
    running.up,
    ingesting.ingest,
    searching.search,
    searching.within,
    searching.export,
    managing.reindex,
    managing.edit,
    managing.delete,
    managing.doctor,
):
    app.command()(command)
app.command(
    add_help_option=False, context_settings={"allow_extra_args": True, "ignore_unknown_options": True}
)(managing.evaluate)
app.add_typer(managing.collections_app, name="collections")
app.add_typer(models.app, name="models")


def main() -> None:
    """Runs the command line; a typed error is one line and exit code 1, never a traceback."""
    never_fail()
    try:
        app()
    except RegionSearchError as error:
        tell(f"error: {error.message}", style="red")
        sys.exit(1)
