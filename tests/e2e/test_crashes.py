"""Any of the four processes is killed without warning while images come in: what was acknowledged stays,
and the system recovers by itself."""

from __future__ import annotations

import concurrent.futures
import threading
import time
from collections.abc import Iterator

import httpx
import pytest

from regionsearch import Client
from regionsearch.supervisor.child import MODULES
from tests.e2e.scenes import held_out_scenes
from tests.stack import Stack, coarse_segmenter, new_stack

SCENES = 12


@pytest.fixture(scope="module")
def own_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """All four processes, for tests that harm them, which need no fine segmentation."""
    folder = tmp_path_factory.mktemp("stack")
    segmenter = str(coarse_segmenter(tmp_path_factory.mktemp("models")))
    with new_stack(folder, REGIONSEARCH_SEGMENTER_MODEL=segmenter) as stack:
        for collection in ("killed", "streamed", "restarted"):
            httpx.post(f"{stack.http}/v1/collections", json={"name": collection}).raise_for_status()
        yield stack


@pytest.mark.timeout(1800)
def test_kill_each_process_during_ingest(own_stack: Stack) -> None:
    scenes = held_out_scenes(SCENES)
    url = f"{own_stack.http}/v1/collections/killed/images"
    acknowledged: set[str] = set()
    progress = threading.Semaphore(0)

    def ingest(index: int) -> None:
        """Sends one image until it is acknowledged."""
        scene = scenes[index]
        deadline = time.monotonic() + 500
        while time.monotonic() < deadline:
            try:
                response = httpx.post(url, files=[("files", (scene.path.name, scene.data))], timeout=120)
            except httpx.TransportError:
                time.sleep(0.3)
                continue
            result = response.json().get("results", [{}])[0] if response.status_code < 300 else {}
            if result.get("outcome") in ("created", "duplicate"):
                acknowledged.add(result["image_id"])
                progress.release()
                return
            time.sleep(0.3)
        pytest.fail(f"{scene.path.name} was never taken: {own_stack.log()}")

    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        work = [pool.submit(ingest, index) for index in range(SCENES)]
        for name in MODULES:
            assert progress.acquire(timeout=1200), own_stack.log()
            survivors = set(acknowledged)
            own_stack.kill(name)
            own_stack.wait_ready()
            assert survivors <= listed(url).keys(), f"lost when {name} died"
        for done in work:
            done.result()

    assert len(acknowledged) == SCENES
    images = listed(url)
    assert acknowledged == set(images)
    for image_id in acknowledged:
        regions = httpx.get(f"{url}/{image_id}/regions", timeout=120).json()["regions"]
        assert len(regions) == images[image_id], "a half-written image"
        assert httpx.get(f"{url}/{image_id}/content", timeout=120).status_code == 200


def listed(url: str) -> dict[str, int]:
    """Image ids and their region counts, over all pages; asks again while the gateway is coming back."""
    images: dict[str, int] = {}
    token = ""
    deadline = time.monotonic() + 120
    while True:
        try:
            response = httpx.get(url, params={"page_size": 5, "page_token": token}, timeout=120)
            page = response.raise_for_status().json()
        except httpx.HTTPError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.3)
            continue
        images |= {image["image_id"]: image["region_count"] for image in page["images"]}
        token = page["next_page_token"]
        if not token:
            return images


def test_a_stream_goes_on_when_the_gateway_is_killed(own_stack: Stack) -> None:
    scenes = [scene.path for scene in held_out_scenes(5)]
    done: list[str] = []
    with Client(f"grpc://{own_stack.grpc}", retries=20) as client:
        for step in client.ingest_stream(scenes, "streamed"):
            if step.result is not None:
                assert step.result.outcome in ("created", "duplicate")
                done.append(step.name)
                if len(done) == 2:
                    own_stack.kill("gateway")
        images = list(client.images("streamed"))
    assert sorted(done) == sorted(path.name for path in scenes)
    assert sorted(image.name for image in images) == sorted(done)


def test_everything_is_still_there_after_a_restart(own_stack: Stack) -> None:
    (scene,) = held_out_scenes(1)
    url = f"{own_stack.http}/v1/collections/restarted"
    httpx.post(
        f"{url}/images", files=[("files", (scene.path.name, scene.data))], timeout=120
    ).raise_for_status()
    query = {"query": {"text": scene.things[0].name}, "level": "region"}
    before = httpx.post(f"{url}/search", json=query, timeout=120).json()["hits"]
    assert own_stack.stop() == 0
    own_stack.start()
    after = httpx.post(f"{url}/search", json=query, timeout=120).json()["hits"]
    assert before
    assert [hit["region_id"] for hit in after] == [hit["region_id"] for hit in before]
