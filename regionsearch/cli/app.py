"""The root of the command line; each group of commands is a module of its own."""

from __future__ import annotations

import sys
from importlib import metadata
from typing import Annotated

import typer

from regionsearch.cli import (
    backfilling,
    exporting,
    images,
    ingesting,
    listing,
    managing,
    models,
    running,
    searching,
    snapshots,
)
from regionsearch.cli.config import read_defaults
from regionsearch.cli.terminal import never_fail, tell
from regionsearch.errors import RegionSearchError

app = typer.Typer(
    name="regionsearch",
    help="Find any object in any image: by words, by an example, or by pointing at it.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (
    running.up,
    ingesting.ingest,
    backfilling.backfill,
    searching.search,
    searching.within,
    listing.scroll,
    listing.count,
    exporting.export,
    managing.reindex,
    managing.doctor,
    managing.mcp,
):
    app.command()(command)
app.command("map")(listing.map_)
# As they were called before there was `images`.
app.command(hidden=True)(images.edit)
app.command(hidden=True)(images.delete)
app.command(
    add_help_option=False, context_settings={"allow_extra_args": True, "ignore_unknown_options": True}
)(managing.evaluate)
app.add_typer(images.app, name="images")
app.add_typer(managing.collections_app, name="collections")
app.add_typer(managing.codes_app, name="codes")
app.add_typer(models.app, name="models")
app.add_typer(snapshots.app, name="snapshots")


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"regionsearch {metadata.version('regionsearch')}")
        raise typer.Exit


@app.callback()
def root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Find any object in any image: by words, by an example, or by pointing at it."""
    context.default_map = read_defaults(context.command)


def main() -> None:
    """Runs the command line; an error is one line and exit code 1, never a traceback."""
    never_fail()
    try:
        app()
    except RegionSearchError as error:
        request = f" (request {error.request_id})" if error.request_id else ""
        tell(f"error: {error.message}{request}", style="red")
        sys.exit(1)
    except OSError as error:
        tell(f"error: {': '.join(filter(None, (error.filename, error.strerror or str(error))))}", style="red")
        sys.exit(1)
