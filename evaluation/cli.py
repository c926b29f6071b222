"""`regionsearch evaluate` and `python -m evaluation`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from evaluation.baselines import GridSegmenter
from evaluation.calibration import write_cut_off
from evaluation.cutouts import write_cut_outs
from evaluation.details import changes, write_details
from evaluation.gateway import Gateway
from evaluation.loaders import FIXTURE, load
from evaluation.report import COMPARED, HEADLINES, render
from evaluation.run import Result, run
from evaluation.system import InProcess, System
from regionsearch.defaults import FEATURES_WEIGHT
from regionsearch.errors import RegionSearchError, invalid
from regionsearch.models.store import pocket_dir

app = typer.Typer(add_completion=False, context_settings={"help_option_names": ["-h", "--help"]})


def evaluate(
    data: Path | None = None,
    *,
    images: Path | None = None,
    url: str | None = None,
    api_key: str | None = None,
    out: Path = Path("out/evaluation"),
    models: Path | None = None,
    reference: bool = False,
    policies: Sequence[str] = ("blur",),
    baselines: bool = False,
    hashing: bool = False,
    features_weight: float = FEATURES_WEIGHT,
    limit: int | None = None,
    seed: int = 0,
    calibrate: bool = False,
    against: Path | None = None,
    keep: bool = False,
    console: Console | None = None,
) -> Result:
    """Measures retrieval quality; writes metrics.json, report.html, per_image.jsonl and per_class.csv.

    Args:
        data: A data set (see `evaluation.loaders.load`); by default the committed fixture.
        images: Folder of its images, if they are not next to it.
        url: A running gateway (http://host:port); by default the engines run in this process.
        api_key: API key of the gateway.
        out: Folder that the results are written to.
        models: Folder of pocket weights, in place of the bundled ones.
        reference: Run the reference implementations in place of our engines.
        policies: Crop policies; the first is reported in full, the others are compared with it.
            `("all",)` compares every policy with `blur`.
        baselines: Also measure whole images and a grid of crops.
        hashing: Also measure vectors with the segmenter's features, and binary codes of both.
        features_weight: Of features, where that of embeddings is 1.
        limit: At most this many images, drawn by the seed.
        seed: Random seed.
        calibrate: Also write the cut-off of confident matches into the embedder's manifest.
        against: Folder of an earlier run on the same data, which the table is compared with.
        keep: Keep the gateway's collection; the results link to its images on the page.
        console: Where progress and the table are printed; silent without.

    Raises:
        RegionSearchError: INVALID_ARGUMENT for unreadable data or an option that does not fit.
    """
    if calibrate and (url is not None or reference):
        raise invalid("calibrate", "--calibrate is for pocket weights: leave out --url and --reference")
    if keep and url is None:
        raise invalid("keep", "--keep is for the collection of a gateway: give its --url")
    dataset = load(data or FIXTURE, images)
    if limit is not None:
        dataset = dataset.subset(limit, seed)
        if not any(sample.instances for sample in dataset.samples):
            raise invalid("limit", f"the {limit} images that were drawn show nothing annotated; draw more")
    out.mkdir(parents=True, exist_ok=True)
    others: dict[str, System] = {}
    with ExitStack() as stack:
        bar = stack.enter_context(_progress(console))
        task = bar.add_task("loading", total=None)
        if url is not None:
            if reference or baselines or hashing or models or len(policies) > 1 or "all" in policies:
                raise invalid("url", "a gateway is measured alone: leave out other models and comparisons")
            gateway = stack.enter_context(Gateway(url, api_key, policies[0], keep))
            system: System = gateway
        else:
            system, others = _in_process(models, reference, policies, baselines)
            if hashing:
                others |= _hashing(system, features_weight)

        last = ""

        def show(stage: str, done: int, total: int) -> None:
            nonlocal last
            bar.update(task, description=stage, completed=done, total=total)
            if console is not None and not console.is_terminal and stage != last:
                console.print(f"{stage}, {total}")  # a log has no bar
            last = stage

        result = run(system, dataset, others=others, seed=seed, calibrate=calibrate, progress=show)
        pages = gateway.pages() if keep else {}
    (out / "metrics.json").write_text(json.dumps(result.as_json(), indent=1) + "\n", encoding="utf-8")
    (out / "report.html").write_text(render(result, pages), encoding="utf-8")
    write_details(result, out, pages)
    if calibrate:
        manifest = (models or pocket_dir()) / "embedder.json"
        if result.cut_off is None:
            raise invalid(
                "data", "there is nothing to calibrate with: no image is for tuning, or none shows a thing"
            )
        write_cut_off(manifest, result.system["crop_policy"], result.cut_off)
        if console is not None:
            console.print(f"Calibrated: [bold]{manifest}[/bold]")
    if console is not None:
        console.print(_table(result, changes(result, against) if against is not None else {}))
        if result.comparisons:
            console.print(_comparisons(result))
        console.print(f"Report: [bold]{out / 'report.html'}[/bold]")
    return result


def _in_process(
    models: Path | None, reference: bool, policies: Sequence[str], baselines: bool
) -> tuple[System, dict[str, System]]:
    """The system under test, and those it is compared with."""
    from services.embedder.options import CropPolicy

    names = ["blur", *(p for p in CropPolicy if p != "blur")] if "all" in policies else list(policies)
    unknown = [name for name in names if name not in list(CropPolicy)]
    if unknown:
        raise invalid("policies", f"no crop policy is called {unknown[0]}; there are {', '.join(CropPolicy)}")
    main = _load(models, names[0], reference)
    others: dict[str, System] = {
        f"crop policy {name}": InProcess(main.segmenter, main.embedder, name) for name in names[1:]
    }
    if baselines:
        others["whole image"] = InProcess(GridSegmenter((1,)), main.embedder, "bbox")
        others["grid of crops"] = InProcess(GridSegmenter(), main.embedder, "bbox")
    return main, others


def _hashing(system: System, weight: float) -> dict[str, System]:
    from evaluation.engines import EngineSegmenter
    from evaluation.hashing import hashing_systems

    if not (isinstance(system, InProcess) and isinstance(system.segmenter, EngineSegmenter)):
        raise invalid("hashing", "--hashing needs the features of our own segmenter: leave out --reference")
    if not weight > 0:
        raise invalid("features_weight", "the weight of features must be above 0")
    return hashing_systems(system, system.segmenter, weight)


def _load(models: Path | None, policy: str, reference: bool) -> InProcess:
    """Imports what is needed: a gateway is measured without torch."""
    if reference:
        from evaluation.reference import reference_system

        return reference_system(models, policy)
    from evaluation.engines import engine_system

    return engine_system(models, policy)


def _progress(console: Console | None) -> Progress:
    return Progress(
        TextColumn("{task.description:32}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        disable=console is None,
        transient=True,
    )


def _table(result: Result, changed: Mapping[str, tuple[float, bool]]) -> Table:
    """The metrics, with what has changed; bold where the intervals do not even touch."""
    columns = ("metric", "value", "95 %", "n", *(["change"] if changed else []))
    table = Table(*columns, title=f"{result.predictions.dataset.name}")
    for one in result.measures:
        style = "bold" if one.key in HEADLINES else ""
        interval = f"{one.estimate.low:.3f} – {one.estimate.high:.3f}"
        change = []
        if one.key in changed:
            by, apart = changed[one.key]
            change = [f"[bold]{by:+.3f}[/bold] *" if apart else f"{by:+.3f}"]
        table.add_row(one.key, f"{one.estimate.value:.3f}", interval, str(one.items), *change, style=style)
    return table


def _comparisons(result: Result) -> Table:
    """What is compared, one system a row."""
    main = {one.key: one for one in result.measures}
    keys = [key for key in COMPARED if key in main]
    table = Table("", *keys, title="comparison")
    for name, measures in {"this system": result.measures, **result.comparisons}.items():
        found = {one.key: one.estimate.value for one in measures}
        table.add_row(name, *(f"{found[key]:.3f}" if key in found else "" for key in keys))
    return table


Data = Annotated[Path | None, typer.Option(help="COCO-style JSON or PASCAL VOC; default: the fixture.")]
Images = Annotated[Path | None, typer.Option(help="Folder of the images, if not next to the JSON file.")]
Fixture = Annotated[bool, typer.Option("--fixture", help="The committed fixture (the default).")]
CutOuts = Annotated[
    bool,
    typer.Option("--cutouts", help="Photographed things that Debian's tuxpaint-stamps-default holds."),
]
Url = Annotated[str | None, typer.Option(help="A running gateway, such as http://127.0.0.1:8000.")]
ApiKey = Annotated[str | None, typer.Option(envvar="REGIONSEARCH_API_KEY", help="Of the gateway.")]
Out = Annotated[Path, typer.Option(help="Folder for the numbers and the report.")]
Models = Annotated[Path | None, typer.Option(help="Folder of pocket weights. Default: the bundled ones.")]
Reference = Annotated[bool, typer.Option("--reference", help="Measure the reference implementations (slow).")]
Policies = Annotated[str, typer.Option(help="Crop policies, comma-separated, the first in full; or all.")]
Baselines = Annotated[bool, typer.Option("--baselines", help="Compare whole images and a grid of crops.")]
Hashing = Annotated[
    bool,
    typer.Option("--hashing", help="Compare vectors with the segmenter's features, and codes of both."),
]
FeaturesWeight = Annotated[
    float, typer.Option(help="Weight of the segmenter's features, where that of embeddings is 1.")
]
Calibrate = Annotated[
    bool,
    typer.Option("--calibrate", help="Write the cut-off of confident matches into the embedder's manifest."),
]
Against = Annotated[
    Path | None,
    typer.Option(help="Folder of an earlier run on the same data; * marks changes beyond both intervals."),
]
Keep = Annotated[
    bool,
    typer.Option("--keep", help="Keep the gateway's collection; the report links to its images on the page."),
]
Limit = Annotated[int | None, typer.Option(min=1, help="At most this many images.")]


@app.command()
def main(
    data: Data = None,
    images: Images = None,
    fixture: Fixture = False,
    cutouts: CutOuts = False,
    url: Url = None,
    api_key: ApiKey = None,
    out: Out = Path("out/evaluation"),
    models: Models = None,
    reference: Reference = False,
    policies: Policies = "blur",
    baselines: Baselines = False,
    hashing: Hashing = False,
    features_weight: FeaturesWeight = FEATURES_WEIGHT,
    limit: Limit = None,
    seed: int = 0,
    calibrate: Calibrate = False,
    against: Against = None,
    keep: Keep = False,
) -> None:
    """Measures how well things are found, with intervals, as JSON and as an HTML report."""
    console = Console()
    try:
        if fixture + cutouts + (data is not None) > 1:
            raise invalid("data", "--fixture, --cutouts and --data exclude each other")
        if cutouts:
            data = write_cut_outs(out / "cutouts")
        evaluate(
            data,
            images=images,
            url=url,
            api_key=api_key,
            out=out,
            models=models,
            reference=reference,
            policies=[name.strip() for name in policies.split(",")],
            baselines=baselines,
            hashing=hashing,
            features_weight=features_weight,
            limit=limit,
            seed=seed,
            calibrate=calibrate,
            against=against,
            keep=keep,
            console=console,
        )
    except RegionSearchError as error:
        console.print(f"[red]{error.message}[/red]")
        raise typer.Exit(2) from error
