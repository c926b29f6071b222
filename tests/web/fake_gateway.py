"""The gateway's HTTP API as the page uses it, with drawn pictures and answers that never change.

`python -m tests.web.fake_gateway` serves it for work on the page without models.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import sys
import threading
import time
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.types import ASGIApp, Receive, Send
from starlette.types import Scope as Scope_

from gateway.http.page import PageFiles, page
from gateway.render import thumbnail
from regionsearch.images import EncodedImage
from regionsearch.masks import encode_rle
from tests.web.scenes import Scene, Thing, library, scene

STAGES = ("received", "segmenting", "embedding", "storing", "done")
LONGEST_PHRASE = 200
UPLOADED = [("red", "circle", (100, 60, 260, 220)), ("green", "square", (330, 120, 450, 260))]


class FakeGateway:
    """Pictures in memory; a phrase finds the things whose names share words with it.

    Attributes:
        scenes: By image id, oldest first.
        ready: What /readyz says.
        detail: Why it is not ready.
        failure: When set, (status, problem document) of the next searches.
        page_size: Hits a page.
        images_page: Images a page.
        tags: Tags of images, by id.
        attributes: Attributes of images, by id.
        key: When set, the API key that every call of the API needs.
        scopes: What the key allows, as the page is told.
        names: Names of the collections; all but `default` are empty.
        cut: Whether the connection of an upload breaks in the middle.
        variant: Variant of the models.
        cut_off: From which score on hits are confident; None for a model that is not calibrated.
        ambiguous: Whether a click may mean all things of a picture together, too.
    """

    def __init__(self) -> None:
        self.scenes: dict[str, Scene] = {}
        self.ready = True
        self.detail = "loading the model"
        self.failure: tuple[int, dict[str, Any]] | None = None
        self.page_size = 24
        self.images_page = 1000
        self.tags: dict[str, list[str]] = {}
        self.attributes: dict[str, dict[str, str]] = {}
        self.key: str | None = None
        self.scopes = ["admin", "delete", "search", "write"]
        self.names = ["default"]
        self.cut = False
        self.variant = "pocket"
        self.cut_off: float | None = None
        self.ambiguous = False
        self.requests: list[tuple[str, Any]] = []
        for one in library():
            self.put(one)
        self.app = Starlette(
            routes=[
                Route("/", self.index),
                Route("/readyz", self.readyz),
                Route("/v1/models", self.models),
                Route("/v1/access", self.access),
                Route("/v1/collections", self.collections, methods=["GET"]),
                Route("/v1/collections", self.create, methods=["POST"]),
                Route("/v1/collections/default/images", self.images, methods=["GET"]),
                Route("/v1/collections/default/images", self.ingest, methods=["POST"]),
                Route("/v1/collections/default/images/{id}", self.delete, methods=["DELETE"]),
                Route("/v1/collections/default/images/{id}", self.change, methods=["PATCH"]),
                Route("/v1/collections/default/images/{id}", self.image, methods=["GET"]),
                Route("/v1/collections/default/images/{id}/regions", self.regions),
                Route("/v1/collections/default/images/{id}/regions/{region}/crop.png", self.content),
                Route("/v1/collections/default/images/{id}/{kind:str}", self.content),
                Route("/v1/collections/default/search", self.search, methods=["POST"]),
                Route("/v1/collections/default/map", self.map, methods=["POST"]),
                Route("/v1/collections/{name}", self.collection, methods=["GET"]),
                Route("/v1/collections/{name}", self.delete_collection, methods=["DELETE"]),
                Route("/v1/collections/{name}/images", self.images_elsewhere),
                Route("/v1/collections/{name}/search", self.search_elsewhere, methods=["POST"]),
                Route("/v1/search-within", self.within, methods=["POST"]),
                Route("/v1/segment", self.segment, methods=["POST"]),
                Mount("/static", PageFiles()),
            ]
        )

    async def __call__(self, scope: Scope_, receive: Receive, send: Send) -> None:
        """The ASGI entry: refuses calls of the API without the key."""
        given = dict(scope.get("headers", ())).get(b"authorization", b"").decode()
        if self.key and scope.get("path", "").startswith("/v1/") and given != f"Bearer {self.key}":
            refusal = JSONResponse({"title": "API key required", "code": "UNAUTHENTICATED"}, 401)
            await refusal(scope, receive, send)
            return
        await self.app(scope, receive, send)

    def put(self, one: Scene) -> str:
        identity = hashlib.sha256(one.data).hexdigest()
        self.scenes[identity] = one
        return identity

    def id_of(self, name: str) -> str:
        return next(identity for identity, one in self.scenes.items() if one.name == name)

    async def index(self, request: Request) -> Response:
        return page()

    async def access(self, request: Request) -> Response:
        return JSONResponse({"scopes": self.scopes, "collections": None})

    async def models(self, request: Request) -> Response:
        return JSONResponse(
            {name: {"family": name, "variant": self.variant} for name in ("segmenter", "embedder")}
        )

    async def collections(self, request: Request) -> Response:
        model = {"family": "open_clip", "variant": self.variant, "weights_digest": "0" * 64}
        counts = {"default": (len(self.scenes), sum(1 + len(one.things) for one in self.scenes.values()))}
        found = [
            {"name": name, "model": model}
            | dict(zip(("image_count", "record_count"), counts.get(name, (0, 0)), strict=True))
            for name in self.names
        ]
        return JSONResponse({"collections": found, "next_page_token": ""})

    async def create(self, request: Request) -> Response:
        name = (await request.json())["name"]
        if name in self.names:
            return _problem(409, "ALREADY_EXISTS", f"There is a collection {name!r} already.")
        self.names.append(name)
        return JSONResponse({"name": name}, 201)

    async def collection(self, request: Request) -> Response:
        name = request.path_params["name"]
        return JSONResponse({"name": name}) if name in self.names else _no_collection(name)

    async def delete_collection(self, request: Request) -> Response:
        self.names.remove(request.path_params["name"])
        return Response(status_code=204)

    async def images_elsewhere(self, request: Request) -> Response:
        name = request.path_params["name"]
        nothing = {"images": [], "next_page_token": "", "total_count": 0}
        return JSONResponse(nothing) if name in self.names else _no_collection(name)

    async def search_elsewhere(self, request: Request) -> Response:
        name = request.path_params["name"]
        self.requests.append(("search elsewhere", await request.json()))
        nothing = {"hits": [], "next_page_token": "", "truncated": []}
        return JSONResponse(nothing) if name in self.names else _no_collection(name)

    async def readyz(self, request: Request) -> Response:
        services = {
            "segmenter": {"ready": self.ready, "detail": "serving" if self.ready else self.detail},
            "embedder": {"ready": True, "detail": "serving"},
            "searcher": {"ready": True, "detail": "serving"},
        }
        return JSONResponse({"ready": self.ready, "services": services}, 200 if self.ready else 503)

    async def images(self, request: Request) -> Response:
        found = [self._image(identity) for identity in reversed(self.scenes)]
        by, ascending = (request.query_params.get(name, "") for name in ("order_by", "ascending"))
        if text := request.query_params.get("filter", ""):
            wanted = json.loads(text)
            self.requests.append(("images", wanted))
            found = [image for image in found if set(image["tags"]) & set(wanted.get("tags", image["tags"]))]
        if by == "name":
            found.sort(key=lambda image: image["name"])
        elif by.startswith("attributes."):
            name = by.removeprefix("attributes.")
            found.sort(key=lambda image: image["attributes"].get(name, ""), reverse=ascending != "true")
        elif ascending == "true":
            found.reverse()
        start, asked = int(request.query_params["page_token"] or 0), int(request.query_params["page_size"])
        end = start + (self.images_page if asked == 40 else asked)
        token = str(end) if end < len(found) else ""
        answer = {"images": found[start:end], "next_page_token": token, "total_count": len(found)}
        return JSONResponse(answer)

    async def change(self, request: Request) -> Response:
        identity, change = request.path_params["id"], await request.json()
        self.requests.append(("change", change))
        kept = [tag for tag in self.tags.get(identity, []) if tag not in change.get("remove_tags", [])]
        self.tags[identity] = kept + [tag for tag in change.get("add_tags", []) if tag not in kept]
        attributes = {**self.attributes.get(identity, {}), **change.get("attributes", {})}
        self.attributes[identity] = {name: value for name, value in attributes.items() if value is not None}
        return JSONResponse(self._image(identity))

    async def image(self, request: Request) -> Response:
        return JSONResponse(self._image(request.path_params["id"]))

    def _image(self, identity: str) -> dict[str, Any]:
        return _image(identity, self.scenes[identity]) | {
            "tags": self.tags.get(identity, []),
            "attributes": self.attributes.get(identity, {}),
        }

    async def ingest(self, request: Request) -> Response:
        async with request.form() as form:
            file = form["files"]
            assert not isinstance(file, str)
            name, data = file.filename or "", await file.read()
            identity = hashlib.sha256(data).hexdigest()
            if said := [tag for tag in form.getlist("tags") if isinstance(tag, str)]:
                self.tags[identity] = said
            if isinstance(facts := form.get("attributes"), str):
                self.attributes[identity] = json.loads(facts)

        async def events() -> AsyncIterator[str]:
            for stage in STAGES:
                yield _event("progress", {"index": 0, "name": name, "stage": stage})
                await asyncio.sleep(0.08)
                if self.cut:
                    raise ConnectionError("cut off, as asked")
            yield _event("result", {"index": 0, "name": name, **self._take(name, data)})
            yield _event("done", {"results": []})

        return StreamingResponse(events(), media_type="text/event-stream")

    def _take(self, name: str, data: bytes) -> dict[str, Any]:
        if not data.startswith((b"\x89PNG", b"\xff\xd8")):
            return {
                "outcome": "failed",
                "error": {"code": "UNSUPPORTED_IMAGE", "detail": "image.encoded is not a picture."},
            }
        identity = hashlib.sha256(data).hexdigest()
        if identity in self.scenes:
            return {"outcome": "duplicate", "image_id": identity, "regions": 2}
        drawn = scene(name, 520, 340, UPLOADED)
        self.scenes[identity] = Scene(name, data, 520, 340, drawn.things)
        return {"outcome": "created", "image_id": identity, "regions": 2}

    async def delete(self, request: Request) -> Response:
        del self.scenes[request.path_params["id"]]
        return Response(status_code=204)

    async def content(self, request: Request) -> Response:
        if request.path_params["id"] not in self.scenes:
            return _problem(404, "NOT_FOUND", "there is no such image")
        data = self.scenes[request.path_params["id"]].data
        if request.path_params.get("kind") == "thumbnail" and _content_type(data) == "image/webp":
            with EncodedImage(data) as image:
                small = thumbnail(image, int(request.query_params["width"]))
            return Response(small, media_type="image/webp")
        return Response(data, media_type=_content_type(data))

    async def regions(self, request: Request) -> Response:
        identity = request.path_params["id"]
        if identity not in self.scenes:
            return _problem(404, "NOT_FOUND", "there is no such image")
        one = self.scenes[identity]
        regions = [_region(thing, f"{identity}-r{i:03d}") for i, thing in enumerate(one.things)]
        if request.query_params.get("format") == "coco":
            wanted = request.query_params.get("region_id")
            return JSONResponse(_coco([r for r in regions if wanted in (None, r["region_id"])]))
        return JSONResponse({"image": self._image(identity), "regions": regions})

    async def search(self, request: Request) -> Response:
        body = await request.json()
        self.requests.append(("search", body))
        if self.failure:
            return JSONResponse(self.failure[1], self.failure[0], media_type="application/problem+json")
        query = body["query"]
        phrases = query.get("texts") or [query["text"]] if "text" in query or "texts" in query else []
        wanted = phrases or [self._example(query)]
        hits = []
        for identity, one in self.scenes.items():
            for i, thing in enumerate(one.things):
                scores = [_alike(phrase, thing.name) for phrase in wanted]
                best = int(np.argmax(scores))
                image = {"width": one.width, "height": one.height, "name": one.name, "tags": []}
                hit = _region(thing, f"{identity}-r{i:03d}") | {"score": scores[best], "image_id": identity}
                hit |= {"level": "region", "image": image, "text_index": best if phrases else None}
                hits.append(hit | {"label": phrases[best] if phrases else None, "best_region": None})
        hits.sort(key=lambda hit: -hit["score"])
        for hit in hits:
            hit["confident"] = None if self.cut_off is None else hit["score"] >= self.cut_off
        if body["group_by"] == "image":
            first: dict[str, dict[str, Any]] = {}
            for hit in hits:
                best = first.setdefault(hit["image_id"], hit | {"others": []})
                known = {one["text_index"] for one in (best, *best["others"])}
                if hit["text_index"] not in known and hit["confident"] is not False:
                    best["others"].append(hit)
            hits = list(first.values())
            if body["all_phrases"]:
                hits = [hit for hit in hits if len(hit["others"]) + 1 == len(phrases)]
        example = query.keys() & {"image", "image_id"} and not query.keys() & {"region_id", "points", "box"}
        if body["level"] == "image" or (body["level"] is None and example):
            same = query.get("image_id")
            scores = {hit["image_id"]: max(hit["score"], float(hit["image_id"] == same)) for hit in hits}
            hits = [hit | {"level": "image", "region_id": None, "label": None} for hit in hits]
            hits = sorted(
                (hit | {"score": scores[hit["image_id"]], "confident": None} for hit in hits),
                key=lambda hit: -hit["score"],
            )
        unlike = {one["region_id"] for one in body["negatives"] if isinstance(one, dict)}
        hits = [hit for hit in hits if hit["region_id"] not in unlike]
        if only := body["filter"].get("image_ids"):
            hits = [hit for hit in hits if hit["image_id"] in only]
        hits = [hit for hit in hits if hit["score"] >= (body["min_score"] or -1)]
        if "weak" not in body["include"]:
            hits = [hit for hit in hits if hit["confident"] is not False]
        if request.query_params.get("format") == "coco":
            return JSONResponse(_coco(hits[: body["page_size"]]))
        start = int(body.get("page_token") or 0)
        end = start + (self.page_size if body["page_size"] == 24 else body["page_size"])
        page = [hit | {"rank": start + i + 1} for i, hit in enumerate(hits[start:end])]
        answer = {"hits": page, "next_page_token": str(end) if end < len(hits) else "", "seq": 1}
        answer["cut_off"] = self.cut_off
        return JSONResponse(answer | {"truncated": [len(phrase) > LONGEST_PHRASE for phrase in phrases]})

    def _example(self, query: dict[str, Any]) -> str:
        if "region_id" in query:
            identity, _, index = query["region_id"].rpartition("-r")
            return self.scenes[identity].things[int(index)].name
        if "image" in query:
            assert base64.b64decode(query["image"])
            return self._thing(query).name if query.get("points") or query.get("box") else "red circle"
        pointed = query.get("points") or query.get("box")
        return (self._thing(query) if pointed else self.scenes[query["image_id"]].things[0]).name

    def _thing(self, prompt: dict[str, Any]) -> Thing:
        """What is pointed at: in a stored picture, or in the one that is always uploaded."""
        own = scene("own", 520, 340, UPLOADED)
        things = (self.scenes[prompt["image_id"]] if "image_id" in prompt else own).things
        if prompt.get("box"):
            box = prompt["box"]
            x, y = (box["x_min"] + box["x_max"]) / 2, (box["y_min"] + box["y_max"]) / 2
        else:
            x, y = prompt["points"][0]["x"], prompt["points"][0]["y"]
        return min(things, key=lambda thing: np.hypot(thing.centre[0] - x, thing.centre[1] - y))

    async def map(self, request: Request) -> Response:
        """Circles at the left, squares at the right, one above the other."""
        self.requests.append(("map", await request.json()))
        points = []
        for row, (identity, one) in enumerate(self.scenes.items()):
            for index, thing in enumerate(one.things):
                edges = dict(zip(("x_min", "y_min", "x_max", "y_max"), thing.box, strict=True))
                x = (0.1 if "circle" in thing.name else 0.8) + 0.02 * index
                place = {"x": x, "y": (row + 0.5) / len(self.scenes), "box": edges}
                points.append({"region_id": f"{identity}-r{index:03d}", "image_id": identity} | place)
        images = [self._image(identity) for identity in self.scenes]
        return JSONResponse({"points": points, "images": images, "truncated": False})

    async def within(self, request: Request) -> Response:
        body = await request.json()
        one = self.scenes[body["image_id"]]
        regions = []
        for i, thing in enumerate(one.things):
            scores = [_alike(text, thing.name) for text in body["texts"]]
            best = int(np.argmax(scores))
            region = _region(thing, f"{body['image_id']}-r{i:03d}")
            regions.append(region | {"score": scores[best], "label": body["texts"][best], "text_index": best})
        regions.sort(key=lambda region: -region["score"])
        bests: dict[int, float] = {}
        for region in regions:
            best = bests.setdefault(region["text_index"], region["score"])
            region["is_hit"] = region["score"] >= (best if self.cut_off is None else self.cut_off)
        truncated = [len(text) > LONGEST_PHRASE for text in body["texts"]]
        answer = {"width": one.width, "height": one.height, "regions": regions, "truncated": truncated}
        return JSONResponse(answer)

    async def segment(self, request: Request) -> Response:
        body = await request.json()
        self.requests.append(("segment", body))
        candidate = _region(self._thing(body), None)
        if request.query_params.get("format") == "coco":
            return JSONResponse(_coco([candidate]))
        candidates = [candidate]
        if self.ambiguous and body.get("multimask"):
            masks = [thing.mask for thing in self.scenes[body["image_id"]].things]
            candidates.append(_region(Thing("all", np.logical_or.reduce(masks)), None))
        return JSONResponse({"results": [{"candidates": candidates}], "regions": []})


def _problem(status: int, code: str, detail: str) -> JSONResponse:
    return JSONResponse({"title": detail, "code": code, "detail": detail}, status)


def _no_collection(name: str) -> JSONResponse:
    return _problem(404, "NOT_FOUND", f"there is no collection {name!r}: create it first")


def _event(event: str, data: dict[str, Any]) -> str:
    return f"event: {event}\ndata: {json.dumps(data)}\n\n"


def _alike(phrase: str, name: str) -> float:
    """A score like a cosine: more for each word in common."""
    return round(0.12 + 0.11 * len(set(phrase.lower().split()) & set(name.split())), 3)


def _image(identity: str, one: Scene) -> dict[str, Any]:
    facts = {"image_id": identity, "name": one.name, "width": one.width, "height": one.height, "tags": []}
    facts |= {"region_count": len(one.things), "size_bytes": len(one.data)}
    return facts | {"content_type": _content_type(one.data)}


def _content_type(data: bytes) -> str:
    kinds = {b"\x89PNG": "image/png", b"RIFF": "image/webp"}
    return kinds.get(data[:4], "image/jpeg")


def _region(thing: Thing, region_id: str | None) -> dict[str, Any]:
    box = dict(zip(("x_min", "y_min", "x_max", "y_max"), thing.box, strict=True))
    mask = {"size": list(thing.mask.shape), "counts": encode_rle(thing.mask)}
    scores = {"predicted_iou": 0.97, "stability_score": 0.98}
    return {"region_id": region_id, "box": box, "mask": mask, "area": int(thing.mask.sum()), **scores}


def _coco(regions: list[dict[str, Any]]) -> dict[str, Any]:
    """Just enough of a COCO document to tell what was asked for."""
    annotations = [
        {
            "bbox": _coco_box(one["box"]),
            "segmentation": one["mask"],
            "region_id": one["region_id"],
            "iscrowd": 0,
        }
        for one in regions
    ]
    return {"info": {}, "images": [], "categories": [], "annotations": annotations}


def _coco_box(box: dict[str, float]) -> list[float]:
    return [box["x_min"], box["y_min"], box["x_max"] - box["x_min"], box["y_max"] - box["y_min"]]


class Server:
    """A fake gateway that listens on a port of the system's choice."""

    def __init__(self, gateway: ASGIApp, port: int = 0) -> None:
        config = uvicorn.Config(gateway, host="127.0.0.1", port=port, log_level="warning")
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, daemon=True)

    def __enter__(self) -> str:
        self._thread.start()
        while not self._server.started:
            time.sleep(0.01)
        port = self._server.servers[0].sockets[0].getsockname()[1]
        return f"http://127.0.0.1:{port}"

    def __exit__(self, *error: object) -> None:
        self._server.should_exit = True
        self._thread.join(timeout=10)


if __name__ == "__main__":
    with Server(FakeGateway(), int(sys.argv[1]) if len(sys.argv) > 1 else 0) as url:
        print(url, flush=True)
        threading.Event().wait()
