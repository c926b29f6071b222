"""`regionsearch models`: what there is, what is here, and getting it."""

from __future__ import annotations

import itertools
import json
import os
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from regionsearch.cli.terminal import AsJson, console
from regionsearch.errors import RegionSearchError, invalid
from regionsearch.models.catalog import PREFIX, PROFILES, WEIGHTS, Weights, open_clip_weights, split_open_clip
from regionsearch.models.store import POCKET, look_up, models_dir, verify, verify_pocket

GB = 1e9
CONTAINER_LIMIT = Path("/sys/fs/cgroup/memory.max")

app = typer.Typer(help="Model weights: list, pull, verify.", no_args_is_help=True)

Names = Annotated[
    list[str],
    typer.Argument(help="Profiles (pocket, fast, base, large) or models: sam_vit_l, open_clip:NAME:TAG."),
]


def find_weights(name: str) -> tuple[Weights, ...]:
    """The files behind the name of a profile or of a model.

    Raises:
        RegionSearchError: INVALID_ARGUMENT naming those that there are.
    """
    if name in PROFILES:
        return PROFILES[name].weights
    if name in WEIGHTS:
        return (WEIGHTS[name],)
    if name.startswith(PREFIX):
        return (open_clip_weights(*split_open_clip(name)),)
    known = ", ".join([*PROFILES, *WEIGHTS])
    raise invalid("name", f"there is no {name!r}; choose one of {known}, or {PREFIX}NAME:TAG")


def machine_memory() -> int:
    """Bytes of memory of this machine, or of the container that this is."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        limit = CONTAINER_LIMIT.read_text().strip()
    except OSError:
        return total
    return min(total, int(limit)) if limit.isdecimal() else total


def memory_fit(needed: int | None, memory: int) -> str:
    """How much a model needs, and whether the machine has it."""
    if needed is None:
        return ""
    return f"{needed / GB:.1f} GB" + ("" if needed <= memory else ", too much")


def is_here(weights: Weights) -> bool:
    """Whether a file is on this machine: pulled, or in a cache of the Hugging Face hub or of torch."""
    return look_up(weights) is not None


@app.command("list")
def list_models(as_json: AsJson = False) -> None:
    """List profiles and models, and what is on this machine."""
    if as_json:
        profiles = [
            {"profile": one.name, "segmenter": one.segmenter, "embedder": one.embedder,
             "here": all(map(is_here, one.weights))}
            for one in PROFILES.values()
        ]  # fmt: skip
        known = [
            {"model": one.model, "here": is_here(one), "bytes": one.size, "licence": one.licence}
            for one in WEIGHTS.values()
        ]
        found = {"profiles": profiles, "models": known, "folder": str(models_dir())}
        typer.echo(json.dumps(found, indent=1))
        return
    memory = machine_memory()
    table = Table("profile", "segmenter", "embedder", "here", "memory", "for")
    for profile in PROFILES.values():
        here = "yes" if all(map(is_here, profile.weights)) else "no"
        fit = memory_fit(profile.memory_bytes, memory)
        table.add_row(profile.name, profile.segmenter, profile.embedder, here, fit, profile.purpose)
    console.print(table)
    table = Table("model", "here", "MB", "memory", "licence")
    for weights in WEIGHTS.values():
        size = "" if weights.size is None else f"{weights.size / 1e6:,.0f}"
        fit = memory_fit(weights.memory_bytes, memory)
        table.add_row(weights.model, "yes" if is_here(weights) else "no", size, fit, weights.licence)
    console.print(table)
    console.print(f"this machine has {memory / GB:.1f} GB of memory", highlight=False)
    console.print(f"and {PREFIX}NAME:TAG, any weights that open_clip knows", highlight=False)
    console.print(f"downloaded weights live in {models_dir()}", highlight=False, soft_wrap=True)


@app.command("pull")
def pull_models(names: Names) -> None:
    """Download weights; resumes an interrupted download."""
    from regionsearch.models.download import pull, pull_repository

    found = {name: find_weights(name) for name in names}
    for name in (name for name, files in found.items() if not files):
        console.print(f"{name} is bundled; there is nothing to pull")
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        for weights in itertools.chain.from_iterable(found.values()):
            task = progress.add_task(weights.model, total=None)

            def show(done: int, total: int | None, task: int = task) -> None:
                progress.update(task, completed=done, total=total)  # type: ignore[arg-type]

            path = pull(weights, show)
            progress.console.print(f"{path}  ({weights.licence})", highlight=False, soft_wrap=True)
            for repository in weights.repositories:
                folder = pull_repository(repository, weights.repository_file)
                progress.console.print(folder, highlight=False, soft_wrap=True)


@app.command("verify")
def verify_models(name: Annotated[str, typer.Argument(help="A profile or a model.")] = "pocket") -> None:
    """Compare weights with their published digests."""
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
