"""The checkpoint's tokenizer as one `tokenizer.json`, the file of the `tokenizers` library.

Padding and truncation are left out of it: the orchestrator does both itself, since it tells what it cuts.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

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


def convert_tokenizer(folder: Path, vocab_size: int) -> ConvertedTokenizer:
    """Read a checkpoint's `tokenizer` folder and write it as one file's text.

    Args:
        vocab_size: of the text encoder, whose embeddings are looked up by these ids.

    Raises:
        CheckpointError: the files cannot be read, there is no padding token, an id has no embedding, or the file gives
            other ids than transformers does.
    """
    source = _load(folder)
    if source.pad_token_id is None:
        raise CheckpointError(f"{folder.name}: there is no pad_token.")
    converted = Tokenizer.from_str(source.backend_tokenizer.to_str())
    converted.no_padding()
    converted.no_truncation()
    text = converted.to_str()
    check_ids(Tokenizer.from_str(text), source)
    _check_vocabulary(converted, source, folder.name, vocab_size)
    return ConvertedTokenizer(text, int(source.pad_token_id))


def check_ids(converted: Tokenizer, source: Any) -> None:
    """Raise CheckpointError where a sample prompt gets other ids than from transformers."""
    for prompt in SAMPLE_PROMPTS:
        expected = source(prompt, truncation=False, verbose=False)["input_ids"]
        if converted.encode(prompt).ids != expected:
            raise CheckpointError(f"tokenizer: tokenizer.json gives other ids than transformers for {prompt!r}.")


def _check_vocabulary(converted: Tokenizer, source: Any, name: str, vocab_size: int) -> None:
    """Refuse an id without embedding: on a GPU, a prompt that reaches it ends the process."""
    ids = converted.get_vocab(with_added_tokens=True) | {source.pad_token: source.pad_token_id}
    ids |= {f"token {index}": index for index in converted.encode("").ids}  # of the template around a prompt
    token = max(ids, key=ids.__getitem__)
    largest = ids[token]
    if largest >= vocab_size:
        raise CheckpointError(
            f"{name}: {token!r} has the id {largest}, expected less than the text encoder's vocab_size, {vocab_size}."
        )


def _load(folder: Path) -> Any:
    from transformers import CLIPTokenizer, PreTrainedTokenizerFast  # takes a second to import

    tokenizer_class = CLIPTokenizer if (folder / "vocab.json").exists() else PreTrainedTokenizerFast
    try:
        return tokenizer_class.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # of no class in particular: the library in Rust raises plain Exceptions
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(f"{folder.name}: the tokenizer cannot be read: {reason}") from error
