"""A collection to search in, and searches of it, for tests."""

from __future__ import annotations

from typing import Any

from tests.gateway.conftest import BLUE, GREEN, RED, Running, scene

IMAGES = {
    "red and blue": scene(RED, BLUE),
    "green": scene(GREEN),
    "all": scene(RED, BLUE, GREEN, ("maroon", (60, 5, 75, 15))),
    "yellow": scene(("yellow", (0, 0, 80, 60))),
}
COLLECTION = "search-tests"


def search(gateway: Running, status: int = 200, form: str = "json", **body: Any) -> Any:
    response = gateway.http.post(f"/v1/collections/{COLLECTION}/search?format={form}", json=body)
    assert response.status_code == status, response.text
    return response.json()


def best(gateway: Running, **query: Any) -> tuple[str, str]:
    """Name and region of the best region."""
    hits = search(gateway, query=query, level="region", page_size=1)["hits"]
    return hits[0]["image"]["name"], hits[0]["region_id"]
