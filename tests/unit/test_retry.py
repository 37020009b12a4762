"""When a handler is run again: the policy alone."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyventus import GiveUp, Retry, RetryLater
from pyventus.errors import InvalidOption
from pyventus.retry import LONGEST_SECONDS, next_delay

EXACT = Retry(max_attempts=6, delay=2, backoff=3, max_delay=60, jitter=0)


def test_delays_grow_up_to_the_longest_and_end() -> None:
    """One fewer than there are attempts."""
    assert [EXACT.next_delay(attempt, ValueError()) for attempt in range(1, 7)] == [2, 6, 18, 54, 60, None]


def test_jitter_only_takes_away() -> None:
    """So that max_delay is the longest delay."""
    policy = Retry(delay=8, jitter=0.25)
    assert policy.next_delay(1, ValueError(), uniform=lambda: 0.0) == 8
    assert policy.next_delay(1, ValueError(), uniform=lambda: 1.0) == 6


@pytest.mark.parametrize(
    ("on", "never", "error", "retries"),
    [
        (Exception, (), ValueError(), True),
        (Exception, (), SystemExit(), False),
        (BaseException, (), SystemExit(), True),
        ((KeyError, OSError), (), ConnectionError(), True),
        ((KeyError, OSError), (), ValueError(), False),
        (OSError, ConnectionError, ConnectionResetError(), False),
        (OSError, ConnectionError, FileNotFoundError(), True),
        (Exception, (), GiveUp(), False),
        (GiveUp, (), GiveUp(), False),
        (KeyError, (), RetryLater(1), True),
        (Exception, RetryLater, RetryLater(1), True),
    ],
)
def test_which_errors_are_retried(on: Any, never: Any, error: BaseException, retries: bool) -> None:
    """A handler that says what it wants is obeyed."""
    assert (Retry(on=on, never=never).next_delay(1, error) is not None) is retries


def test_a_handler_names_its_own_delay() -> None:
    """Exactly, but for what no clock holds; its attempts are counted."""
    assert EXACT.next_delay(1, RetryLater(7.5)) == 7.5
    assert EXACT.next_delay(1, RetryLater(1e300)) == LONGEST_SECONDS
    assert EXACT.next_delay(6, RetryLater(7.5)) is None


def test_without_a_policy_only_a_handler_that_asks_is_retried() -> None:
    """As often as the default policy allows."""
    assert next_delay(None, 1, ValueError()) is None
    assert next_delay(None, Retry().max_attempts - 1, RetryLater(3)) == 3
    assert next_delay(None, Retry().max_attempts, RetryLater(3)) is None
    assert next_delay(EXACT, 1, ValueError()) == 2


@given(
    st.builds(
        Retry,
        max_attempts=st.integers(1, 10**9),
        delay=st.floats(0, 1e9),
        backoff=st.floats(1, 1e6),
        max_delay=st.floats(0, LONGEST_SECONDS),
        jitter=st.floats(0, 1),
    ),
    st.integers(1, 10**9),
)
def test_no_delay_is_out_of_bounds(policy: Retry, attempt: int) -> None:
    """Whatever overflows on the way."""
    delay = policy.next_delay(attempt, ValueError())
    assert delay is None if attempt >= policy.max_attempts else delay is not None and 0 <= delay <= policy.max_delay


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *(("max_attempts", value) for value in (0, -1, 1.5, "3", True, None)),
        *(("delay", value) for value in (-1, float("nan"), float("inf"), "1", True, None)),
        *(("max_delay", value) for value in (-1, float("inf"), LONGEST_SECONDS + 1)),
        *(("backoff", value) for value in (0.5, -1, float("inf"), float("nan"), "2")),
        *(("jitter", value) for value in (-0.1, 1.1, True, None)),
        *((option, value) for option in ("on", "never") for value in (ValueError(), "ValueError", [ValueError], (1,))),
    ],
)
def test_impossible_values_are_refused_at_once(option: str, value: Any) -> None:
    """Naming the option."""
    with pytest.raises(InvalidOption, match=option):
        Retry(**{option: value})


@pytest.mark.parametrize("seconds", [-1, float("nan"), float("inf"), "1", None, True])
def test_retry_later_refuses_what_is_no_delay(seconds: Any) -> None:
    """In the handler that raises it."""
    with pytest.raises(InvalidOption, match="seconds"):
        RetryLater(seconds)


def test_errors_say_what_they_are() -> None:
    """In logs, and after a trip through pickle."""
    import pickle

    error = pickle.loads(pickle.dumps(RetryLater(2.5, "rate limited")))
    assert str(error) == "again in 2.5 s: rate limited"
    assert str(RetryLater(3)) == "again in 3 s"
    assert (error.seconds, error.reason) == (2.5, "rate limited")


def test_a_policy_is_plain_data() -> None:
    """It can be compared, pickled, and read."""
    import pickle

    assert pickle.loads(pickle.dumps(EXACT)) == EXACT != Retry()
    assert "max_attempts=6" in repr(EXACT)
