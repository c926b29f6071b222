"""A gateway of a few lines, over HTTP and gRPC, that remembers what it was asked."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import grpc
from google.protobuf.message import Message
from google.rpc import status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc

from regionsearch.errors import Kind, RegionSearchError, to_status
from regionsearch.v1 import region_search_pb2 as pb
from regionsearch.v1 import region_search_pb2_grpc, search_pb2, types_pb2

MASK = {"size": [2, 3], "counts": "132"}  # column by column: one pixel off, three on, two off
MODEL = {"family": "open_clip", "variant": "tiny", "weights_digest": "d", "dimension": 4}
BOX = {"x_min": 0.0, "y_min": 0.0, "x_max": 2.0, "y_max": 2.0}
STATUS = {Kind.OVERLOADED: 429, Kind.UNAVAILABLE: 503, Kind.PERMISSION_DENIED: 403, Kind.NOT_FOUND: 404}
PAGES = {"": (("a", "b"), "next"), "next": (("c",), "")}


@dataclass
class FakeGateway:
    """What it was asked, and what it is to answer instead of the usual.

    Attributes:
        requests: (method, path, query or body) over HTTP; messages over gRPC.
        failures: Errors to answer with, one for each coming request; None for the usual answer.
        lost: Keys of a stream's requests that never arrive the first time.
        confident: Whether each hit of a search is confident; None for one hit that is not judged.
        pages: Number of pages of a search.
    """

    http: str = ""
    grpc: str = ""
    requests: list[Any] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    failures: list[RegionSearchError | None] = field(default_factory=list)
    lost: set[str] = field(default_factory=set)
    known: set[str] = field(default_factory=set)
    truncated: list[bool] = field(default_factory=list)
    tags: dict[str, list[str]] = field(default_factory=dict)
    confident: list[bool] | None = None
    pages: int = 1
    everything: list[Any] = field(default_factory=list)  # options of everything mode in forms
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, data: bytes) -> tuple[str, str]:
        """Outcome and id of an image; whatever begins with `bad` is none."""
        if data.startswith(b"bad"):
            raise RegionSearchError(Kind.UNSUPPORTED_IMAGE, "image is not an image", field="image")
        identity = hashlib.sha256(data).hexdigest()
        with self.lock:
            new = identity not in self.known
            self.known.add(identity)
        return ("created" if new else "duplicate"), identity

    def stored(self, identity: str) -> dict[str, Any]:
        """What is known about an image that was added."""
        return {"image_id": identity, "tags": self.tags.get(identity, [])}

    def update(self, identity: str, change: dict[str, Any]) -> dict[str, Any]:
        """Adds tags to an image."""
        if identity not in self.known:
            raise RegionSearchError(Kind.NOT_FOUND, "there is no such image", field="image_id")
        self.tags.setdefault(identity, []).extend(change["add_tags"])
        return self.stored(identity)

    def fail(self) -> None:
        with self.lock:
            failure = self.failures.pop(0) if self.failures else None
        if failure is not None:
            raise failure


def problem(error: RegionSearchError) -> dict[str, Any]:
    document: dict[str, Any] = {"code": error.kind.value, "detail": error.message}
    if error.field:
        document["errors"] = [{"pointer": f"/{error.field.replace('.', '/')}", "detail": error.message}]
    if error.retry_after_s is not None:
        document["retry_after_s"] = error.retry_after_s
    return document


def image_json(name: str) -> dict[str, Any]:
    return {
        "image_id": name * 64, "name": name, "width": 3, "height": 2, "content_type": "image/png",
        "size_bytes": 9, "tags": ["t"], "created_at": "2026-01-01T00:00:00Z", "region_count": 1,
        "attributes": {},
    }  # fmt: skip


def hit_json(label: str | None) -> dict[str, Any]:
    return {
        "rank": 1, "score": 0.5, "image_id": "a" * 64, "region_id": "r1", "level": "region", "box": BOX,
        "mask": MASK, "area": 3, "label": label, "added_by_a_newer_server": 1,
        "image": {"width": 3, "height": 2, "name": "a", "tags": ["t"]},
    }  # fmt: skip


class HttpHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    gateway: FakeGateway

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self._answer(b"")

    def do_DELETE(self) -> None:
        self._answer(b"")

    def do_PATCH(self) -> None:
        self.do_POST()

    def do_POST(self) -> None:
        self._answer(self.rfile.read(int(self.headers["Content-Length"])))

    def _answer(self, body: bytes) -> None:
        self.gateway.headers.append({name.lower(): value for name, value in self.headers.items()})
        try:
            self.gateway.fail()
            status, answer = self._route(body)
        except RegionSearchError as error:
            status, answer = (
                (503 if error.kind is Kind.UNAVAILABLE else 429 if error.retry_after_s else 400),
                (problem(error)),
            )
        data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _route(self, body: bytes) -> tuple[int, Any]:
        path, _, query = self.path.partition("?")
        multipart = self.headers.get("Content-Type", "").startswith("multipart")
        asked: Any = query if multipart or not body else json.loads(body)
        self.gateway.requests.append((self.command, path, asked))
        match self.command, path.split("/")[-1]:
            case "GET", "readyz":
                return 200, {"ready": True, "services": {}}
            case "POST", "images":
                if options := re.search(rb'name="everything"\r\n\r\n([^\r]*)', body):
                    self.gateway.everything.append(json.loads(options[1]))
                name = re.search(rb'filename="([^"]*)"', body)
                start = body.index(b"\r\n\r\n", body.index(b"filename")) + 4
                data = body[start : body.index(b"\r\n--", start)]
                result: dict[str, Any] = {"name": name[1].decode() if name else ""}
                try:
                    outcome, identity = self.gateway.add(data)
                except RegionSearchError as error:
                    return 200, {"results": [result | {"outcome": "failed", "error": problem(error)}]}
                result |= {"outcome": outcome, "image_id": identity, "regions": 1, "seq": 7}
                return 200, {"results": [result]}
            case "POST", "images:check":
                images = [image_json("k") | self.gateway.stored(one) for one in asked["image_ids"]
                          if one in self.gateway.known]  # fmt: skip
                return 200, {"images": images}
            case "PATCH", identity:
                return 200, image_json("k") | self.gateway.update(identity, asked) | {"seq": 9}
            case "POST", "collections":
                one = {"name": asked["name"], "model": MODEL, "created_at": "2026-01-01T00:00:00Z"}
                kept = {"everything": asked.get("everything")}
                return 201, one | {"image_count": 0, "record_count": 0} | kept
            case "GET", "collections":
                one = {"name": "default", "model": MODEL, "created_at": "2026-01-01T00:00:00Z"}
                one |= {"image_count": 3, "record_count": 9}
                return 200, {"collections": [one], "next_page_token": ""}
            case "GET", "regions":
                one = {"region_id": "r1", "box": BOX, "area": 3, "predicted_iou": 0.5, "stability_score": 0.5}
                return 200, {"image": image_json("a"), "regions": [one]}
            case "GET", name if len(name) == 64:
                return 200, image_json(name[0])
            case "GET", "images":
                names, token = PAGES["next" if "page_token=next" in query else ""]
                images = [image_json(name) for name in names]
                return 200, {"images": images, "next_page_token": token, "total_count": 3}
            case "POST", "search":
                texts = asked["query"]["texts"]
                if "format=coco" in query:
                    return 200, {"info": {}, "images": [], "categories": [], "annotations": []}
                hits = [
                    hit_json(texts[0] if texts else None) | {"rank": rank, "confident": confident}
                    for rank, confident in enumerate(self.gateway.confident or [None], start=1)
                ]
                page = int(asked.get("page_token") or 0) + 1
                token = str(page) if page < self.gateway.pages else ""
                return 200, {"hits": hits, "next_page_token": token, "seq": 7, "model": MODEL,
                             "truncated": self.gateway.truncated}  # fmt: skip
            case "POST", "search-within" if asked.get("render"):
                return 200, b"\x89PNG"
            case "POST", "search-within":
                region = {
                    "box": BOX, "mask": MASK, "area": 3, "predicted_iou": 0.5, "stability_score": 0.25,
                    "score": 0.5, "label": asked["texts"][0], "text_index": 0, "is_hit": True,
                }  # fmt: skip
                return 200, {"width": 3, "height": 2, "regions": [region], "union_mask": MASK,
                             "model": MODEL, "truncated": self.gateway.truncated}  # fmt: skip
            case "DELETE", _:
                return 204, b""
        raise RegionSearchError(Kind.NOT_FOUND, f"there is nothing at {path}", field="path")


class GrpcServicer(region_search_pb2_grpc.RegionSearchServiceServicer):
    def __init__(self, gateway: FakeGateway) -> None:
        self._gateway = gateway

    def _take(self, request: Message, context: Any) -> None:
        self._gateway.requests.append(request)
        self._gateway.headers.append(dict(context.invocation_metadata()))
        try:
            self._gateway.fail()
        except RegionSearchError as error:
            if error.kind is Kind.CANCELLED:  # as a server that stops
                context.abort(grpc.StatusCode.CANCELLED, error.message)
            context.abort_with_status(to_status(error))

    def IngestImage(self, request: Any, context: Any) -> pb.IngestImageResponse:
        self._take(request, context)
        try:
            outcome, identity = self._gateway.add(request.image.encoded)
        except RegionSearchError as error:
            context.abort_with_status(to_status(error))
        value = pb.IngestOutcome.Value(f"INGEST_OUTCOME_{outcome.upper()}")
        return pb.IngestImageResponse(outcome=value, image_id=identity, region_count=1, seq=7)

    def IngestImages(self, requests: Any, context: Any) -> Iterator[pb.IngestImagesResponse]:
        for request in requests:
            if request.key in self._gateway.lost:
                self._gateway.lost.remove(request.key)
                continue
            self._take(request, context)
            yield pb.IngestImagesResponse(key=request.key, stage=pb.INGEST_STAGE_SEGMENTING)
            done = pb.IngestImagesResponse(key=request.key, stage=pb.INGEST_STAGE_DONE)
            try:
                outcome, identity = self._gateway.add(request.request.image.encoded)
                value = pb.IngestOutcome.Value(f"INGEST_OUTCOME_{outcome.upper()}")
                done.response.MergeFrom(pb.IngestImageResponse(outcome=value, image_id=identity))
            except RegionSearchError as error:
                done.error.CopyFrom(rpc_status_of(error))
            yield done

    def ListImages(self, request: Any, context: Any) -> pb.RegionSearchServiceListImagesResponse:
        self._take(request, context)
        names, token = PAGES[request.page_token]
        images = []
        for name in names:
            image = search_pb2.StoredImage(
                image_id=name * 64, name=name, width=3, height=2, content_type="image/png", size_bytes=9,
                tags=["t"], region_count=1,
            )  # fmt: skip
            image.create_time.FromJsonString("2026-01-01T00:00:00Z")
            images.append(image)
        return pb.RegionSearchServiceListImagesResponse(images=images, next_page_token=token, total_count=3)

    def CheckImages(self, request: Any, context: Any) -> pb.CheckImagesResponse:
        self._take(request, context)
        known = [one for one in request.image_ids if one in self._gateway.known]
        images = [search_pb2.StoredImage(name="k", **self._gateway.stored(one)) for one in known]
        return pb.CheckImagesResponse(images=images)

    def UpdateImage(self, request: Any, context: Any) -> pb.UpdateImageResponse:
        self._take(request, context)
        try:
            image = self._gateway.update(request.update.image_id, {"add_tags": request.update.add_tags})
        except RegionSearchError as error:
            context.abort_with_status(to_status(error))
        return pb.UpdateImageResponse(image=search_pb2.StoredImage(name="k", **image), seq=9)

    def Search(self, request: Any, context: Any) -> pb.RegionSearchServiceSearchResponse:
        self._take(request, context)
        record = search_pb2.Record(
            record_id="r1", image_id="a" * 64, level=search_pb2.LEVEL_REGION, box=types_pb2.Box(**BOX),
            mask=types_pb2.Mask(height=2, width=3, coco_rle=MASK["counts"]), area=3,
        )  # fmt: skip
        image = search_pb2.StoredImage(name="a", width=3, height=2, tags=["t"])
        hit = search_pb2.Hit(rank=1, score=0.5, record=record, image=image)
        return pb.RegionSearchServiceSearchResponse(hits=[hit], seq=7, truncated=self._gateway.truncated)

    def SearchWithin(self, request: Any, context: Any) -> pb.SearchWithinResponse:
        self._take(request, context)
        mask = types_pb2.Mask(height=2, width=3, coco_rle=MASK["counts"])
        region = types_pb2.Region(
            box=types_pb2.Box(**BOX), mask=mask, area=3, predicted_iou=0.5, stability_score=0.25
        )
        scored = pb.ScoredRegion(region=region, score=0.5, is_hit=True)
        return pb.SearchWithinResponse(
            regions=[scored],
            union_mask=mask,
            image_height=2,
            image_width=3,
            truncated=self._gateway.truncated,
        )

    def DeleteImage(self, request: Any, context: Any) -> pb.DeleteImageResponse:
        self._take(request, context)
        return pb.DeleteImageResponse(seq=8)


def rpc_status_of(error: RegionSearchError) -> status_pb2.Status:
    trailing = dict(to_status(error).trailing_metadata or ())
    return status_pb2.Status.FromString(bytes(trailing["grpc-status-details-bin"]))


class Healthy(health_pb2_grpc.HealthServicer):
    def Check(self, request: Any, context: Any) -> health_pb2.HealthCheckResponse:
        return health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVING)


def serve_http(gateway: FakeGateway) -> ThreadingHTTPServer:
    handler = type("Handler", (HttpHandler,), {"gateway": gateway})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    gateway.http = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}).start()
    return server


def serve_grpc(gateway: FakeGateway) -> grpc.Server:
    server = grpc.server(ThreadPoolExecutor(8))
    region_search_pb2_grpc.add_RegionSearchServiceServicer_to_server(GrpcServicer(gateway), server)
    health_pb2_grpc.add_HealthServicer_to_server(Healthy(), server)
    gateway.grpc = f"grpc://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    return server
