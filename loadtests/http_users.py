"""Apps that talk to the gateway over HTTP."""

from __future__ import annotations

import base64
import itertools
import random
import uuid
from typing import Any

import gevent
from gevent.pool import Pool
from locust import FastHttpUser, between, constant, task

from loadtests.callers import FLOOD_KEY, PEOPLE_KEYS
from loadtests.scenes import QUERIES, Scene

END_S = 20  # for requests in flight at the end: leaving them out would leave out the slowest
IN_FLIGHT = 256  # open-loop requests at once; further arrivals are counted as failures


_keys = itertools.cycle(PEOPLE_KEYS)


class GatewayBase(FastHttpUser):
    """What people with images do: ask in words, click, look for more like it, now and then add one."""

    abstract = True
    collection = "default"

    def on_start(self) -> None:
        self.random = random.Random(uuid.uuid4().int)
        self.image_id = ""
        options = self.environment.parsed_options
        if key := options.api_key or (options.flood and next(_keys)):
            self.client.auth_header = f"Bearer {key}"
        self.ingest()

    def search_text(self) -> None:
        self._search("search text", {"text": self.random.choice(QUERIES)})

    def search_image(self) -> None:
        jpeg = Scene(self.random.getrandbits(60), shapes=1).jpeg
        self._search("search image", {"image": base64.b64encode(jpeg).decode()})

    def click(self) -> None:
        x, y = self.scene.centre(self.random.randrange(99))
        body = {
            "image": base64.b64encode(self.scene.jpeg).decode(),
            "points": [{"x": x, "y": y, "label": 1}],
        }
        self.client.post("/v1/segment", json=body, name="click")

    def within(self) -> None:
        body = {"image_id": self.image_id, "text": self.random.choice(QUERIES)}
        self.client.post("/v1/search-within", json=body, name="within")

    def ingest(self) -> None:
        self.scene = Scene(self.random.getrandbits(60))
        files = {"files": ("scene.jpg", self.scene.jpeg, "image/jpeg")}
        path = f"/v1/collections/{self.collection}/images"
        with self.client.post(path, files=files, name="ingest", catch_response=True) as answer:
            if answer.status_code != 200:
                answer.failure(f"{answer.status_code}: {answer.text}")
                return
            (result,) = answer.json()["results"]
            if result["outcome"] == "created":
                self.image_id = result["image_id"]
            else:
                answer.failure(f"{result['outcome']}: {result['error']}")

    def _search(self, name: str, query: dict[str, Any]) -> None:
        body = {"query": query, "group_by": "image", "page_size": 20}
        self.client.post(f"/v1/collections/{self.collection}/search", json=body, name=name)


MIX = {
    GatewayBase.search_text: 10,
    GatewayBase.click: 6,
    GatewayBase.search_image: 3,
    GatewayBase.within: 1,
    GatewayBase.ingest: 1,
}


class GatewayUser(GatewayBase):
    """Closed loop: a person waits for each answer, thinks, and goes on."""

    weight = 4
    wait_time = between(0.5, 2.0)
    tasks = MIX


class GatewayArrivals(GatewayBase):
    """Open loop: requests arrive at random times at a given mean rate, however slow the answers are.

    Users that wait for their answers slow down with the stack and hide its queues; arrivals do not. One of
    these stands for a crowd.
    """

    fixed_count = 1
    concurrency = IN_FLIGHT
    wait_time = constant(0)

    def on_start(self) -> None:
        super().on_start()
        self._pool = Pool(IN_FLIGHT)

    def on_stop(self) -> None:
        self._pool.join(timeout=END_S)
        self._pool.kill()

    @task
    def arrive(self) -> None:
        gevent.sleep(self.random.expovariate(self.environment.parsed_options.arrival_rate))
        if self._pool.free_count():
            (action,) = self.random.choices(list(MIX), list(MIX.values()))
            self._pool.spawn(action, self)
        else:
            self.environment.events.request.fire(
                request_type="open loop",
                name="arrival",
                response_time=0,
                response_length=0,
                exception=RuntimeError(f"{IN_FLIGHT} requests were in flight"),
                context={},
            )


class FloodUser(FastHttpUser):
    """One caller who asks for many clicks on new images at once, all of the time, as no person does.

    The objectives of the other users must hold meanwhile; this one may be refused.
    """

    fixed_count = 1
    concurrency = IN_FLIGHT
    wait_time = constant(0)

    def on_start(self) -> None:
        self.client.auth_header = f"Bearer {FLOOD_KEY}"
        self._pool = Pool(self.environment.parsed_options.flood or 1)

    def on_stop(self) -> None:
        self._pool.kill()

    @task
    def ask(self) -> None:
        self._pool.spawn(self._click)  # waits for one of them to be answered

    def _click(self) -> None:
        scene = Scene(uuid.uuid4().int)
        x, y = scene.centre(0)
        body = {
            "image": base64.b64encode(scene.jpeg).decode(),
            "points": [{"x": x, "y": y, "label": 1}],
        }
        with self.client.post("/v1/segment", json=body, name="flood", catch_response=True) as answer:
            if answer.status_code == 429:
                answer.success()
                gevent.sleep(0.1)
