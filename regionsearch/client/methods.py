"""Operations as methods of both clients."""

from __future__ import annotations

import functools
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar, overload

from regionsearch import defaults
from regionsearch.client.operations import collections, images, queries, scrolls
from regionsearch.client.operations.base import Operation
from regionsearch.client.transports import Address
from regionsearch.errors import Kind, RegionSearchError

if TYPE_CHECKING:
    from regionsearch.client.clients import AsyncClient, Client

P = ParamSpec("P")
T = TypeVar("T")


class _Method(Generic[P, T]):
    """A method of both clients made from an operation: same arguments; its result, or one to await."""

    def __init__(self, operation: Callable[P, Operation[T]]) -> None:
        self._operation = operation

    @overload
    def __get__(self, client: None, owner: type) -> Callable[P, Operation[T]]: ...
    @overload
    def __get__(self, client: Client, owner: type) -> Callable[P, T]: ...
    @overload
    def __get__(self, client: AsyncClient, owner: type) -> Callable[P, Coroutine[Any, Any, T]]: ...
    def __get__(self, client: Client | AsyncClient | None, owner: type) -> Callable[P, Any]:
        if client is None:
            return self._operation

        @functools.wraps(self._operation)
        def method(*args: P.args, **kwargs: P.kwargs) -> Any:
            return client.send(self._operation(*args, **kwargs))

        # What `help` and notebooks show: what a call returns, not the operation.
        signature = inspect.signature(self._operation)
        result = str(signature.return_annotation).removeprefix("Operation[").removesuffix("]")
        returned = result if not client.awaits else f"Coroutine[Any, Any, {result}]"
        method.__signature__ = signature.replace(return_annotation=returned)  # type: ignore[attr-defined]
        return method


class Methods(ABC):
    """The address of a gateway, and all that it can be asked."""

    awaits = False
    """Whether the methods return something to await."""

    search = _Method(queries.search)
    scroll = _Method(scrolls.scroll)
    count = _Method(scrolls.count)
    map = _Method(scrolls.map)
    within = _Method(queries.within)
    render = _Method(queries.render)
    segment = _Method(queries.segment)
    embed = _Method(queries.embed)
    list_collections = _Method(collections.list_collections)
    create_collection = _Method(collections.create_collection)
    train_codes = _Method(collections.train_codes)
    delete_collection = _Method(collections.delete_collection)
    start_reindex = _Method(collections.start_reindex)
    get_reindex = _Method(collections.get_reindex)
    cancel_reindex = _Method(collections.cancel_reindex)
    list_images = _Method(images.list_images)
    image = _Method(images.image)
    content = _Method(images.content)
    thumbnail = _Method(images.thumbnail)
    crop = _Method(images.crop)
    mask_png = _Method(images.mask_png)
    regions = _Method(images.regions)
    export_hits = _Method(queries.export_hits)
    export_regions = _Method(images.export_regions)
    check_images = _Method(images.check_images)
    update_image = _Method(images.update_image)
    delete_image = _Method(images.delete_image)
    models = _Method(collections.models)
    access = _Method(collections.access)
    ready = _Method(collections.ready)

    def __init__(
        self,
        url: str = defaults.URL,
        *,
        api_key: str | None = None,
        timeout_s: float = 300,
        retries: int = 5,
        ca: Path | None = None,
    ) -> None:
        self.url = url
        self._closed = False
        self._connect(Address(url, api_key, timeout_s, retries, ca))

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.url}{' (closed)' if self._closed else ''}>"

    def _check_open(self) -> None:
        if self._closed:
            raise RegionSearchError(Kind.FAILED_PRECONDITION, "the client is closed; make another one")

    @abstractmethod
    def _connect(self, address: Address) -> None:
        """Makes the transport, of which each client has its own kind."""
