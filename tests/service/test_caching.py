from hypothesis import given
from hypothesis import strategies as st

from service.caching import ByteCache


@given(st.lists(st.tuples(st.sampled_from("abcdefgh"), st.integers(0, 30))), st.integers(0, 60))
def test_what_is_held_never_exceeds_the_limit(entries, limit) -> None:
    cache: ByteCache[int] = ByteCache(limit)
    for key, num_bytes in entries:
        cache.put(key, num_bytes, num_bytes)
        held = [value for name in "abcdefgh" if (value := cache.get(name)) is not None]
        assert sum(held) == cache.held_bytes <= limit
        assert (cache.get(key) == num_bytes) == (num_bytes <= limit)


def test_what_was_used_longest_ago_goes_first() -> None:
    cache: ByteCache[str] = ByteCache(30)
    for key in "abc":
        cache.put(key, key, 10)
    assert cache.get("a") == "a"
    cache.put("d", "d", 10)
    assert [key for key in "abcd" if cache.get(key)] == ["a", "c", "d"]
