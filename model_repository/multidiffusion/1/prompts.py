"""Prompts: from texts to token ids, each distinct text once.

R regions, U distinct texts, L tokens (the text encoder's length).
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

# Each in time that grows with the text alone: a pattern holds the interpreter for as long as it is matched.
IN_PARENTHESES = re.compile(r"\(([^()]*)\)")
WEIGHTED = re.compile(r".*:\s*\d+(?:\.\d+)?", re.DOTALL)


@dataclass(frozen=True)
class TokenizedText:
    """A text as the text encoder gets it."""

    ids: tuple[int, ...]  # (L)
    cut: str  # what did not fit, "" when all did


@dataclass(frozen=True)
class PromptTokenizer:
    """The checkpoint's tokenizer with its own length and padding."""

    tokenizer: Tokenizer
    max_length: int
    pad_token_id: int

    def tokenize(self, text: str) -> TokenizedText:
        """Ids with start and end token, cut or padded to `max_length`."""
        encoding = self.tokenizer.encode(text)
        ids = list(encoding.ids)
        cut = ""
        if len(ids) > self.max_length:
            cut = text[encoding.offsets[self.max_length - 1][0] :]
            ids = [*ids[: self.max_length - 1], ids[-1]]
        padding = [self.pad_token_id] * (self.max_length - len(ids))
        return TokenizedText(ids=(*ids, *padding), cut=cut)


@dataclass(frozen=True)
class TokenizedPrompts:
    """The texts of a request, equal ones once."""

    input_ids: tuple[npt.NDArray[np.int32], ...]  # (U, L) for each tokenizer
    zeroed: tuple[bool, ...]  # (U) texts whose embeddings are zeros
    prompt_embedding: tuple[int, ...]  # (R) which text each prompt is
    negative_embedding: tuple[int, ...]  # (R)
    warnings: tuple[tuple[str, str], ...]  # (field, message)


@dataclass(frozen=True)
class _Text:
    """What makes two texts one: every tokenizer's ids, and whether they count at all."""

    ids: tuple[tuple[int, ...], ...]
    zeroed: bool


def tokenize_prompts(
    tokenizers: Sequence[PromptTokenizer],
    prompt: Sequence[str],
    negative_prompt: Sequence[str],
    *,
    zero_empty_negatives: bool = False,
) -> TokenizedPrompts:
    """Tokenize all texts of a request. Texts whose ids are equal share one row, as they would share one embedding."""
    tokenized = {text: [each.tokenize(text) for each in tokenizers] for text in (*prompt, *negative_prompt)}

    def texts(values: Sequence[str], *, zero_empty: bool) -> list[_Text]:
        return [
            _Text(tuple(each.ids for each in tokenized[value]), zero_empty and not value.strip()) for value in values
        ]

    prompts = texts(prompt, zero_empty=False)
    negatives = texts(negative_prompt, zero_empty=zero_empty_negatives)
    distinct = {text: row for row, text in enumerate(dict.fromkeys((*prompts, *negatives)))}
    fields = [*_fields("prompt", prompt), *_fields("negative_prompt", negative_prompt)]
    return TokenizedPrompts(
        input_ids=tuple(
            np.array([text.ids[encoder] for text in distinct], dtype=np.int32) for encoder in range(len(tokenizers))
        ),
        zeroed=tuple(text.zeroed for text in distinct),
        prompt_embedding=tuple(distinct[text] for text in prompts),
        negative_embedding=tuple(distinct[text] for text in negatives),
        # The tokenizers of a checkpoint differ in padding alone: what one of them cuts they all cut.
        warnings=tuple(
            (field, message) for field, text in fields for message in _warnings(text, tokenized[text][0], tokenizers[0])
        ),
    )


def _fields(name: str, texts: Sequence[str]) -> list[tuple[str, str]]:
    return [(f"{name}[{index}]", text) for index, text in enumerate(texts)]


def _warnings(text: str, tokenized: TokenizedText, tokenizer: PromptTokenizer) -> list[str]:
    messages = []
    if tokenized.cut:
        messages.append(f"cut at {tokenizer.max_length} tokens; left out: {tokenized.cut!r}")
    if weight := find_weight(text):
        messages.append(f"weights such as {weight[-60:]!r} are read as plain text, not applied")
    return messages


def find_weight(text: str) -> str | None:
    """The first weighted word, a habit from other tools: "word:1.4" where the text has "(word:1.4)"."""
    inside = (each[1].rpartition(",")[2].strip() for each in IN_PARENTHESES.finditer(text))
    return next(filter(WEIGHTED.fullmatch, inside), None)
