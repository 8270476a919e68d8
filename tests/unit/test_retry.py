"""When a failed job is tried again."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from howdah import InvalidInput, Retry


def test_back_off() -> None:
    plain = Retry(delay=1, max_delay=10)
    assert [plain.wait(n, chance=1) for n in (1, 2, 3, 4, 5, 1000)] == [1, 2, 4, 8, 10, 10]
    assert plain.wait(3, chance=0) == 0
    assert all(0 <= plain.wait(3) <= 4 for _ in range(50))
    assert len({plain.wait(3) for _ in range(50)}) > 10
    linear = Retry(delay=timedelta(seconds=2), backoff="linear", max_delay=5)
    assert [linear.wait(n) for n in (1, 2, 3)] == [2, 4, 5]
    assert Retry(delay=3, backoff="constant").wait(9) == 3


def test_what_is_worth_another_try() -> None:
    assert Retry().worth(ConnectionResetError())
    assert Retry().worth(TimeoutError())
    assert not Retry().worth(ValueError())
    assert Retry(on=(ValueError,)).worth(ValueError())
    assert not Retry(on=(ValueError,)).worth(TimeoutError())


def test_bad_settings() -> None:
    wrong: Any
    for wrong in ({"attempts": 0}, {"attempts": 1.5}, {"backoff": "never"}, {"delay": -1}, {"max_delay": float("nan")}):
        with pytest.raises(InvalidInput):
            Retry(**wrong)
