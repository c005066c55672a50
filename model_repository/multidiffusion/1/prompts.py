"""Prompts: from texts to token ids, each distinct text once.

R regions, U distinct texts, L tokens (the text encoder's length).
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

WEIGHT = re.compile(r"\((?:[^()]*,)?\s*([^(),]*:\s*\d+(?:\.\d+)?)\s*\)")  # "(word:1.4)", a habit from other tools


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

    input_ids: npt.NDArray[np.int32]  # (U, L)
    prompt_embedding: tuple[int, ...]  # (R) row of input_ids for each prompt
    negative_embedding: tuple[int, ...]  # (R)
    warnings: tuple[tuple[str, str], ...]  # (field, message)


def tokenize_prompts(
    tokenizer: PromptTokenizer, prompt: Sequence[str], negative_prompt: Sequence[str]
) -> TokenizedPrompts:
    """Tokenize all texts of a request. Texts whose ids are equal share one row, as they would share one embedding."""
    tokenized = {text: tokenizer.tokenize(text) for text in (*prompt, *negative_prompt)}
    rows = {ids: row for row, ids in enumerate(dict.fromkeys(text.ids for text in tokenized.values()))}
    fields = [*_fields("prompt", prompt), *_fields("negative_prompt", negative_prompt)]
    return TokenizedPrompts(
        input_ids=np.array(list(rows), dtype=np.int32),
        prompt_embedding=tuple(rows[tokenized[text].ids] for text in prompt),
        negative_embedding=tuple(rows[tokenized[text].ids] for text in negative_prompt),
        warnings=tuple(
            (field, message) for field, text in fields for message in _warnings(text, tokenized[text], tokenizer)
        ),
    )


def _fields(name: str, texts: Sequence[str]) -> list[tuple[str, str]]:
    return [(f"{name}[{index}]", text) for index, text in enumerate(texts)]


def _warnings(text: str, tokenized: TokenizedText, tokenizer: PromptTokenizer) -> list[str]:
    messages = []
    if tokenized.cut:
        messages.append(f"cut at {tokenizer.max_length} tokens; left out: {tokenized.cut!r}")
    if weight := WEIGHT.search(text):
        messages.append(f"weights such as {weight.group(1)[-60:]!r} are read as plain text, not applied")
    return messages
