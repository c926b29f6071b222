"""`regionsearch mcp`: a collection as tools of an assistant, over the Model Context Protocol."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from importlib import metadata
from typing import Annotated, Any, ParamSpec, TypeVar

from mcp.server import MCPServer
from mcp.server.mcpserver import Image
from mcp.server.mcpserver.exceptions import ToolError
from pydantic import Field

from regionsearch import defaults
from regionsearch.client import Client
from regionsearch.errors import RegionSearchError, invalid
from regionsearch.image_files import find_images
from regionsearch.schemas.responses.regions import Region
from regionsearch.schemas.responses.searches import Hit, ScoredRegion
from regionsearch.schemas.responses.values import Box

P = ParamSpec("P")
T = TypeVar("T")

INSTRUCTIONS = (
    "Finds objects in a collection of images. Search for what something looks like, in a few words. Hits are "
    "regions of images, with boxes in pixels; `confident` false means a weak match. No hits is an answer too."
)

Collection = Annotated[str, Field(description="Name of the collection.")]
Phrases = Annotated[list[str], Field(description="What it looks like, each in a few words: 'red mug'.")]
ImageFile = Annotated[str | None, Field(description="Path of an image file on this machine.")]
ImageId = Annotated[str | None, Field(description="Id of a stored image.")]


def make_server(client: Client) -> MCPServer:
    """Makes the server with its tools.

    Args:
        client: A client of the gateway.
    """
    server = MCPServer(
        "regionsearch", instructions=INSTRUCTIONS, version=metadata.version("regionsearch"), log_level="ERROR"
    )

    def tool(function: Callable[P, T]) -> Callable[P, T]:
        @functools.wraps(function)
        def told(*args: P.args, **kwargs: P.kwargs) -> T:
            try:
                return function(*args, **kwargs)
            except RegionSearchError as error:
                raise ToolError(error.message) from error

        server.tool()(told)
        return told

    @tool
    def search(
        phrases: Phrases = [],  # noqa: B006
        image_file: ImageFile = None,
        region_id: Annotated[str | None, Field(description="A region: more like this.")] = None,
        collection: Collection = defaults.COLLECTION,
        limit: Annotated[int, Field(ge=1, le=100)] = 10,
        include_weak: Annotated[bool, Field(description="Also weak matches.")] = False,
    ) -> list[dict[str, Any]]:
        """Finds objects by words, by an image file, or by a region that was found before."""
        found = client.search(
            phrases,
            collection,
            image=image_file,
            region_id=region_id,
            page_size=limit,
            include=["weak"] if include_weak else [],
        )
        return [_hit(hit) for hit in found]

    @tool
    def search_within(
        phrases: Phrases,
        image_id: ImageId = None,
        image_file: ImageFile = None,
        collection: Collection = defaults.COLLECTION,
    ) -> list[dict[str, Any]]:
        """Finds objects inside one image, stored or on this machine."""
        found = client.within(phrases, image=image_file, image_id=image_id, collection=collection, include=[])
        return [_region(region) | {"label": region.label, "score": region.score} for region in found.hits]

    @tool
    def segment(
        image_id: ImageId = None,
        image_file: ImageFile = None,
        x: Annotated[
            float | None, Field(description="Pixels from the left; with y: the object there.")
        ] = None,
        y: Annotated[float | None, Field(description="Pixels from the top.")] = None,
        collection: Collection = defaults.COLLECTION,
    ) -> list[dict[str, Any]]:
        """The regions of an image, or the object at one point of it."""
        if (x is None) != (y is None):
            raise invalid("x", "a point is x and y: give both, or neither")
        points = [] if x is None or y is None else [(x, y)]
        found = client.segment(image=image_file, image_id=image_id, collection=collection, points=points)
        regions: Sequence[Region] = [
            one.candidates[0] for one in found.results if one.candidates
        ] or found.regions
        return [_region(region) for region in regions]

    @tool
    def ingest(
        paths: Annotated[list[str], Field(description="Image files or folders on this machine.")],
        collection: Collection = defaults.COLLECTION,
        tags: Annotated[list[str], Field(description="Put on each image.")] = [],  # noqa: B006
    ) -> list[dict[str, Any]]:
        """Adds images to the collection; what is there already is a duplicate."""
        results = client.ingest(find_images(paths).named(), collection, tags=tags)
        return [result.model_dump(exclude_none=True) for result in results]

    @tool
    def list_collections() -> list[dict[str, Any]]:
        """The collections, with how many images they hold."""
        return [{"name": one.name, "images": one.image_count} for one in client.collections()]

    @tool
    def list_images(
        collection: Collection = defaults.COLLECTION,
        limit: Annotated[int, Field(ge=1, le=500)] = 50,
        page_token: Annotated[str, Field(description="From an earlier answer.")] = "",
    ) -> dict[str, Any]:
        """Images of a collection, newest first."""
        page = client.list_images(collection, page_size=limit, page_token=page_token)
        images = [
            {"image_id": one.image_id, "name": one.name, "tags": one.tags, "regions": one.region_count}
            for one in page.images
        ]
        return {"images": images, "next_page_token": page.next_page_token, "total": page.total_count}

    @tool
    def show_image(
        image_id: Annotated[str, Field(description="Id of a stored image.")],
        collection: Collection = defaults.COLLECTION,
    ) -> Image:
        """A stored image to look at, at most 768 pixels wide or high."""
        return Image(data=client.thumbnail(image_id, collection, width=768), format="webp")

    return server


def _hit(hit: Hit) -> dict[str, Any]:
    return {
        "image_id": hit.image_id,
        "image": hit.image.name,
        "region_id": hit.region_id,
        "label": hit.label,
        "score": hit.score,
        "confident": hit.confident,
        "box": _box(hit.box),
    }


def _region(region: Region | ScoredRegion) -> dict[str, Any]:
    return {"region_id": region.region_id, "box": _box(region.box), "area": region.area}


def _box(box: Box) -> dict[str, float]:
    return box.model_dump()
