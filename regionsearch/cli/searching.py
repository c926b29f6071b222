"""`regionsearch search`, `within` and `export`: finding things, and taking them along."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from regionsearch.cli.terminal import (
    COLLECTION,
    URL,
    ApiKey,
    CollectionName,
    Url,
    check_target,
    connect,
    console,
    of_file,
    print_table,
    tell,
    write_file,
)
from regionsearch.errors import RegionSearchError, invalid

if TYPE_CHECKING:
    from regionsearch.client import Box, Hit, NegativeExample, SearchResult, WithinResult
    from regionsearch.schemas.requests.searches import SearchInclude

IMAGE_ID = re.compile("[0-9a-f]{64}")


class Finder(StrEnum):
    """What finds phrases in an image."""

    embedder = "embedder"
    segmenter = "segmenter"


class Level(StrEnum):
    """What a search compares."""

    region = "region"
    image = "image"
    both = "both"


AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, with the ids of images and regions.")]
MinScore = Annotated[
    float | None, typer.Option(help="Minimum score (cosine) of a hit, in place of the model's cut-off.")
]
Cutoff = Annotated[
    float | None,
    typer.Option(
        "--cutoff", min=0, max=1, help="Lowest part of the best score, in place of the model's cut-off."
    ),
]
All = Annotated[bool, typer.Option("--all", help="Also weaker matches, below the model's cut-off.")]
Save = Annotated[Path | None, typer.Option(help="Write the image with the hit outlined to this PNG.")]
Open = Annotated[bool, typer.Option("--open", help="Show the image with the hit outlined.")]

Tags = Annotated[
    list[str] | None, typer.Option("--tag", help="Only images with one of these tags; may be repeated.")
]
Where = Annotated[
    list[str] | None,
    typer.Option(
        metavar="JSON",
        help='A condition, such as \'{"attribute": "price", "number": {"lt": 20}}\'; may be repeated.',
    ),
]


def search(
    words: Annotated[
        list[str] | None, typer.Argument(help="What to look for; commas separate several phrases.")
    ] = None,
    image: Annotated[Path | None, typer.Option("--image", "--like", help="An example image.")] = None,
    region: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ID", help="A stored region, or image, as the example, by its id; may be repeated."
        ),
    ] = None,
    collection: CollectionName = COLLECTION,
    limit: Annotated[
        int, typer.Option("--limit", "-n", min=1, max=1000, help="Maximum number of hits.")
    ] = 10,
    level: Annotated[
        Level | None,
        typer.Option(
            help="What is compared. Whole images for --image alone, else regions.", show_default=False
        ),
    ] = None,
    min_score: MinScore = None,
    cutoff: Cutoff = None,
    keep_weak: All = False,
    without: Annotated[list[str] | None, typer.Option(help="Words to exclude; may be repeated.")] = None,
    unlike: Annotated[
        list[str] | None,
        typer.Option(metavar="ID", help="A region, or image, to exclude, by its id; may be repeated."),
    ] = None,
    tag: Tags = None,
    where: Where = None,
    per_image: Annotated[bool, typer.Option("--per-image", "--images", help="One hit per image.")] = False,
    all_phrases: Annotated[
        bool, typer.Option("--all-phrases", help="Only images in which every phrase is found.")
    ] = False,
    fold: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            help="Fold near duplicates, such as bursts: hits at least this similar (cosine) to a better one.",
        ),
    ] = None,
    diversity: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Diversify hits: the weight of similarity to earlier ones."),
    ] = None,
    codes_only: Annotated[
        bool, typer.Option("--codes-only", help="Compare binary codes and nothing else (see `codes train`).")
    ] = False,
    save: Save = None,
    open_it: Open = False,
    as_json: AsJson = False,
    url: Url = URL,
    api_key: ApiKey = None,
) -> None:
    """Find things by words, by an image, by a region, or by all of these together."""
    if not words and image is None and not region:
        raise invalid("words", "say what to look for: words, --image FILE, or --region ID")
    check_target(save)
    by_image = per_image or all_phrases
    include: list[SearchInclude] = ["weak"]
    if by_image:
        include.append("others")
    if save is not None or open_it:
        include.append("mask")
    with connect(url, api_key) as client, naming(image):
        result = client.search(
            phrases_of(words),
            collection,
            image=image,
            region_ids=[one for one in region or () if not IMAGE_ID.fullmatch(one)],
            image_ids=[one for one in region or () if IMAGE_ID.fullmatch(one)],
            negatives=[*(without or ()), *map(_unlike, unlike or ())],
            level=None if level is None else level.value,
            group_by="image" if by_image else None,
            filter=filter_of(tag, where),
            min_score=min_score,
            relative_cutoff=cutoff,
            page_size=limit,
            all_phrases=all_phrases,
            fold_similarity=fold,
            diversity=diversity,
            codes_only=codes_only,
            include=include,
        )
        _warn_of_cuts(result)
        keep_weak |= min_score is not None or cutoff is not None
        hits = [hit for hit in result if keep_weak or hit.confident is not False]
        if as_json:
            typer.echo(json.dumps([hit.model_dump() for hit in hits], indent=1))
        else:
            weaker = len(result) - len(hits)
            if hits:
                _print_hits(hits, several=len(phrases_of(words)) > 1)
            else:
                asked = ", ".join(phrases_of(words))
                typer.echo(f"no confident match for {asked}" if weaker else "nothing was found")
            if weaker == 1:
                tell("1 weaker match: --all shows it")
            elif weaker:
                tell(f"{weaker} weaker matches: --all shows them")
            if hits and hits[0].region_id:
                here = "" if collection == COLLECTION else f" -c {collection}"
                there = "" if url == URL else f" --url {url}"
                tell(
                    f"more like the first: regionsearch search --region {hits[0].region_id}{here}{there}",
                    style="dim",
                )
        if hits and (save is not None or open_it):
            from regionsearch.client.drawing import outline

            best = hits[0]
            _show(outline(client.content(best.image_id, collection), best), save, open_it)


def _unlike(identity: str) -> NegativeExample:
    from regionsearch.client import NegativeExample

    if IMAGE_ID.fullmatch(identity):
        return NegativeExample(image_id=identity)
    return NegativeExample(region_id=identity)


def filter_of(tags: list[str] | None, where: list[str] | None) -> dict[str, Any] | None:
    """The filter of a command, None for none.

    Raises:
        RegionSearchError: INVALID_ARGUMENT for a condition that is not a JSON object.
    """
    try:
        conditions = [json.loads(text) for text in where or ()]
    except ValueError as error:
        raise invalid("where", f"--where must be JSON: {error}") from error
    if not all(isinstance(condition, dict) for condition in conditions):
        raise invalid("where", '--where must be a JSON object, such as {"attribute": "price"}')
    chosen = {"tags": tags, "conditions": conditions}
    return {name: value for name, value in chosen.items() if value} or None


def within(
    image: Annotated[
        str, typer.Argument(metavar="IMAGE", help="The image: a file, or the id of a stored one.")
    ],
    words: Annotated[list[str], typer.Argument(help="What to look for; commas separate several phrases.")],
    collection: CollectionName = COLLECTION,
    min_score: MinScore = None,
    cutoff: Cutoff = None,
    keep_weak: Annotated[bool, typer.Option("--all", help="All regions, best first.")] = False,
    find_by: Annotated[
        Finder | None,
        typer.Option(
            help="embedder compares all regions; segmenter, such as SAM 3, finds the phrases itself: the "
            "default where it can, for a file without --min-score and --cutoff."
        ),
    ] = None,
    save: Save = None,
    open_it: Open = False,
    as_json: AsJson = False,
    url: Url = URL,
    api_key: ApiKey = None,
) -> None:
    """Find things inside one image; a file is searched without being stored."""
    check_target(save)
    path = Path(image) if Path(image).is_file() else None
    if path is None and not IMAGE_ID.fullmatch(image):
        raise invalid("image", f"{image} is neither a file nor the id of an image, 64 hexadecimal digits")
    image_id = None if path else image
    phrases = phrases_of(words)
    with connect(url, api_key) as client, naming(path):
        found = client.within(
            phrases,
            image=path,
            image_id=image_id,
            collection=collection,
            min_score=min_score,
            relative_cutoff=cutoff,
            find_by=None if find_by is None else find_by.value,
        )
        _warn_of_cuts(found)
        shown = found.regions if keep_weak else found.hits
        if as_json:
            typer.echo(found.model_dump_json(indent=1))
        elif shown:
            rows = [
                (hit.label, f"{hit.score:.3f}", strength(hit.confident), _place(hit.box), str(hit.area))
                for hit in shown
            ]
            print_table(("phrase", "score", "match", "box", "area"), rows)
        else:
            console.print("nothing was found")
        if not (as_json or keep_weak) and (rest := len(found.regions) - len(shown)):
            tell(f"{rest} other {'region' if rest == 1 else 'regions'}: --all shows them")
        if save is not None or open_it:
            drawn = client.render(
                phrases,
                image=path,
                image_id=image_id,
                collection=collection,
                min_score=min_score,
                relative_cutoff=cutoff,
                find_by=None if find_by is None else find_by.value,
            )
            _show(drawn, save, open_it)


def phrases_of(words: Sequence[str] | None) -> list[str]:
    """The phrases of a command's words: commas separate them, as on the page."""
    return [phrase for one in " ".join(words or ()).split(",") if (phrase := one.strip())]


@contextlib.contextmanager
def naming(path: Path | None) -> Iterator[None]:
    """Names the file in errors about the image that was sent."""
    try:
        yield
    except RegionSearchError as error:
        if path is not None and error.field and "image" in error.field and str(path) not in error.message:
            error.message = of_file(path, error.message)
        raise


def strength(confident: bool | None) -> str:
    """A match in a word; empty where it is not judged."""
    return "" if confident is None else "confident" if confident else "weak"


def _warn_of_cuts(result: SearchResult | WithinResult) -> None:
    if any(result.truncated):
        tell("the query is longer than the model reads: its end was ignored", style="yellow")


def _print_hits(hits: Sequence[Hit], several: bool) -> None:
    rows = []
    for hit in hits:
        found = [one.label or "" for one in (hit, *hit.others)] if several else []
        place = _place(hit.box) if hit.region_id else "whole image"
        place += f" (+{hit.folded_count} alike)" if hit.folded_count else ""
        cells = [str(hit.rank), f"{hit.score:.3f}", strength(hit.confident), hit.image.name, place]
        rows.append([*cells, ", ".join(found)] if several else cells)
    print_table(["", "score", "match", "image", "box", *(["phrases"] if several else [])], rows)


def _place(box: Box) -> str:
    return f"{box.x_min:.0f},{box.y_min:.0f} – {box.x_max:.0f},{box.y_max:.0f}"


def _show(picture: bytes, save: Path | None, open_it: bool) -> None:
    target = save or Path("found.png")
    write_file(target, picture)
    tell(f"wrote {target}")
    if open_it and typer.launch(str(target)):
        tell("no program here shows images; open the file yourself")
