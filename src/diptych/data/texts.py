"""The texts of a data set of any readable format, for training a tokenizer on them."""

from collections.abc import Iterable, Iterator
from contextlib import suppress

from diptych.data.example import Text
from diptych.data.prompt_format import compact_format
from diptych.data.records import Fields, Task, conversation_parts
from diptych.data.sources.detect import open_fields
from diptych.data.sources.protocol import BadRecord
from diptych.data.tokenizer import FastTokenizer, train_tokenizer


def read_texts(path: str, task: Task | None = None, split: str = "train") -> Iterator[str]:
    """Captions, questions, answers and instructions, in the order of the records; broken records are passed over.

    Raises:
        FileNotFoundError: no such path.
        ValueError: no known format.
    """
    _, _, reader = open_fields(path, task, split)
    for index in range(len(reader)):
        with suppress(BadRecord):
            yield from _texts_of(reader.fields(index))


def train_tokenizer_on(paths: Iterable[str], vocab_size: int, split: str = "train") -> FastTokenizer:
    """A byte-level tokenizer of the words of data sets, with the special tokens of our own prompt format.

    Raises:
        ValueError: the data holds no text, or ``vocab_size`` leaves no room for it.
    """
    texts = (text for path in paths for text in read_texts(path, split=split))
    return train_tokenizer(texts, vocab_size, compact_format().special_tokens())


def _texts_of(fields: Fields) -> Iterator[str]:
    values = fields.values
    for name in ("question", "text"):
        value = values.get(name, ())
        yield from [value] if isinstance(value, str) else value
    if "conversation" in values:
        parts = conversation_parts(values["conversation"], values.get("images", ()), fields.name)
        yield from (part.text for part in parts if isinstance(part, Text))
