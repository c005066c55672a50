"""Bearer tokens: which files are read, and who is let in."""

from __future__ import annotations

import heapq
from pathlib import Path

import pytest

from multsd_gateway.errors import RateLimitedError, UnauthorizedError
from multsd_gateway.rate import LONGEST_PROMISE_S, RateLimit
from multsd_gateway.tokens import Tokens, read_tokens

TOKEN, OTHER = "a-token-of-enough-characters", "another-token-of-enough"


def _file(folder: Path, text: str) -> Path:
    path = folder / "tokens"
    path.write_text(text)
    return path


def test_a_file_has_named_and_unnamed_tokens(tmp_path: Path) -> None:
    tokens = read_tokens(_file(tmp_path, f"# people\n\nshop:{TOKEN}\n  {OTHER}  \n"))

    assert len(tokens) == 2
    assert tokens.owner(f"Bearer {TOKEN}") == "shop"
    assert tokens.owner(f"bearer   {OTHER} ") == "line-4"


def test_sixteen_characters_are_enough_for_a_token(tmp_path: Path) -> None:
    assert read_tokens(_file(tmp_path, "0123456789abcdef\n")).owner("Bearer 0123456789abcdef") == "line-1"


def test_a_name_may_have_a_new_token_beside_the_old_one(tmp_path: Path) -> None:
    tokens = read_tokens(_file(tmp_path, f"shop:{TOKEN}\nshop:{OTHER}\n"))

    assert [tokens.owner(f"Bearer {token}") for token in (TOKEN, OTHER)] == ["shop", "shop"]


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        TOKEN,
        f"Basic {TOKEN}",
        f"Bearer {TOKEN}x",
        f"Bearer {TOKEN[:-1]}",
        "Bearer ",
        f"Bearer {TOKEN} x",
        "\u00e4",
    ],
)
def test_nobody_else_is_let_in(header: str | None) -> None:
    with pytest.raises(UnauthorizedError) as caught:
        Tokens([("shop", TOKEN)]).owner(header)
    assert TOKEN not in str(caught.value)


def test_what_is_kept_is_no_token() -> None:
    assert TOKEN not in repr(vars(Tokens([("shop", TOKEN)])))


@pytest.mark.parametrize(
    "text",
    ["", "# nobody\n", "short\n", "0123456789abcde\n", "two words of enough characters\n", "a:b:0123456789abcdef\n"],
)
def test_a_file_that_lets_nobody_in_or_anybody_guess_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ValueError, match="expected") as caught:
        read_tokens(_file(tmp_path, text))
    assert "two words" not in str(caught.value)


def test_who_is_refused_together_is_told_to_come_back_one_after_another() -> None:
    now = 0.0
    rate = RateLimit(per_minute=30, burst=1, clock=lambda: now)

    def wait(caller: str) -> int | None:
        try:
            rate.take(caller)
        except RateLimitedError as error:
            return error.retry_after
        return None

    assert [wait("shop") for _ in range(4)] == [None, 2, 4, 6]
    assert (wait("another"), wait("another")) == (None, 2), "of its own places"
    for _ in range(3):
        now += 2
        assert wait("shop") is None, "who comes back when it was told"
        assert wait("shop") == 6, "behind those that wait still"
    now = 100.0
    assert [wait("shop"), wait("shop")] == [None, 2], "what is over is forgotten"


def test_who_never_comes_back_does_not_drive_others_away() -> None:
    now = 0.0
    rate = RateLimit(per_minute=60, burst=1, clock=lambda: now)
    waits = []
    for _ in range(1000):
        try:
            rate.take("shop")
        except RateLimitedError as error:
            waits.append(error.retry_after)
    assert waits == [*range(1, LONGEST_PROMISE_S), *[LONGEST_PROMISE_S] * 940]
    now = 1.0
    rate.take("shop")  # the first that was told may come


def test_a_place_is_kept_until_who_was_told_of_it_could_come() -> None:
    now = 0.0
    rate = RateLimit(per_minute=60, burst=2, clock=lambda: now)

    def wait(at: float) -> int | None:
        nonlocal now
        now = at
        try:
            rate.take("shop")
        except RateLimitedError as error:
            return error.retry_after
        return None

    assert [wait(0), wait(0), wait(0.5)] == [None, None, 1], "the place of 1.0, at 1.5"
    assert wait(1.2) == 1, "there is one, but not for this; that of 2.0, at 2.2"
    assert wait(1.6) is None, "who was told, a little late"
    assert wait(2.1) == 1, "that of 3.0, at 3.1"
    assert wait(2.8) is None, "who was told of the one of 2.0 did not come in time"


def test_promises_that_nobody_came_for_are_forgotten() -> None:
    now = 0.0
    rate = RateLimit(per_minute=60, burst=5, clock=lambda: now)

    def waits(requests: int) -> list[int | None]:
        told: list[int | None] = []
        for _ in range(requests):
            try:
                rate.take("shop")
                told.append(None)
            except RateLimitedError as error:
                told.append(error.retry_after)
        return told

    assert waits(50)[-2:] == [44, 45]
    now = 1.0
    assert waits(2) == [None, 45], "whoever was told to come now may have"
    now = 3.0
    assert waits(4) == [None, None, 1, 2], "of those that were told to come at 2 and at 3 one did not"


def _pictures(
    seconds: float, *, workers: int, other_every: float = 0, per_minute: float = 60, burst: int = 20
) -> tuple[int, int]:
    """What workers that heed Retry-After get beside a request of the same token every so often that heeds nothing.

    And how often one was refused before it was taken, at most.
    """
    now = 0.0
    rate = RateLimit(per_minute=per_minute, burst=burst, clock=lambda: now)

    def wait() -> int:
        try:
            rate.take("shop")
        except RateLimitedError as error:
            return error.retry_after or 0
        return 0

    coming = [(0.05 * number, number, 0) for number in range(workers)]  # when, who, and how often it was refused
    other, taken, most = 0.0, 0, 0
    while coming[0][0] < seconds:
        when, number, refused = heapq.heappop(coming)
        while other_every and other <= when:
            now = other
            wait()
            other += other_every
        now = when
        if told := wait():
            heapq.heappush(coming, (when + told, number, refused + 1))
        else:
            taken, most = taken + 1, max(most, refused)
            heapq.heappush(coming, (when + 0.2, number, 0))
    return taken, most


@pytest.mark.parametrize(
    ("other_every", "workers", "least"), [(0, 4, 619), (0, 16, 619), (3.1, 4, 500), (1.3, 4, 400), (0.9, 4, 300)]
)
def test_who_heeds_is_not_driven_away_by_who_does_not(other_every: float, workers: int, least: int) -> None:
    taken, refused = _pictures(600, workers=workers, other_every=other_every)
    assert taken >= least
    assert refused <= 4


@pytest.mark.parametrize(
    ("per_minute", "burst", "workers", "seconds"),
    [(600, 5, 30, 600), (600, 2, 16, 600), (2400, 20, 60, 60), (60, 1, 4, 600)],
)
def test_places_that_are_kept_cost_nothing_of_the_rate(per_minute: int, burst: int, workers: int, seconds: int) -> None:
    taken, _ = _pictures(seconds, workers=workers, per_minute=per_minute, burst=burst)
    allowed = burst + per_minute * seconds / 60
    assert 0.99 * allowed <= taken <= allowed


@pytest.mark.parametrize(("requests", "at_once"), [(60, 4), (80, 16)])
def test_a_batch_is_refused_seldom_and_loses_no_place(requests: int, at_once: int) -> None:
    now = 0.0
    rate = RateLimit(per_minute=60, burst=20, clock=lambda: now)
    coming = [(0.01 * number, 0) for number in range(at_once)]  # when, and how often it was refused before
    waiting, refused = requests - at_once, [0]
    while coming:
        now, times = heapq.heappop(coming)
        try:
            rate.take("shop")
        except RateLimitedError as error:
            heapq.heappush(coming, (now + (error.retry_after or 0) + 0.001, times + 1))
            continue
        refused.append(times)
        if waiting:
            waiting -= 1
            heapq.heappush(coming, (now + 0.3, 0))
    assert max(refused) <= 2
    assert now < requests - 20 + 2


def test_a_rate_is_a_burst_and_then_a_refill() -> None:
    now = 0.0
    rate = RateLimit(per_minute=30, burst=2, clock=lambda: now)

    rate.take("shop")
    rate.take("shop")
    with pytest.raises(RateLimitedError) as caught:
        rate.take("shop")
    assert caught.value.retry_after == 2
    rate.take("another")
    now = 1.9
    with pytest.raises(RateLimitedError):
        rate.take("shop")
    now = 2.0
    rate.take("shop")
    now = 1000.0
    for _ in range(2):
        rate.take("shop")
    with pytest.raises(RateLimitedError):
        rate.take("shop")
