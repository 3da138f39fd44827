"""Text to token ids and back: a byte-level tokenizer of our own training, and those of ``transformers``.

Both are run by the ``tokenizers`` library and described completely by one ``tokenizer.json``, whose sha256 is the
fingerprint that a model folder remembers.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

_FILE_NAME = "tokenizer.json"
_SIDE_FILES = ("tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")
_WHOLE_WORD_SHARE = 0.75
_SPLIT_PATTERN = r" ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""A word or a run of signs, each with the space before it; a single digit; spaces."""


@runtime_checkable
class Tokenizer(Protocol):
    """Between text and ids. Special tokens have ids of their own that no text encodes to."""

    special: dict[str, int]
    """Special tokens by name."""
    vocab_size: int
    """All ids are below; special tokens included."""
    fingerprint: str
    """sha256 of the tokenizer's file."""

    def encode(self, text: str) -> list[int]:
        """Ids of a text, nothing added. The name of a special token inside the text is ordinary text."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids; special tokens are left out, bytes that form no character become U+FFFD."""
        ...

    def with_special_tokens(self, names: Sequence[str]) -> "Tokenizer":
        """The same tokenizer with further special tokens, whose ids follow the last one in the given order."""
        ...

    def save(self, folder: str | Path) -> None: ...

    @classmethod
    def load(cls, folder: str | Path) -> "Tokenizer": ...


class FastTokenizer:
    """Any tokenizer that the ``tokenizers`` library runs.

    Args:
        definition: the text of a ``tokenizer.json``.
        side_files: further files that ``transformers`` wants beside it, by name; kept, and saved again.

    Raises:
        ValueError: ``definition`` is no tokenizer.
    """

    def __init__(self, definition: str, side_files: Mapping[str, str] | None = None) -> None:
        from tokenizers import Tokenizer as Engine

        try:
            engine = Engine.from_str(definition)
        except Exception as error:  # the library raises bare Exception
            raise ValueError(
                f"tokenizer: not the text of a tokenizer.json ({error}). Copy the file from beside the model's weights."
            ) from error
        engine.no_truncation()
        engine.no_padding()
        engine.encode_special_tokens = True  # "<|im_end|>" typed by a user stays text
        self._engine = engine
        self._definition = definition
        self._side_files = dict(side_files or {})
        self.special: dict[str, int] = {
            token.content: token_id
            for token_id, token in sorted(engine.get_added_tokens_decoder().items())
            if token.special
        }
        self.vocab_size: int = max(engine.get_vocab(with_added_tokens=True).values()) + 1
        self.fingerprint = hashlib.sha256(definition.encode()).hexdigest()

    @property
    def definition(self) -> str:
        """The text of its ``tokenizer.json``."""
        return self._definition

    def encode(self, text: str) -> list[int]:
        """Ids of a text, nothing added. The name of a special token inside the text is ordinary text.

        Raises:
            ValueError: the text holds an unpaired surrogate (it was read from bytes that are not UTF-8).
        """
        try:
            ids: list[int] = self._engine.encode(text, add_special_tokens=False).ids
        except (UnicodeEncodeError, TypeError) as error:
            broken = next((i for i, char in enumerate(text) if "\ud800" <= char <= "\udfff"), None)
            if broken is None:
                raise
            raise ValueError(
                f"text: character {broken} ({text[broken]!r}) is half of a character. Give the text as valid UTF-8."
            ) from error
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids; special tokens are left out, bytes that form no character become U+FFFD."""
        return self._engine.decode(list(ids), skip_special_tokens=True)

    def with_special_tokens(self, names: Sequence[str]) -> "FastTokenizer":
        """The same tokenizer with further special tokens, whose ids follow the last one in the given order.

        Raises:
            ValueError: a name is taken.
        """
        from tokenizers import AddedToken
        from tokenizers import Tokenizer as Engine

        _check_names(names, taken=self.special)
        engine = Engine.from_str(self._definition)
        engine.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names])
        return FastTokenizer(engine.to_str(pretty=True), self._side_files)

    def save(self, folder: str | Path) -> None:
        """Write ``tokenizer.json`` and what belongs to it into a folder, which is made if need be."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in {_FILE_NAME: self._definition, **self._side_files}.items():
            (folder / name).write_text(text, encoding="utf-8", newline="\n")

    @classmethod
    def load(cls, folder: str | Path) -> "FastTokenizer":
        """The tokenizer of a folder with a ``tokenizer.json``.

        Raises:
            FileNotFoundError: there is none.
            ValueError: it is damaged.
        """
        path = Path(folder) / _FILE_NAME
        if not path.is_file():
            raise FileNotFoundError(
                f"tokenizer: {path} is missing. A model folder keeps it beside the weights; copy it from there."
            )
        side_files = {name: Path(folder) / name for name in _SIDE_FILES}
        try:
            # Bytes, not text mode: newline translation would change the fingerprint.
            texts = {name: file.read_bytes().decode() for name, file in side_files.items() if file.is_file()}
            return cls(path.read_bytes().decode(), texts)
        except ValueError as error:
            raise ValueError(f"{path} is damaged: {error}") from error

    @classmethod
    def from_transformers(cls, path_or_id: str | Path, revision: str | None = None) -> "FastTokenizer":
        """The fast tokenizer of a ``transformers`` model folder or hub id.

        Raises:
            ValueError: there is no such model, or it has none.
        """
        from tempfile import TemporaryDirectory

        from transformers import AutoTokenizer

        try:
            tokenizer: Any = AutoTokenizer.from_pretrained(str(path_or_id), revision=revision or "main")
        except (OSError, ValueError) as error:
            raise ValueError(
                f"tokenizer: {str(path_or_id)!r} is neither a folder with a tokenizer nor a hub id within reach "
                f"({str(error).strip().partition(chr(10))[0].rstrip('.')}). Check the path."
            ) from error
        if not tokenizer.is_fast:
            raise ValueError(
                f"tokenizer of {path_or_id}: transformers has no fast version of it, which is needed here."
            )
        with TemporaryDirectory() as folder:
            tokenizer.save_pretrained(folder)
            return cls.load(folder)

    def __reduce__(self) -> tuple[Any, ...]:
        """Workers get the definition: the library's own pickling forgets that special names are ordinary text."""
        return (type(self), (self._definition, self._side_files))


def train_tokenizer(texts: Iterable[str], vocab_size: int, special_tokens: Sequence[str] = ()) -> FastTokenizer:
    """Learn a byte-level tokenizer: any text round-trips, digits stand alone, frequent words are one token.

    Byte pair encoding (arXiv 1508.07909) builds a word out of several merges and spends an entry on each piece, which
    a vocabulary of a few hundred cannot afford. Three quarters of the entries beyond the 256 bytes go therefore to the
    words that save most tokens, whole and with the space before them; the rest to pairs merged in all other words.

    Args:
        vocab_size: upper limit of ids, bytes and special tokens included; fewer are used if the texts hold no more.
        special_tokens: get the last ids, in this order.

    Raises:
        ValueError: no text, no room, or a special token given twice.
    """
    from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers
    from tokenizers import Tokenizer as Engine

    _check_names(special_tokens, taken=())
    room = vocab_size - 256 - len(special_tokens)
    if room < 0:
        raise ValueError(
            f"tokenizer.vocab_size must be at least 256 bytes + {len(special_tokens)} special tokens, got {vocab_size}."
        )
    split = pre_tokenizers.Split(Regex(_SPLIT_PATTERN), "isolated")
    pieces = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(piece for piece, _ in pieces.pre_tokenize_str(text))
    if not counts:
        raise ValueError("tokenizer: there is no text to learn from.")
    repeated = [word for word in counts if len(word) > 1 and counts[word] > 1]
    repeated.sort(key=lambda word: (-counts[word] * (len(word) - 1), word))
    words = repeated[: int(room * _WHOLE_WORD_SHARE)]
    others = {word: counts[word] for word in sorted(counts.keys() - set(words))}
    vocab, merges = _learn_merges(others, 256 + room - len(words))
    for word in words:
        vocab.setdefault(word, len(vocab))
    # ignore_merges: a whole word of the vocabulary is taken as it is, whether or not merges lead to it.
    engine = Engine(models.BPE(vocab=vocab, merges=merges, ignore_merges=True))
    engine.pre_tokenizer = pieces
    engine.decoder = decoders.ByteLevel()
    engine.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in special_tokens])
    return FastTokenizer(engine.to_str(pretty=True))


def _learn_merges(counts: Mapping[str, int], vocab_size: int) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Byte pair encoding of counted words: the vocabulary, the 256 bytes first, and the merges in order."""
    from tokenizers import Tokenizer as Engine
    from tokenizers import models, pre_tokenizers, trainers

    def lines() -> Iterator[str]:
        for word, count in counts.items():
            for start in range(0, count, 1000):
                yield " ".join([word] * min(1000, count - start))

    engine = Engine(models.BPE())
    engine.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=alphabet, show_progress=False)
    engine.train_from_iterator(lines(), trainer)
    model = json.loads(engine.to_str())["model"]
    return model["vocab"], [tuple(pair) for pair in model["merges"]]


def _check_names(names: Sequence[str], taken: Iterable[str]) -> None:
    seen = set(taken)
    for name in names:
        if not name or name in seen:
            raise ValueError(f"tokenizer: the special token {name!r} is empty or exists already. Leave it out.")
        seen.add(name)
