"""One caller's bulk upload leaves room for others, and the services are told for whom the gateway calls."""

from __future__ import annotations

import asyncio
import concurrent.futures

import pytest

from regionsearch.rpc.calls import CALLER_HEADER
from tests.gateway.conftest import World, scene
from tests.gateway.fakes import Script
from tests.waiting import wait_for

BULK, OTHER = {"x-api-key": "write:bulk"}, {"x-api-key": "write:other"}


def test_one_callers_bulk_upload_leaves_room_and_turns_to_others(world: World, script: Script) -> None:
    gateway = world.gateway(
        api_keys="write:bulk,write:other", limits={"max_images_in_work": 1, "max_images_waiting": 7}
    )
    script.hold["Segment"] = world.call(asyncio.Event)
    url = "/v1/collections/default/images"

    def files(count: int, colour: str) -> list[tuple[str, tuple[str, bytes]]]:
        return [("files", (f"{i}.png", scene((colour, (i, 3, i + 5, 11))))) for i in range(count)]

    with concurrent.futures.ThreadPoolExecutor() as pool:
        bulk = pool.submit(gateway.http.post, url, files=files(4, "red"), headers=BULK)
        wait_for(lambda: script.calls["Segment"] == 1)

        def refusal() -> str:
            refused = gateway.http.post(url, files=files(2, "lime"), headers=BULK)  # more than it leaves
            assert refused.status_code == 429
            assert int(refused.headers["retry-after"]) >= 1
            return str(refused.json()["detail"])

        assert refusal().startswith("4 images")
        other = pool.submit(gateway.http.post, url, files=files(2, "blue"), headers=OTHER)
        wait_for(lambda: refusal().startswith("6 images"))
        world.call(script.hold.pop("Segment").set)
        for answer in (bulk, other):
            assert {one["outcome"] for one in answer.result(60).json()["results"]} == {"created"}
    names = script.callers["Segment"]
    assert len(set(names)) == 2
    assert names[0] == names[-1] == names[-2]  # the other caller's two have not waited for all four
    assert not any("write" in name for name in names)


@pytest.mark.parametrize("keys", ["", "write:bulk"])
def test_nobody_calls_in_another_ones_name(world: World, script: Script, keys: str) -> None:
    gateway = world.gateway(**({"api_keys": keys} if keys else {}))
    image = [("files", ("a.png", scene(("navy", (len(keys), 0, 50, 50)))))]
    forged = BULK | {CALLER_HEADER: "somebody else"}
    assert gateway.http.post("/v1/collections/default/images", files=image, headers=forged).status_code == 200
    (name,) = script.callers["Segment"]
    assert name.startswith("key-" if keys else "address-")
