"""Moving a collection to another model while it is searched and written.

The vectors of the new model are made next to the collection, in one whose name ends in `NEXT`: from images
and masks that are stored, so that only embedding is done again. What that collection holds is done; no other
state is kept, and any gateway can go on where another one has died. At the end the searcher compares both and
gives the collection's name to the new one, in one step and only where nothing differs. The old one is kept
under a name that ends in `PREVIOUS`; the images themselves belong to the name and stay where they are.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence

import structlog

from gateway.catalog import Catalog
from gateway.ingest import Ingester
from gateway.rights import NEXT, PREVIOUS
from gateway.service_clients import (
    Services,
    describe,
    reading_from_writer,
    same_model,
    without_policy,
)
from gateway.vectors import features_of, joined
from regionsearch.defaults import COLLECTION as DEFAULT
from regionsearch.errors import Kind, RegionSearchError, not_found
from regionsearch.rpc.calls import chunked, gather_or_cancel
from regionsearch.tensors import tensor_to_proto
from regionsearch.v1 import region_search_pb2 as pb
from regionsearch.v1 import search_pb2, types_pb2

_PAGE = 256  # images that are compared at once
_AT_ONCE = 4  # images that are embedded at once
_FEW = 16  # images that may differ when writes are held for the last of them
_HOLD_MS = 10_000
_LOOK_S = 5.0  # between two looks for moves that nobody works on
_RETRY_S, _LONGEST_RETRY_S = 1.0, 10.0
_PASSING = (Kind.UNAVAILABLE, Kind.OVERLOADED, Kind.DEADLINE_EXCEEDED, Kind.ABORTED)

_log = structlog.get_logger(__name__)


class Reindexer:
    """Starts, follows and cancels moves of collections to the model of another embedder."""

    def __init__(self, services: Services, catalog: Catalog, ingester: Ingester) -> None:
        self._services = services
        self._catalog = catalog
        self._ingester = ingester
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._problems: dict[str, str] = {}
        self._seen: dict[str, int] = {}  # images of unfinished moves at the last look

    async def start(self, collection: str, embedder: str = "") -> pb.Reindex:
        """Begins to move a collection, or goes on with it.

        Args:
            collection: Its name; the default one when empty.
            embedder: Variant of the model to move to; empty for the one that it does not have.

        Raises:
            RegionSearchError: NOT_FOUND for the collection; FAILED_PRECONDITION where no embedder has the
                model, it has the model already, or a previous move is under way or still kept.
        """
        name = collection or DEFAULT
        with reading_from_writer():
            old = await self._catalog.get(name)
        model = await self._target(old, embedder)
        under_way = await self._find(name + NEXT)
        if under_way is not None and not same_model(under_way.model, model):
            raise _refused(
                f"{name!r} is being moved to {describe(under_way.model)} already; wait for that, or cancel it"
            )
        if under_way is None:
            if await self._find(name + PREVIOUS) is not None:
                raise _refused(
                    f"what {name!r} was before its last move is still kept: delete {name + PREVIOUS!r} first"
                )
            request = search_pb2.CreateCollectionRequest(
                name=name + NEXT,
                model=model,
                binary_codes=old.binary_codes,
                replaces=name,
                everything=old.everything if old.HasField("everything") else None,
                recall_target=old.recall_target,
            )
            await self._services.searcher.call(self._services.search.CreateCollection, request)
        self._work_on(name)
        return await self.status(name)

    async def status(self, collection: str) -> pb.Reindex:
        """How far the last move of a collection is.

        Raises:
            RegionSearchError: NOT_FOUND when there was none.
        """
        name = collection or DEFAULT
        with reading_from_writer():
            under_way, present = await self._find(name + NEXT), await self._catalog.get(name)
        if under_way is not None:
            problem = self._problems.get(name, "")
            return pb.Reindex(
                collection=name,
                state=pb.REINDEX_STATE_BLOCKED if problem else pb.REINDEX_STATE_RUNNING,
                source_model=present.model,
                target_model=under_way.model,
                done_image_count=min(under_way.image_count, present.image_count),
                image_count=present.image_count,
                problem=problem,
            )
        previous = await self._find(name + PREVIOUS)
        if previous is None:
            raise not_found("collection", f"collection {name!r} is not being moved to another model")
        return pb.Reindex(
            collection=name,
            state=pb.REINDEX_STATE_DONE,
            source_model=previous.model,
            target_model=present.model,
            done_image_count=present.image_count,
            image_count=present.image_count,
            kept_as=previous.name,
        )

    async def cancel(self, collection: str) -> None:
        """Gives a move up: deletes the new vectors. Gateways that work on it notice that they are gone.

        Raises:
            RegionSearchError: NOT_FOUND when none is under way.
        """
        name = collection or DEFAULT
        if await self._find(name + NEXT) is None:
            raise not_found("collection", f"collection {name!r} is not being moved to another model")
        task = self._tasks.pop(name, None)
        if task is not None:
            task.cancel()
        request = search_pb2.DeleteCollectionRequest(name=name + NEXT)
        await self._services.searcher.call(self._services.search.DeleteCollection, request)
        self._problems.pop(name, None)

    async def follow(self) -> None:
        """Goes on, for ever, with moves that nobody works on: whose gateway has died."""
        try:
            while True:
                await asyncio.sleep(_LOOK_S)
                try:
                    await self._adopt()
                except RegionSearchError as error:
                    _log.info("moves of collections cannot be looked for", reason=error.message)
        finally:
            for task in self._tasks.values():
                task.cancel()
            await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    async def _adopt(self) -> None:
        seen: dict[str, int] = {}
        token = ""
        while True:
            page = await self._catalog.list(0, token)
            for collection in page.collections:
                name = collection.replaces
                if name and collection.name == name + NEXT:
                    seen[name] = collection.image_count
                    if self._seen.get(name) == collection.image_count:
                        self._work_on(name)
            token = page.next_page_token
            if not token:
                break
        self._seen = seen

    def _work_on(self, name: str) -> None:
        if name not in self._tasks:
            task = asyncio.create_task(self._run(name), name=f"reindex {name}")
            self._tasks[name] = task
            task.add_done_callback(lambda done: self._ended(name, done))

    def _ended(self, name: str, task: asyncio.Task[None]) -> None:
        if self._tasks.get(name) is task:
            del self._tasks[name]
        if not task.cancelled() and task.exception() is not None:
            _log.error(
                "the move of a collection ended unexpectedly", collection=name, exc_info=task.exception()
            )

    async def _run(self, name: str) -> None:
        """Copies until nothing differs, whatever comes between."""
        _log.info("collection is being moved to another model", collection=name)
        wait = _RETRY_S
        while True:
            try:
                target = await self._find(name + NEXT)
                if target is None:
                    break  # cancelled, or another gateway was faster
                with reading_from_writer():
                    await self._copy(name, target)
                _log.info("collection has been moved", collection=name, model=describe(target.model))
                break
            except RegionSearchError as error:
                if error.kind not in _PASSING:
                    self._problems[name] = error.message
                _log.info("the move of a collection waits", collection=name, reason=error.message)
            await asyncio.sleep(wait)
            wait = min(2 * wait, _LONGEST_RETRY_S)
        self._problems.pop(name, None)

    async def _copy(self, name: str, target: search_pb2.Collection) -> None:
        """One pass over all images, then those that still differ; at its end the name has been given.

        Raises:
            RegionSearchError: FAILED_PRECONDITION when images cannot be embedded; the others are done then.
        """
        services = self._services
        failures: list[RegionSearchError] = []
        token = ""
        while True:
            listing = search_pb2.ListImagesRequest(collection=name, page_size=_PAGE, page_token=token)
            page = await services.searcher.call(services.search.ListImages, listing)
            failures += await self._embed_again(name, target, await self._lacking(target.name, page.images))
            token = page.next_page_token
            if not token:
                break
        if not failures:
            await self._train_codes(name, target)
        differing: Sequence[str] | None = None
        while not failures:
            # The last images are copied while writes wait: else new ones could always come in between.
            hold = _HOLD_MS if differing is not None and len(differing) <= _FEW else 0
            request = search_pb2.ReplaceCollectionRequest(
                name=name, by=target.name, keep_as=name + PREVIOUS, hold_ms=hold
            )
            differing = (
                await services.searcher.call(services.search.ReplaceCollection, request)
            ).differing_image_ids
            if not differing:
                self._catalog.forget(name)
                return
            failures += await self._embed_again(name, target, differing)
        raise _refused(
            f"{len(failures)} images cannot be embedded again, the first one because: {failures[0].message}; "
            "send them again or delete them, and the move goes on"
        )

    async def _train_codes(self, name: str, target: search_pb2.Collection) -> None:
        """Trains the new collection's codes, once, if those of the present one were trained."""
        present = await self._catalog.get(name)
        if not present.binary_codes.trained_seq or target.binary_codes.trained_seq:
            return
        try:
            await self._catalog.train_codes(target.name, target.binary_codes)
        except RegionSearchError as error:
            if error.kind is not Kind.FAILED_PRECONDITION:
                raise
            _log.warning("codes are not trained again", collection=name, reason=error.message)

    async def _lacking(self, target: str, images: Sequence[search_pb2.StoredImage]) -> list[str]:
        """Those of the images that the new collection does not have as they are."""
        found = await self._catalog.images.records(
            target, image_ids=[image.image_id for image in images], images_only=True
        )
        there = {image.image_id: image for image in found.images}
        return [image.image_id for image in images if there.get(image.image_id) != image]

    async def _embed_again(
        self, name: str, target: search_pb2.Collection, image_ids: Iterable[str]
    ) -> list[RegionSearchError]:
        """Embeds images; what is wrong with those that cannot be embedded.

        Raises:
            RegionSearchError: A service does not answer, or the new collection has gone.
        """
        failures: list[RegionSearchError] = []
        for ids in chunked(list(image_ids), _AT_ONCE):
            work = [self._embed_image(name, target, image_id) for image_id in ids]
            for outcome in await asyncio.gather(*work, return_exceptions=True):
                if isinstance(outcome, RegionSearchError) and outcome.kind not in _PASSING:
                    failures.append(outcome)
                elif isinstance(outcome, BaseException):
                    raise outcome
            if failures and await self._find(target.name) is None:
                raise not_found("collection", f"{target.name!r} has been deleted")
        return failures

    async def _embed_image(self, name: str, target: search_pb2.Collection, image_id: str) -> None:
        """Brings one image of the new collection up to date: embeds it, or deletes it where it has gone."""
        services = self._services
        found = await self._catalog.images.records(name, image_ids=[image_id], masks=True)
        if not found.images:
            gone = search_pb2.DeleteRequest(collection=target.name, image_ids=[image_id])
            await services.searcher.call(services.search.Delete, gone, retry_overload=True)
            return
        image = types_pb2.Image(encoded=await self._catalog.images.content(name, image_id))
        regions = [record for record in found.records if record.level == search_pb2.LEVEL_REGION]
        bulk = types_pb2.PRIORITY_BULK
        embeddings, features = await gather_or_cancel(
            self._ingester.embed(image, regions, target, bulk),
            features_of(services, target, image, [region.mask for region in regions], bulk),
        )
        vectors = joined(embeddings, features, target)
        whole = [record for record in found.records if record.level != search_pb2.LEVEL_REGION]
        write = search_pb2.UpsertRequest(
            collection=target.name,
            model=target.model,
            images=found.images,
            records=[*whole, *regions],
            vectors=tensor_to_proto(vectors if whole else vectors[1:]),
            keep_create_time=True,
        )
        await services.searcher.call(services.search.Upsert, write, retry_overload=True)

    async def _target(self, old: search_pb2.Collection, embedder: str) -> types_pb2.ModelInfo:
        """The model to move to, with the collection's crop policy."""
        policy = old.model.crop_policy
        models = [await self._catalog.model_of(one, policy) for one in self._services.embedders]
        served = ", ".join(model.variant for model in models)
        others = [model for model in models if not same_model(without_policy(model), old.model)]
        wanted = [model for model in others if not embedder or model.variant == embedder]
        if not others:
            raise _refused(
                f"the embedder serves {served}, which {old.name!r} has already; start one with the other "
                "model and name it with the gateway's setting other_embedder"
            )
        if not wanted:
            raise _refused(f"no embedder serves {embedder!r} as another model; there are {served}")
        [model, *_] = wanted
        if old.model.HasField("features"):
            await self._catalog.add_features(model, old.model.features)
        return model

    async def _find(self, name: str) -> search_pb2.Collection | None:
        services = self._services
        try:
            request = search_pb2.GetCollectionRequest(name=name)
            return (await services.searcher.call(services.search.GetCollection, request)).collection
        except RegionSearchError as error:
            if error.kind is Kind.NOT_FOUND:
                return None
            raise


def _refused(message: str) -> RegionSearchError:
    return RegionSearchError(Kind.FAILED_PRECONDITION, message, field="collection")
