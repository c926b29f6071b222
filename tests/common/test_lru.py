"""The one bounded cache, by bytes and by number."""

from __future__ import annotations

from regionsearch.lru import LruCache


def test_values_are_bounded_by_their_size_and_the_least_recently_used_goes_first() -> None:
    cache: LruCache[str | int, bytes] = LruCache(10, len)
    cache.put("a", b"1234")
    cache.put("b", b"5678")
    assert cache.get("a") == b"1234"
    cache.put("c", b"90")
    cache.put("d", b"x")  # over the bound: b was used longest ago
    assert [cache.get(key) for key in "abcd"] == [b"1234", None, b"90", b"x"]
    cache.put("a", b"12345678901")  # too large, and the old value is not the key's any more
    assert [cache.get(key) for key in "acd"] == [None, b"90", b"x"]
    assert cache.size == 3
    for number in range(100):
        cache.put(number, b"12345")
    assert [key for key in ("c", "d", *range(100)) if cache.get(key)] == [98, 99]
    cache.remove(99)
    cache.remove("never there")
    assert (cache.size, cache.get(99)) == (5, None)


def test_values_are_counted_by_default_and_a_bound_of_nothing_keeps_nothing() -> None:
    cache: LruCache[str, int] = LruCache(2)
    for number, name in enumerate("aba"):
        cache.put(name, number)
    cache.put("c", 3)
    assert [cache.get(name) for name in "abc"] == [2, None, 3]
    nothing: LruCache[str, int] = LruCache(0)
    nothing.put("a", 1)
    assert (nothing.get("a"), nothing.size) == (None, 0)
