"""`regionsearch models`: what there is, what is here, and getting it."""

from __future__ import annotations

from functools import partial
from typing import Annotated

import typer
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from regionsearch.cli.output import console
from regionsearch.errors import RegionSearchError, invalid
from regionsearch.models import POCKET, PROFILES, WEIGHTS, Weights, models_dir, verify, verify_pocket

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


def is_here(weights: Weights) -> bool:
    """Whether a file has been pulled."""
    return (models_dir() / weights.file).is_file()


@app.command("list")
def list_models() -> None:
    """Show profiles, models, and what is on this machine."""
    table = Table("profile", "segmenter", "embedder", "here", "for")
    for profile in PROFILES.values():
        here = "yes" if all(map(is_here, profile.weights)) else "no"
        table.add_row(profile.name, profile.segmenter, profile.embedder, here, profile.purpose)
    console.print(table)
    table = Table("model", "here", "digest", "licence")
    for weights in WEIGHTS.values():
        digest = "published" if weights.sha256 else "of the first download"
        table.add_row(weights.model, "yes" if is_here(weights) else "no", digest, weights.licence)
    console.print(table)
    console.print(f"downloaded weights live in {models_dir()}", highlight=False, soft_wrap=True)


@app.command("pull")
def pull_models(name: Name) -> None:
    """Download weights; goes on where an earlier download stopped."""
    from regionsearch.models.download import pull

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
            progress.console.print(f"{path}  ({weights.licence})", highlight=False, soft_wrap=True)


@app.command("verify")
def verify_models(name: Annotated[str, typer.Argument(help="A profile or a model.")] = "pocket") -> None:
    """Compare weights with the digests that were published."""
    wanted = find_weights(name)
    checks = [partial(verify, weights) for weights in wanted] or [
        partial(verify_pocket, part) for part in POCKET
    ]
    broken = False
    for check in checks:
        try:
            console.print(f"[green]right[/]  {check()}", highlight=False, soft_wrap=True)
        except RegionSearchError as error:
            broken = True
            console.print(f"[red]wrong[/]  {error.message}", highlight=False, soft_wrap=True)
    raise typer.Exit(int(broken))
