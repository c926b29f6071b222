"""Collections."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse, Response

from gateway.core import Gateway
from gateway.http.access import needs
from gateway.http.body_parser import read_body
from gateway.http.conditional import json_with_etag
from gateway.http.openapi import body_of
from gateway.rights import Scope
from gateway.settings import crop_policy_value
from regionsearch.rpc.calls import deadline
from regionsearch.schemas.requests.records import CollectionBody, Page, ReindexBody, TrainCodesBody
from regionsearch.schemas.responses.records import Collection, CollectionPage, Reindex


def router(gateway: Gateway) -> APIRouter:
    """The routes of collections."""
    routes = APIRouter(prefix="/v1/collections", tags=["collections"])
    catalog = gateway.catalog
    read, admin = [needs(gateway, Scope.SEARCH)], [needs(gateway, Scope.ADMIN)]

    @routes.post(
        "",
        summary="Make a collection",
        status_code=201,
        response_model=Collection,
        dependencies=admin,
        openapi_extra=body_of(CollectionBody, {"name": "holiday"}),
    )
    async def create_collection(request: Request) -> Response:
        """For the model that the embedder serves now; writes and queries of another one are refused."""
        body = await read_body(request, CollectionBody, gateway.settings.limits)
        codes = None if body.binary_codes is None else body.binary_codes.to_proto()
        everything = None if body.everything is None else body.everything.to_proto()
        features = None if body.segment_features is None else body.segment_features.to_proto()
        policy = crop_policy_value(body.crop_policy)
        made = await catalog.create(
            body.name, policy, codes, everything, features, recall_target=body.recall_target or 0.0
        )
        location = f"{request.url.path}/{made.name}"
        return JSONResponse(Collection.from_proto(made).model_dump(), 201, {"Location": location})

    @routes.get("", summary="List collections", response_model=CollectionPage, dependencies=read)
    async def list_collections(request: Request, page: Annotated[Page, Query()]) -> Response:
        """By name."""
        found = await catalog.list(page.page_size, page.page_token)
        return json_with_etag(request, CollectionPage.from_proto(found).model_dump())

    @routes.get("/{collection}", summary="A collection", response_model=Collection, dependencies=read)
    async def get_collection(collection: str, request: Request) -> Response:
        """Its model and how much is in it."""
        found = await catalog.get(collection)
        return json_with_etag(request, Collection.from_proto(found).model_dump())

    @routes.delete(
        "/{collection}",
        summary="Delete a collection",
        status_code=204,
        response_class=Response,
        dependencies=[needs(gateway, Scope.ADMIN, timed=False)],  # it may have a million images
    )
    async def delete_collection(collection: str) -> Response:
        """With all that is in it. The collection `default` is empty afterwards."""
        await catalog.delete(collection)
        return Response(status_code=204)

    @routes.post(
        "/{collection}/codes",
        summary="Train binary codes",
        response_model=Collection,
        dependencies=[needs(gateway, Scope.ADMIN, timed=False)],  # half a minute for 50,000 long vectors
        openapi_extra=body_of(TrainCodesBody, {"method": "learned", "bits": 256}),
    )
    async def train_codes(collection: str, request: Request) -> Response:
        """Learned from the vectors that the collection holds, in place of the codes that it has.

        The collection is searched and written meanwhile. From then on searches may compare codes alone
        (`codes_only`); new regions get codes by what was learned.
        """
        body = await read_body(request, TrainCodesBody, gateway.settings.limits)
        with deadline(gateway.settings.timeouts.ingest_s):
            trained = await catalog.train_codes(collection, body.to_proto())
        return JSONResponse(Collection.from_proto(trained).model_dump())

    @routes.post(
        "/{collection}/reindex",
        summary="Move a collection to another model",
        status_code=202,
        response_model=Reindex,
        dependencies=admin,
        openapi_extra=body_of(ReindexBody, {}),
    )
    async def start_reindex(collection: str, request: Request) -> Response:
        """Its images are embedded again, with the masks that are stored, by the gateway's other embedder.

        The collection is searched and written meanwhile; then the new vectors take its name in one step. What
        it was before is kept under the name in `kept_as` until that is deleted. After a crash it goes on by
        itself.
        """
        body = await read_body(request, ReindexBody, gateway.settings.limits)
        begun = await gateway.reindexer.start(collection, body.embedder)
        return JSONResponse(Reindex.from_proto(begun).model_dump(), 202, {"Location": request.url.path})

    @routes.get("/{collection}/reindex", summary="How far that is", response_model=Reindex, dependencies=read)
    async def get_reindex(collection: str) -> Response:
        """Running, blocked by what `problem` says, or done."""
        found = await gateway.reindexer.status(collection)
        return JSONResponse(Reindex.from_proto(found).model_dump())

    @routes.delete(
        "/{collection}/reindex",
        summary="Give that up",
        status_code=204,
        response_class=Response,
        dependencies=admin,
    )
    async def cancel_reindex(collection: str) -> Response:
        """The collection stays as it is; what has been embedded is deleted."""
        await gateway.reindexer.cancel(collection)
        return Response(status_code=204)

    return routes
