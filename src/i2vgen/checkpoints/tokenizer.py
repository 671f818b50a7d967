"""CLIP's tokenizer, for released folders that have none: open_clip carries it in its package."""

from __future__ import annotations

import json
import lzma
import tempfile
from pathlib import Path

from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTokenizerFast  # in transformers 5 the only one; 4 has a slow one that splits otherwise

MERGES_PATH = Path(__file__).parent / "clip_merges.txt.xz"
START, END = "<|startoftext|>", "<|endoftext|>"


def clip_tokenizer(max_length: int = 77) -> CLIPTokenizerFast:
    """OpenAI's CLIP tokenizer, 49408 tokens in CLIP's order, built from the bundled merges.

    It pads with the end token, as transformers does; the original code pads with id 0.
    """
    with tempfile.TemporaryDirectory() as folder:
        write_vocabulary(Path(folder))
        return CLIPTokenizerFast.from_pretrained(folder, model_max_length=max_length)


def write_vocabulary(folder: Path) -> None:
    """Write vocab.json, merges.txt and the configuration, as transformers reads them."""
    merges = lzma.decompress(MERGES_PATH.read_bytes()).decode().splitlines()
    tokens = _byte_tokens()
    tokens += [token + "</w>" for token in tokens] + [merge.replace(" ", "") for merge in merges] + [START, END]
    (folder / "vocab.json").write_text(
        json.dumps({token: index for index, token in enumerate(tokens)}, ensure_ascii=False), encoding="utf-8"
    )
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")
    config = {"tokenizer_class": "CLIPTokenizer", "bos_token": START}
    config |= dict.fromkeys(("eos_token", "pad_token", "unk_token"), END)
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def _byte_tokens() -> list[str]:
    """The 256 one-byte tokens, in CLIP's order: bytes that print as themselves, then the others."""
    return sorted(ByteLevel.alphabet(), key=lambda token: ord(token))
