"""Bearer tokens: which files are read, and who is let in."""

from __future__ import annotations

from pathlib import Path

import pytest

from multsd_gateway.errors import RateLimitedError, UnauthorizedError
from multsd_gateway.rate import RateLimit
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
    "text", ["", "# nobody\n", "short\n", "two words of enough characters\n", "a:b:0123456789abcdef\n"]
)
def test_a_file_that_lets_nobody_in_or_anybody_guess_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ValueError, match="expected") as caught:
        read_tokens(_file(tmp_path, text))
    assert "two words" not in str(caught.value)


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
