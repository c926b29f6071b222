"""Pictures in: outcomes, order of the writes, idempotency, failures in every stage."""

from __future__ import annotations

from tests.gateway.conftest import BLUE, RED, Running, add, scene


def test_a_picture_goes_in_and_is_found_by_words(gateway: Running, collection: str) -> None:
    data = scene(RED, BLUE)
    (result,) = add(gateway, collection, ("two things.png", data))
    assert result["outcome"] == "created"
    assert result["regions"] == 2
    answer = gateway.http.post(
        f"/v1/collections/{collection}/search",
        json={"query": {"text": "red"}, "level": "region", "include": ["mask"]},
    )
    assert answer.status_code == 200, answer.text
    hits = answer.json()["hits"]
    assert [hit["rank"] for hit in hits] == [1, 2]
    assert hits[0]["box"] == {"x_min": 10, "y_min": 20, "x_max": 50, "y_max": 60}
    assert hits[0]["label"] == "red"
    assert hits[0]["image"]["name"] == "two things.png"
    assert hits[0]["mask"]["size"] == [120, 160]
