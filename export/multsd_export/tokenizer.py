"""The checkpoint's tokenizer as one `tokenizer.json`, the file of the `tokenizers` library.

Padding and truncation are left out of it: the orchestrator does both itself, since it tells what it cuts.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import CLIPTokenizer, PreTrainedTokenizerFast

from multsd_export.errors import CheckpointError

SAMPLE_PROMPTS = (
    "",
    "a photo of the dolomites",
    "a Husky dog, (deformed iris:1.4), 3D render; it's 50% off!",
    "  spaces \t and\nlines  ",
    "caf\u00e9 na\u00efve \u65e5\u672c \U0001f680 \u00c4\u00d6\u00dc",
    "a very long prompt " * 40,
)


@dataclass(frozen=True)
class ConvertedTokenizer:
    """A tokenizer file's text and the id that fills a prompt up to its length."""

    text: str
    pad_token_id: int


def convert_tokenizer(folder: Path) -> ConvertedTokenizer:
    """Read a checkpoint's `tokenizer` folder and write it as one file's text.

    Raises:
        CheckpointError: there is no padding token, or the file gives other ids than transformers does.
    """
    source = _load(folder)
    if source.pad_token_id is None:
        raise CheckpointError("tokenizer: there is no pad_token.")
    converted = Tokenizer.from_str(source.backend_tokenizer.to_str())
    converted.no_padding()
    converted.no_truncation()
    text = converted.to_str()
    check_ids(Tokenizer.from_str(text), source)
    return ConvertedTokenizer(text, int(source.pad_token_id))


def check_ids(converted: Tokenizer, source: Any) -> None:
    """Raise CheckpointError where a sample prompt gets other ids than from transformers."""
    for prompt in SAMPLE_PROMPTS:
        expected = source(prompt, truncation=False, verbose=False)["input_ids"]
        if converted.encode(prompt).ids != expected:
            raise CheckpointError(f"tokenizer: tokenizer.json gives other ids than transformers for {prompt!r}.")


def _load(folder: Path) -> Any:
    tokenizer_class = CLIPTokenizer if (folder / "vocab.json").exists() else PreTrainedTokenizerFast
    return tokenizer_class.from_pretrained(folder, local_files_only=True)
