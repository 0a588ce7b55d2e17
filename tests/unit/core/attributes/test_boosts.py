"""What attributes add to a score."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.attributes.boosts import Boost
from core.limits import BOOST_MAX


@pytest.mark.parametrize(
    ("value", "gain"), [(10, 0), (5, 0), (20, 1), (30.0, 2), (99, 2), (-1e300, 0)]
)
def test_a_number_is_scaled_and_clipped(value: float, gain: float) -> None:
    """From nothing at `least` to the weight at `most`."""
    assert Boost("a", 2.0, 10.0, 30.0).of({"a": value}) == gain


@pytest.mark.parametrize("attributes", [{}, {"a": "20"}, {"a": True}, {"a": ["x"]}, {"b": 20}])
def test_what_is_no_number_adds_nothing(attributes: dict[str, Any]) -> None:
    """Nor does what is not there."""
    assert Boost("a", 2.0, 0.0, 1.0).of(attributes) == 0.0


BOUNDED = st.floats(-BOOST_MAX, BOOST_MAX)


@given(weight=BOUNDED, bounds=st.tuples(BOUNDED, BOUNDED), value=st.floats(allow_nan=False))
def test_no_gain_is_beyond_the_weight(
    weight: float, bounds: tuple[float, float], value: float
) -> None:
    """Whatever the numbers are, even where their difference is tiny or infinite."""
    least, most = sorted(bounds)
    if least < most:
        gain = Boost("a", weight, least, most).of({"a": value})
        assert min(0.0, weight) <= gain <= max(0.0, weight)
