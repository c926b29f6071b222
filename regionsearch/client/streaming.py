"""Many images over one gRPC stream: what goes out, and what the answers mean."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence

from regionsearch import defaults
from regionsearch.client.image_inputs import ImageInput, name_of, read_image_input
from regionsearch.errors import Kind, RegionSearchError
from regionsearch.schemas.requests.inference import EverythingOptions
from regionsearch.schemas.requests.records import IngestBody
from regionsearch.schemas.responses.records import IngestError, IngestProgress, IngestResult
from regionsearch.v1 import region_search_pb2 as pb
from regionsearch.v1 import types_pb2

# What every other image would meet too, so that it ends the whole import.
_OF_ALL = (
    Kind.UNAUTHENTICATED,
    Kind.PERMISSION_DENIED,
    Kind.NOT_FOUND,
    Kind.MODEL_MISMATCH,
    Kind.FAILED_PRECONDITION,
    Kind.OVERLOADED,
    Kind.UNAVAILABLE,
    Kind.STORAGE_FULL,
    Kind.UNIMPLEMENTED,
)


def failed(source: ImageInput, error: Exception) -> IngestResult:
    """The result of an image that could not be added.

    Raises:
        RegionSearchError: The error itself, when it is not about this image alone.
    """
    if not isinstance(error, RegionSearchError):
        error = RegionSearchError(Kind.INTERNAL, f"{type(error).__name__}: {error}")
    if error.kind in _OF_ALL:
        raise error
    failure = IngestError(code=error.kind.value, detail=error.message)
    return IngestResult(name=name_of(source), outcome="failed", error=failure)


class IngestStream:
    """The client's end of `IngestImages`; keys are the numbers of the sources.

    When a call breaks off, another one resends the images that do not have a result yet: the gateway takes an
    image once. gRPC's own retries are off for it, see `regionsearch.rpc.channels`.

    Args:
        sources: The images; each is read when the server has room for it.
        collection: Where to.
        tags: Put on each of them.
        attributes: Further facts, for each of them.
        everything: How regions are looked for in each of them.
        unknown: Picks the sources that have to be sent, and tells the results of the others.
    """

    def __init__(
        self,
        sources: Iterable[ImageInput],
        collection: str = defaults.COLLECTION,
        *,
        tags: Sequence[str] = (),
        attributes: Mapping[str, str] | None = None,
        everything: EverythingOptions | None = None,
        unknown: Callable[[Iterable[ImageInput], Callable[[IngestResult], object]], Iterator[ImageInput]]
        | None = None,
    ) -> None:
        self._sources = iter(sources) if unknown is None else unknown(sources, self._tell)
        about = {"tags": tags, "attributes": attributes or {}, "everything": everything}
        self._about = IngestBody.read(about).to_proto(collection)
        self._names: list[str] = []
        self._unread: deque[IngestProgress] = deque()
        # Requests without a result, each with the number of the call that it was last sent with. One call may
        # still be reading a file when the next begins; the lock lets one after the other read.
        self._open: dict[str, tuple[int, pb.IngestImagesRequest]] = {}
        self._calls = 0
        self._exhausted = False
        self._reading = threading.Lock()
        self.error: Exception | None = None

    @property
    def complete(self) -> bool:
        """Whether every image has its result, those apart that are still `unread`."""
        return self._exhausted and not self._open

    def requests(self) -> Iterator[pb.IngestImagesRequest]:
        """What a new call has to send: a message for each image that has no result and can be read.

        An exception of the sources is kept in `error`.
        """
        self._calls += 1
        call = self._calls
        try:
            while (request := self._next(call)) is not None:
                yield request
        except Exception as error:
            self.error = error
            raise

    async def arequests(self) -> AsyncIterator[pb.IngestImagesRequest]:
        """`requests` for an event loop: files are read in a thread."""
        requests = self.requests()
        while (request := await asyncio.to_thread(next, requests, None)) is not None:
            yield request

    def unread(self) -> Iterator[IngestProgress]:
        """The images that need not or cannot be sent, since the last call."""
        while self._unread:
            yield self._unread.popleft()

    def read(self, answer: pb.IngestImagesResponse) -> IngestProgress:
        """What an answer says."""
        progress = IngestProgress.from_proto(self._names[int(answer.key)], answer)
        if progress.result is not None:
            self._open.pop(answer.key, None)
        return progress

    def broken_off(self, error: RegionSearchError | None) -> RegionSearchError:
        """Why a call left images without a result.

        Args:
            error: What the call ended with; None for a good end.

        Raises:
            Exception: What the sources raised.
        """
        if self.error is not None:
            raise self.error
        if error is None:
            message = f"the gateway ended the stream without a result for {len(self._open)} images"
            return RegionSearchError(Kind.UNAVAILABLE, message)
        return error

    def _tell(self, result: IngestResult) -> None:
        self._unread.append(IngestProgress(name=result.name, stage="done", result=result))

    def _next(self, call: int) -> pb.IngestImagesRequest | None:
        with self._reading:
            for key, (sent, request) in list(self._open.items()):
                if sent < call:
                    self._open[key] = call, request
                    return request
            for source in self._sources:
                key = str(len(self._names))
                self._names.append(name_of(source))
                try:
                    ingest = pb.IngestImageRequest(
                        image=types_pb2.Image(encoded=read_image_input(source)), name=self._names[-1]
                    )
                except Exception as error:
                    self._tell(failed(source, error))
                    continue
                ingest.MergeFrom(self._about)
                request = pb.IngestImagesRequest(key=key, request=ingest)
                self._open[key] = call, request
                return request
            self._exhausted = True
            return None
