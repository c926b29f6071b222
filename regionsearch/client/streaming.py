"""Many pictures over one gRPC stream: what goes out, and what the answers mean."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence

from regionsearch import defaults
from regionsearch.client import messages
from regionsearch.client.results import IngestProgress, IngestResult, Problem
from regionsearch.client.sources import Source, name_of, picture_proto
from regionsearch.errors import Kind, RegionSearchError
from regionsearch.v1 import region_search_pb2 as pb

# What is wrong with one picture. Every other error would meet the next picture too, and is raised.
_OF_A_PICTURE = (Kind.INVALID_ARGUMENT, Kind.UNSUPPORTED_IMAGE, Kind.TOO_LARGE, Kind.INTERNAL)


def failed(source: Source, error: RegionSearchError) -> IngestResult:
    """The result of a picture that is at fault itself; raises the error of anything else."""
    if error.kind not in _OF_A_PICTURE:
        raise error
    problem = Problem(code=error.kind.value, detail=error.message)
    return IngestResult(name=name_of(source), outcome="failed", error=problem)


class IngestStream:
    """The client's end of `IngestImages`; keys are the numbers of the sources.

    Args:
        sources: The pictures; each is read when the server has room for it.
        collection: Where to.
        tags: Put on each of them.
        attributes: Further facts, for each of them.
    """

    def __init__(
        self,
        sources: Iterable[Source],
        collection: str = defaults.COLLECTION,
        *,
        tags: Sequence[str] = (),
        attributes: Mapping[str, str] | None = None,
    ) -> None:
        self._sources = sources
        self._about = pb.IngestImageRequest(collection=collection, tags=tags, attributes=attributes)
        self._names: list[str] = []
        self._unread: deque[IngestProgress] = deque()
        self.error: Exception | None = None

    def requests(self) -> Iterator[pb.IngestImagesRequest]:
        """One message for each picture that can be read; an exception of the sources is kept in `error`."""
        try:
            for index, source in enumerate(self._sources):
                self._names.append(name_of(source))
                try:
                    picture = pb.IngestImageRequest(image=picture_proto(source), name=self._names[-1])
                except RegionSearchError as error:
                    result = failed(source, error)
                    self._unread.append(IngestProgress(name=result.name, stage="done", result=result))
                    continue
                picture.MergeFrom(self._about)
                yield pb.IngestImagesRequest(key=str(index), request=picture)
        except Exception as error:
            self.error = error
            raise

    async def arequests(self) -> AsyncIterator[pb.IngestImagesRequest]:
        """`requests` for an event loop: files are read in a thread."""
        requests = self.requests()
        while (request := await asyncio.to_thread(next, requests, None)) is not None:
            yield request

    def unread(self) -> Iterator[IngestProgress]:
        """The pictures that could not be read since the last call."""
        while self._unread:
            yield self._unread.popleft()

    def read(self, answer: pb.IngestImagesResponse) -> IngestProgress:
        """What an answer says."""
        return messages.read_progress(self._names[int(answer.key)], answer)
