"""`regionsearch models`: what there is, what is here, and getting it."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from regionsearch.cli.output import console
from regionsearch.errors import RegionSearchError, invalid
from regionsearch.models import PROFILES, WEIGHTS, Weights, models_dir, pull, verify

app = typer.Typer(help="Model weights: list, pull, verify.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="A profile (pocket, base, large) or a model such as sam_vit_l.")]


def find_weights(name: str) -> tuple[Weights, ...]:
    """The files behind the name of a profile or of a model.

    Raises:
        RegionSearchError: INVALID_ARGUMENT naming those that there are.
    """
    if name in PROFILES:
        return PROFILES[name].weights
    if name in WEIGHTS:
        return (WEIGHTS[name],)
    raise invalid("name", f"there is no {name!r}; choose one of {', '.join([*PROFILES, *WEIGHTS])}")


@app.command("list")
def list_models() -> None:
    """Show the profiles, their models, and what is on this machine."""
    table = Table("profile", "segmenter", "embedder", "here", "for")
    for profile in PROFILES.values():
        here = all((models_dir() / weights.file).exists() for weights in profile.weights)
        table.add_row(
            profile.name, profile.segmenter, profile.embedder, "yes" if here else "no", profile.purpose
        )
    console.print(table)
    console.print(f"downloaded weights live in {models_dir()}", highlight=False)


@app.command("pull")
def pull_models(name: Name) -> None:
    """Download weights; goes on where an earlier download stopped."""
    wanted = find_weights(name)
    if not wanted:
        console.print(f"{name} is bundled; there is nothing to pull")
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        for weights in wanted:
            task = progress.add_task(weights.model, total=None)

            def show(done: int, total: int | None, task: int = task) -> None:
                progress.update(task, completed=done, total=total)  # type: ignore[arg-type]

            path = pull(weights, show)
            progress.console.print(f"{path}  ({weights.licence})", highlight=False)


@app.command("verify")
def verify_models(name: Name) -> None:
    """Compare downloaded weights with the digests that were published."""
    broken = False
    for weights in find_weights(name):
        try:
            console.print(f"[green]right[/]  {verify(weights)}", highlight=False)
        except RegionSearchError as error:
            broken = True
            console.print(f"[red]wrong[/]  {error.message}", highlight=False)
    raise typer.Exit(1 if broken else 0)
