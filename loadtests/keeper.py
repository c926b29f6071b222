"""A user who remembers what was acknowledged, and looks at the end whether it is still there."""

from __future__ import annotations

import base64
import hashlib
import random
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

import httpx

from loadtests.scenes import QUERIES, Scene

COLLECTION = "kept"
CHECK_S = 120.0  # how long the check at the end asks again where it gets no answer
SEARCHED = 100  # images that are searched for at the end


@dataclass(frozen=True)
class Outcome:
    """What became of one request.

    Attributes:
        begin: When it was sent, `time.monotonic()`.
        end: When it was answered, or failed.
        error: Status or the exception's name; None where it was answered.
    """

    begin: float
    end: float
    error: str | None


@dataclass(frozen=True)
class Kept:
    """An image that was acknowledged: the seed of its scene and the number of its regions."""

    seed: int
    regions: int


class Keeper:
    """Adds images, each again and again until it is acknowledged, and searches in between.

    Args:
        url: Base URL of the gateway.
        pause_s: Between two requests.
    """

    def __init__(self, url: str, pause_s: float = 2.0) -> None:
        self._client = httpx.Client(base_url=url, timeout=60, trust_env=False)
        self._pause_s = pause_s
        self._images = f"/v1/collections/{COLLECTION}/images"
        self.kept: dict[str, Kept] = {}
        self.outcomes: list[Outcome] = []
        self._sent: set[str] = set()

    def run(self, until: threading.Event) -> None:
        """Goes on until the event is set."""
        while self._ask("POST", "/v1/collections", json={"name": COLLECTION}) is None:
            if until.wait(self._pause_s):
                return
        for seed in range(1 << 30):
            jpeg = Scene(seed).jpeg
            self._sent.add(image_id := hashlib.sha256(jpeg).hexdigest())
            while image_id not in self.kept:
                answer = self._ask("POST", self._images, files={"files": ("a.jpg", jpeg)})
                if answer is not None:
                    self.kept[image_id] = Kept(seed, answer.json()["results"][0]["regions"])
                query = {"query": {"text": QUERIES[seed % len(QUERIES)]}, "group_by": "image"}
                self._ask("POST", f"/v1/collections/{COLLECTION}/search", json=query)
                if until.wait(self._pause_s):
                    return

    def lost(self) -> list[str]:
        """One sentence for each image that is not what was acknowledged; nothing runs any more."""
        listed = dict(self._listed())
        faults = [f"{one}: was never sent" for one in listed.keys() - self._sent]
        for image_id, kept in self.kept.items():
            if (regions := listed.get(image_id)) != kept.regions:
                faults.append(f"{image_id}: {regions} regions of {kept.regions}")
            elif (
                hashlib.sha256(self._get(f"{self._images}/{image_id}/content").content).hexdigest()
                != image_id
            ):
                faults.append(f"{image_id}: other content")
        draw = random.Random(3)
        for image_id, kept in draw.sample(sorted(self.kept.items()), min(SEARCHED, len(self.kept))):
            image = base64.b64encode(Scene(kept.seed).jpeg).decode()
            query = {"query": {"image": image}, "group_by": "image", "page_size": 5}
            answer = self._get(f"/v1/collections/{COLLECTION}/search", query)
            if image_id not in {hit["image_id"] for hit in answer.json()["hits"]}:
                faults.append(f"{image_id}: a search with the image itself does not find it")
        return faults

    def _listed(self) -> Iterator[tuple[str, int]]:
        token = ""
        while True:
            page = self._get(f"{self._images}?page_size=200&page_token={token}").json()
            for image in page["images"]:
                yield image["image_id"], image["region_count"]
            if not (token := page["next_page_token"]):
                return

    def _ask(self, method: str, path: str, **content: object) -> httpx.Response | None:
        """One request and its outcome; None unless it succeeded."""
        begin, error = time.monotonic(), None
        try:
            answer = self._client.request(method, path, **content)  # type: ignore[arg-type]
            results = answer.json().get("results", []) if answer.is_success else []
            error = next((result["error"]["code"] for result in results if result.get("error")), None)
            if not answer.is_success:
                error = str(answer.status_code)
        except httpx.TransportError as fault:
            error = type(fault).__name__
        self.outcomes.append(Outcome(begin, time.monotonic(), error))
        return answer if error is None else None

    def _get(self, path: str, query: object = None) -> httpx.Response:
        deadline = time.monotonic() + CHECK_S
        while True:
            try:
                answer = self._client.request("GET" if query is None else "POST", path, json=query)
                return answer.raise_for_status()
            except httpx.HTTPError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.5)
