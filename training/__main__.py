"""Trains the pocket models, and draws the scenes that they are measured and shown on."""

from __future__ import annotations

import enum
import json
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import open_clip
import torch
import typer
from rich.console import Console
from segment_anything.modeling import Sam
from torch import nn

from services.segmenter.backends.pocket import build_pocket_sam
from training import embedder, proposer, refiner, segmenter, sets
from training.export import export_embedder, export_segmenter, load_weights
from training.first_passes import FirstPassCache
from training.icon_sets import missing_sets
from training.loop import Run
from training.scenes import SceneArtist
from training.store import SceneStore
from training.vocabulary import Vocabulary

app = typer.Typer(add_completion=False)


class Model(enum.StrEnum):
    """What to train."""

    SEGMENTER = "segmenter"
    EMBEDDER = "embedder"
    REFINER = "refiner"
    PROPOSER = "proposer"
    ALL = "all"


@app.callback(invoke_without_command=True, help=__doc__)
def pocket(
    context: typer.Context,
    model: Annotated[
        Model,
        typer.Option(
            help="Which model; a refiner needs the other two in the output folder and is trained on from "
            "the one there, a proposer needs the segmenter there, and a segmenter that is trained anew has "
            "neither."
        ),
    ] = Model.ALL,
    steps: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Of each model, those before a resume included.",
            show_default=f"{segmenter.STEPS} for the segmenter, {embedder.STEPS} for the embedder, "
            f"{refiner.STEPS} for the refiner, {proposer.STEPS} for the proposer",
        ),
    ] = None,
    batch: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Scenes of a step, close-ups for the refiner; fewer where memory is short, at the price of "
            "quality.",
            show_default=f"{segmenter.BATCH} for the segmenter, {embedder.BATCH} for the embedder, "
            f"{refiner.BATCH} for the refiner, {proposer.BATCH} for the proposer",
        ),
    ] = None,
    work: Annotated[
        Path, typer.Option(help="Folder of drawn scenes and checkpoints; a run in it is resumed.")
    ] = Path("training/out"),
    output: Annotated[Path, typer.Option(help="Folder that weights, manifests and metrics go to.")] = Path(
        "models/pocket"
    ),
    scenes: Annotated[int, typer.Option(min=1, help="Scenes to train on.")] = 16000,
    objects: Annotated[
        bool,
        typer.Option(
            help="Every other 500 scenes show few and large objects that look photographed; the bundled "
            "weights have not seen them."
        ),
    ] = False,
    held_out: Annotated[int, typer.Option(min=0, help="Scenes to measure on; 0 for none.")] = 300,
    device: Annotated[str, typer.Option(help="cpu, cuda, or auto: the GPU where there is one.")] = "auto",
    threads: Annotated[int, typer.Option(min=0, help="CPU threads; 0 for all cores.")] = 0,
    seed: Annotated[int, typer.Option(help="Of initial weights and batches.")] = 0,
    init_from: Annotated[
        Path | None,
        typer.Option(
            help="Folder of exported weights to begin with; random ones otherwise. A refiner is kept."
        ),
    ] = None,
) -> None:
    """Trains, exports, and measures on scenes never seen."""
    if context.invoked_subcommand:
        return
    if threads:
        torch.set_num_threads(threads)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if missing := missing_sets():
        left_out = f"drawn without the icon sets {', '.join(missing)}"
        Console(stderr=True).print(f"{left_out}; scripts/install_training_data.sh fetches them")
    store = SceneStore(work / "scenes", scenes, objects)
    store.prepare()

    def run(trainer: ModuleType) -> Run:
        return Run(work, steps or trainer.STEPS, batch or trainer.BATCH, torch.device(device), seed)

    if model in (Model.SEGMENTER, Model.ALL):
        begin, architecture = (None, segmenter.ARCHITECTURE) if init_from is None else _load_sam(init_from)
        architecture = {name: value for name, value in architecture.items() if name != "proposer"}
        sam = segmenter.train_segmenter(run(segmenter), store, begin)
        if isinstance(refined := getattr(begin, "refiner", None), nn.Module):
            sam.refiner = refined
        export_segmenter(sam, architecture, segmenter.EVERYTHING, output)
    if model in (Model.EMBEDDER, Model.ALL):
        init = None if init_from is None else _load_clip(init_from)
        clip = embedder.train_embedder(run(embedder), store, init)
        export_embedder(clip, embedder.MODEL_CONFIG, output)
    if model in (Model.REFINER, Model.ALL):
        _refine(run(refiner), store, output)
    if model in (Model.PROPOSER, Model.ALL):
        _propose(run(proposer), store, output)
    if model is Model.ALL and held_out:
        _measure(work / f"held-out-{held_out}", output, held_out)


@app.command()
def fixture(
    folder: Path = Path("evaluation/fixture"), count: int = 100, first_seed: int = sets.FIXTURE_SEED
) -> None:
    """Draws held-out scenes in COCO style, as the evaluation reads them."""
    sets.write_coco(folder, first_seed, count)


@app.command()
def graph(folder: Path = Path("models/pocket")) -> None:
    """Writes the embedder's image tower for ONNX Runtime; run it when the weights are new."""
    from training.graph import write_graph  # its packages are needed here only

    write_graph(folder)


@app.command()
def examples(folder: Path = Path("examples/scenes")) -> None:
    """Draws the bundled demo scenes."""
    sets.write_examples(folder)


def _load_sam(models: Path) -> tuple[Sam, dict[str, Any]]:
    architecture = json.loads((models / "segmenter.json").read_text())["architecture"]
    sam = build_pocket_sam(**architecture)
    load_weights(sam, models / "segmenter.safetensors")
    return sam, architecture


def _load_clip(models: Path) -> open_clip.CLIP:
    clip = embedder.build_clip(embedder.MODEL_CONFIG)
    load_weights(clip, models / "embedder.safetensors")
    return clip


def _refine(run: Run, store: SceneStore, models: Path) -> None:
    """Trains a refiner for the segmenter of a folder, from the one that it has on, and exports both."""
    sam, architecture = _load_sam(models)
    earlier, sam.refiner = getattr(sam, "refiner", None), None
    clip = _load_clip(models)
    passes = FirstPassCache(run.folder / "looks", store, min(refiner.FIRST_PASS_SCENES, len(store)))
    passes.prepare(sam, architecture, run.device)
    torch.manual_seed(run.seed)
    model = refiner.RefinerTrainingModel(refiner.ARCHITECTURE, Vocabulary(SceneArtist().vocabulary))
    model.init_from(sam, clip)
    if earlier is not None:
        model.warm_start_from(earlier)
    sam.refiner = refiner.train_refiner(run, passes, model)
    architecture |= {"refiner": refiner.ARCHITECTURE}
    everything = proposer.EVERYTHING if "proposer" in architecture else segmenter.EVERYTHING
    export_segmenter(sam, architecture, everything, models)


def _propose(run: Run, store: SceneStore, models: Path) -> None:
    """Trains a proposer for the segmenter of a folder and exports both."""
    sam, architecture = _load_sam(models)
    sam = sam.to(run.device).requires_grad_(False)
    scenes = proposer.EmbeddedScenes(run.folder / "embedded", store, min(proposer.SCENES, len(store)))
    scenes.prepare(sam, run.device)
    sam.proposer = proposer.train_proposer(run, scenes, sam)
    architecture |= {"proposer": proposer.architecture(sam)}
    export_segmenter(sam, architecture, proposer.EVERYTHING, models)


def _measure(scenes: Path, models: Path, count: int) -> None:
    """Writes the report of the evaluation next to the scenes."""
    from evaluation.cli import evaluate  # needs the services' engines, which training does not

    if not (scenes / "scenes.json").is_file():
        sets.write_coco(scenes, sets.HELD_OUT_SEED, count)
    evaluate(scenes, models=models, out=scenes.parent / "evaluation", console=Console())


if __name__ == "__main__":
    app()
