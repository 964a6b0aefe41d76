import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.cache_control import NO_WISHES, CacheWishes, cache_wishes


@pytest.mark.parametrize(
    ("header", "wishes"),
    [
        ("", NO_WISHES),
        ("no-store", CacheWishes(no_store=True)),
        ("No-Cache", CacheWishes(no_cache=True)),
        ("no-cache=x", CacheWishes(no_cache=True)),
        ("only-if-cached", CacheWishes(only_if_cached=True)),
        ("max-age=60", CacheWishes(max_age_seconds=60)),
        ('Max-Age="60"', CacheWishes(max_age_seconds=60)),
        ("max-age = 60", CacheWishes(max_age_seconds=60)),
        ("max-age=007", CacheWishes(max_age_seconds=7)),
        ("max-age=0", CacheWishes(max_age_seconds=0)),
        # What is no number of seconds is no age that an entry could be younger than.
        ("max-age", CacheWishes(max_age_seconds=0)),
        ("max-age=", CacheWishes(max_age_seconds=0)),
        ("max-age=-1", CacheWishes(max_age_seconds=0)),
        ("max-age=1.5", CacheWishes(max_age_seconds=0)),
        ("max-age=soon", CacheWishes(max_age_seconds=0)),
        ("max-age=\u0663", CacheWishes(max_age_seconds=0)),
        # More than can be told apart.
        ("max-age=99999999999999999999", CacheWishes(max_age_seconds=2**31)),
        ("max-age=" + "9" * 50_000, CacheWishes(max_age_seconds=2**31)),
        ("max-age=4294967296", CacheWishes(max_age_seconds=2**31)),
        # The first of two counts.
        ("max-age=5, max-age=50", CacheWishes(max_age_seconds=5)),
        (" no-cache ,only-if-cached,, max-age=3 ", CacheWishes(False, True, 3, True)),
        # Inside of quotes nothing is a directive.
        ('private="no-store, no-cache", max-age=1', CacheWishes(max_age_seconds=1)),
        ('x="a\\", no-store"', NO_WISHES),
        ("no-storefront, xno-cache, max-stale=1, min-fresh=2, no-transform, public", NO_WISHES),
    ],
)
def test_what_is_asked_for(header, wishes):
    assert cache_wishes(header) == wishes


@given(st.text(max_size=200))
def test_no_header_is_too_odd_to_be_read(header):
    wishes = cache_wishes(header)
    assert wishes.max_age_seconds is None or 0 <= wishes.max_age_seconds <= 2**31


@given(
    st.lists(st.sampled_from(["no-store", "no-cache", "only-if-cached", "max-age=7", "max-stale", 'ext="a, b"'])),
    st.sampled_from([",", ", ", " , ", ",,"]),
)
def test_the_order_makes_no_difference(directives, comma):
    wishes = cache_wishes(comma.join(directives))
    assert wishes == cache_wishes(comma.join(reversed(directives)).upper())
    assert wishes == CacheWishes(
        no_store="no-store" in directives,
        no_cache="no-cache" in directives,
        max_age_seconds=7 if "max-age=7" in directives else None,
        only_if_cached="only-if-cached" in directives,
    )
