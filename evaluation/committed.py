"""The metrics of the bundled models, stored next to them: `python -m evaluation.committed`.

`models/pocket/metrics.json` holds the numbers on the whole fixture, those on a part of it that a test can
measure again in seconds, and, where a larger held-out set is given, those on it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from evaluation.cli import evaluate
from evaluation.dataset import Dataset
from evaluation.loaders import FIXTURE, load

METRICS = Path(__file__).parents[1] / "models" / "pocket" / "metrics.json"
PART, PART_SEED = 12, 0

# What the committed weights must go on reaching.
GUARDED = (
    "proposals.ar@100",
    "click.miou",
    "text_region.r@1",
    "class_mask.miou",
    "image.r@5",
    "absence.auroc_within",
)


def part_of_fixture() -> Dataset:
    """The images that the test measures."""
    return load(FIXTURE).subset(PART, PART_SEED)


def main(
    heldout: Annotated[Path | None, typer.Option(help="Larger held-out data set")] = None,
    out: Annotated[Path, typer.Option(help="Folder for the reports")] = Path("out/evaluation"),
) -> None:
    """Measures the bundled models, writes models/pocket/metrics.json and calibrates the embedder."""
    console = Console()
    content: dict[str, Any] = {}
    if heldout is not None:  # first, as the cut-off is chosen on it: with more images less is left to chance
        content["heldout"] = evaluate(heldout, out=out / "heldout", calibrate=True, console=console).as_json()
    content["fixture"] = evaluate(out=out / "fixture", calibrate=heldout is None, console=console).as_json()
    content["part_of_fixture"] = evaluate(
        limit=PART, seed=PART_SEED, out=out / "part", console=console
    ).as_json()
    METRICS.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    console.print(f"Written: [bold]{METRICS}[/bold]")


if __name__ == "__main__":
    typer.run(main)
