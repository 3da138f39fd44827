"""Released vocabularies in their own files: CLIP's merges, GPT-2's two files, tiktoken ranks, llama2.c's pieces."""

import base64
import binascii
import gzip
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diptych.data.tokenizer import FastTokenizer

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Engine

CLIP_NUM_MERGES = 48_894
QWEN_SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")

_CLIP_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"
_QWEN_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def read_clip_vocabulary(path: str | Path) -> FastTokenizer:
    """CLIP's tokenizer (arXiv 2103.00020, section 2.4) from ``bpe_simple_vocab_16e6.txt.gz``: 49,408 entries.

    Text is composed (NFC), its spaces joined and its letters made small, as ``transformers`` does; the original also
    repairs broken encodings and HTML entities.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: it holds too few merges.
    """
    from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers
    from tokenizers import Tokenizer as Engine

    lines = gzip.decompress(_read(path)).decode().splitlines()[1 : CLIP_NUM_MERGES + 1]
    if len(lines) < CLIP_NUM_MERGES:
        raise ValueError(
            f"{path} holds {len(lines)} merges, CLIP needs {CLIP_NUM_MERGES}. The file is cut; get it again."
        )
    merges = [_pair(line, path) for line in lines]
    letters = list(_byte_letters().values())
    names = [*letters, *(letter + "</w>" for letter in letters), *(left + right for left, right in merges)]
    engine = Engine(
        models.BPE(vocab={name: index for index, name in enumerate(names)}, merges=merges, end_of_word_suffix="</w>")
    )
    engine.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    split = pre_tokenizers.Split(Regex(_CLIP_PATTERN), "removed", invert=True)
    engine.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    space = _byte_letters()[ord(" ")]
    engine.decoder = decoders.Sequence(
        [decoders.Replace("</w>", space), decoders.ByteLevel(), decoders.Strip(" ", 0, 1)]
    )
    return _finish(engine, ("<|startoftext|>", "<|endoftext|>"))


def read_gpt2_vocabulary(folder: str | Path, special_tokens: Sequence[str] = ("<|endoftext|>",)) -> FastTokenizer:
    """GPT-2's byte-level tokenizer from ``vocab.json`` and ``merges.txt``: 50,257 entries.

    Args:
        special_tokens: those that the vocabulary holds already keep their ids.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is damaged.
    """
    from tokenizers import Tokenizer as Engine
    from tokenizers import decoders, models, pre_tokenizers

    vocab = _read_json(Path(folder) / "vocab.json")
    path = Path(folder) / "merges.txt"
    lines = [line for line in _read(path).decode().splitlines() if line and not line.startswith("#version")]
    engine = Engine(models.BPE(vocab=vocab, merges=[_pair(line, path) for line in lines]))
    engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    engine.decoder = decoders.ByteLevel()
    return _finish(engine, special_tokens)


def read_tiktoken_ranks(
    path: str | Path, special_tokens: Sequence[str] = QWEN_SPECIAL_TOKENS, pattern: str = _QWEN_PATTERN
) -> FastTokenizer:
    """A byte-level tokenizer from lines of ``base64(token) rank`` (Qwen's ``qwen.tiktoken``: 151,643 ranks).

    Such a file names tokens, not merges: of the neighbours whose union is a token, those of lowest rank are merged. The
    merge that makes a token is what is left when the token itself is taken apart by the tokens before it.

    Args:
        special_tokens: take the ids that follow the last rank.
        pattern: how text is cut before merging; Qwen's by default.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: a line is no token and rank, or a token cannot be merged from the ones before it.
    """
    from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers
    from tokenizers import Tokenizer as Engine

    ranks: dict[bytes, int] = {}
    for number, line in enumerate(_read(path).splitlines(), start=1):
        try:
            encoded, rank = line.split()
            ranks[base64.b64decode(encoded, validate=True)] = int(rank)
        except (ValueError, binascii.Error) as error:
            raise ValueError(f"{path}, line {number}: expected base64 and a rank, got {line[:40]!r}.") from error
    letters = _byte_letters()
    names = {token: "".join(letters[byte] for byte in token) for token in ranks}
    merges = [(names[left], names[right]) for left, right in _last_merges(ranks, path)]
    engine = Engine(models.BPE(vocab={names[token]: rank for token, rank in ranks.items()}, merges=merges))
    engine.normalizer = normalizers.NFC()
    engine.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    engine.decoder = decoders.ByteLevel()
    return _finish(engine, special_tokens)


def read_llama2c_pieces(path: str | Path) -> FastTokenizer:
    """A SentencePiece vocabulary as pieces with scores (``tok512.json`` of llama2.c's small models).

    A space is put before the text; neighbours whose union has the highest score are merged; characters without a piece
    become their bytes, ids 3 to 258. ``<s>`` and ``</s>`` are the special tokens 1 and 2.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: it is damaged.
    """
    from tokenizers import Tokenizer as Engine
    from tokenizers import decoders, models, normalizers

    given = _read_json(path)
    try:
        pieces, scores = list(given["pieces"]), list(given["scores"])
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} must hold 'pieces' and 'scores'.") from error
    pieces[:3] = ["<unk>", "<s>", "</s>"]
    vocab = {piece: index for index, piece in enumerate(pieces)}
    merges = [
        (piece[:cut], piece[cut:])
        for _, piece in sorted(zip(scores[259:], pieces[259:], strict=True), key=lambda entry: -entry[0])
        for cut in range(1, len(piece))
        if piece[:cut] in vocab and piece[cut:] in vocab
    ]
    engine = Engine(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", byte_fallback=True))
    engine.normalizer = normalizers.Prepend(" ")
    engine.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    return _finish(engine, ("<s>", "</s>"))


def _last_merges(ranks: Mapping[bytes, int], path: str | Path) -> Iterator[tuple[bytes, bytes]]:
    """The merge that makes each token of several bytes, in the order of ranks."""
    for token, rank in sorted(ranks.items(), key=lambda entry: entry[1]):
        if len(token) == 1:
            continue
        halves = [(token[:cut], token[cut:]) for cut in range(1, len(token))]
        halves = [(left, right) for left, right in halves if max(ranks.get(left, rank), ranks.get(right, rank)) < rank]
        if not halves:
            raise ValueError(f"{path}: token {token!r} of rank {rank} cannot be merged from the tokens before it.")
        yield halves[0] if len(halves) == 1 else _merge_to_two(token, ranks)


def _merge_to_two(token: bytes, ranks: Mapping[bytes, int]) -> tuple[bytes, bytes]:
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        best = min(range(len(parts) - 1), key=lambda i: ranks.get(parts[i] + parts[i + 1], len(ranks)))
        parts[best : best + 2] = [parts[best] + parts[best + 1]]
    return parts[0], parts[1]


def _byte_letters() -> dict[int, str]:
    """GPT-2's letter for every byte, in its order: printable ones stand for themselves, the rest follow from 256 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}


def _finish(engine: "Engine", special_tokens: Sequence[str]) -> FastTokenizer:
    from tokenizers import AddedToken

    engine.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in special_tokens])
    return FastTokenizer(engine.to_str())


def _pair(line: str, path: str | Path) -> tuple[str, str]:
    parts = line.split()
    if len(parts) != 2:
        raise ValueError(f"{path}: a merge must be two pieces, got {line!r}.")
    return parts[0], parts[1]


def _read(path: str | Path) -> bytes:
    if not Path(path).is_file():
        raise FileNotFoundError(f"vocabulary file {path} is missing.")
    return Path(path).read_bytes()


def _read_json(path: str | Path) -> Any:
    try:
        return json.loads(_read(path))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON ({error}). The file is cut; get it again.") from error
