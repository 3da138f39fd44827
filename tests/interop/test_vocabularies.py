import base64
import gzip
import json
import time
from itertools import pairwise

import pytest

from diptych.interop.tokenizers import (
    read_clip_vocabulary,
    read_gpt2_vocabulary,
    read_llama2c_pieces,
    read_tiktoken_ranks,
)

TEXTS = [
    "Hello world",
    "a photo of a cat",
    "It's 2024: don't PANIC!!",
    "naïve café — “quotes”",
    "مرحبا שלום 你好",
    "👩‍🚀🙂 x\u200dy",
    "tabs\tand\r\nnew\n\nlines  and   spaces ",
    "def f(x):\n    return x**2  # 12345",
    "<|endoftext|> <|im_end|>",
    "a" * 60 + " " + "ab" * 40,
]


def merge_by_rank(data: bytes, ranks: dict[bytes, int]) -> list[int]:
    """What a file of ranks means, literally: merge the adjacent pair of lowest rank until none is left."""
    parts = [data[i : i + 1] for i in range(len(data))]
    while True:
        pairs = [(ranks[a + b], i) for i, (a, b) in enumerate(pairwise(parts)) if a + b in ranks]
        if not pairs:
            return [ranks[part] for part in parts]
        index = min(pairs)[1]
        parts[index : index + 2] = [parts[index] + parts[index + 1]]


def write_ranks(path, tokens):
    lines = [base64.b64encode(token) + b" " + str(rank).encode() for rank, token in enumerate(tokens)]
    path.write_bytes(b"\n".join(lines) + b"\n")


def test_small_rank_file(tmp_path):
    bytes_first = [bytes([byte]) for byte in range(256)]
    learnt = [b"he", b"ll", b"hell", b"hello", b" w", b"or", b" wor", "é".encode()]
    write_ranks(tmp_path / "ranks", bytes_first + learnt)
    tokenizer = read_tiktoken_ranks(tmp_path / "ranks", special_tokens=("<|stop|>",))
    ranks = {token: rank for rank, token in enumerate(bytes_first + learnt)}
    assert tokenizer.encode("hello") == [ranks[b"hello"]]
    assert tokenizer.encode("hello wor é") == [
        ranks[b"hello"],
        ranks[b" wor"],
        ranks[b" "],
        ranks["é".encode()],
    ]
    assert tokenizer.special == {"<|stop|>": 264}
    for text in ("hellohe llo", "worwé"):
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_damaged_files(tmp_path):
    bytes_first = [bytes([byte]) for byte in range(256)]
    with pytest.raises(FileNotFoundError, match=r"vocabulary file .*none is missing"):
        read_tiktoken_ranks(tmp_path / "none")
    write_ranks(tmp_path / "ranks", [*bytes_first, b"abcd"])
    with pytest.raises(ValueError, match=r"token b'abcd' of rank 256 cannot be merged"):
        read_tiktoken_ranks(tmp_path / "ranks")
    (tmp_path / "ranks").write_bytes(b"IQ== 0\nIg==")
    with pytest.raises(ValueError, match=r"ranks, line 2: expected base64 and a rank, got b'Ig=='"):
        read_tiktoken_ranks(tmp_path / "ranks")
    (tmp_path / "clip.gz").write_bytes(gzip.compress(b"#version\ni n\n"))
    with pytest.raises(ValueError, match="holds 1 merges, CLIP needs 48894"):
        read_clip_vocabulary(tmp_path / "clip.gz")
    (tmp_path / "vocab.json").write_text('{"a": 0')
    with pytest.raises(ValueError, match=r"vocab\.json is no JSON"):
        read_gpt2_vocabulary(tmp_path)
    (tmp_path / "vocab.json").write_text('{"a": 0}')
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b c\n")
    with pytest.raises(ValueError, match=r"merges\.txt: a merge must be two pieces, got 'a b c'"):
        read_gpt2_vocabulary(tmp_path)
    (tmp_path / "tok.json").write_text("[]")
    with pytest.raises(ValueError, match="must hold 'pieces' and 'scores'"):
        read_llama2c_pieces(tmp_path / "tok.json")


@pytest.fixture(scope="module")
def clip(test_data):
    return read_clip_vocabulary(test_data / "tokenizers/clip/bpe_simple_vocab_16e6.txt.gz")


@pytest.fixture(scope="module")
def gpt2(test_data):
    return read_gpt2_vocabulary(test_data / "tokenizers/gpt2")


@pytest.fixture(scope="module")
def qwen(test_data):
    return read_tiktoken_ranks(test_data / "tokenizers/qwen/qwen.tiktoken")


def test_clip(clip):
    tokenizer = clip
    assert tokenizer.vocab_size == 49_408
    assert tokenizer.encode("a photo of a cat") == [320, 1125, 539, 320, 2368]
    assert tokenizer.special == {"<|startoftext|>": 49_406, "<|endoftext|>": 49_407}
    assert tokenizer.decode(tokenizer.encode("A  Photo\nof a naïve CAT, 你好")) == "a photo of a naïve cat , 你好"
    for text in TEXTS:
        assert not set(tokenizer.encode(text)) & {49_406, 49_407}


def test_clip_is_the_tokenizer_of_transformers(clip, tmp_path):
    transformers = pytest.importorskip("transformers")
    clip.save(tmp_path)
    model = json.loads((tmp_path / "tokenizer.json").read_text())["model"]
    merges = [tuple(pair) for pair in model["merges"]]
    theirs = transformers.CLIPTokenizer(vocab={**model["vocab"], **clip.special}, merges=merges)
    for text in TEXTS[:8]:
        assert clip.encode(text) == theirs(text, add_special_tokens=False)["input_ids"]


def test_gpt2(gpt2):
    tokenizer = gpt2
    assert tokenizer.vocab_size == 50_257
    assert tokenizer.encode("Hello world") == [15_496, 995]
    assert tokenizer.special == {"<|endoftext|>": 50_256}
    for text in TEXTS:
        ids = tokenizer.encode(text)
        assert 50_256 not in ids
        assert tokenizer.decode(ids) == text


def test_qwen(qwen, test_data):
    path, tokenizer = test_data / "tokenizers/qwen/qwen.tiktoken", qwen
    assert tokenizer.vocab_size == 151_646
    assert tokenizer.encode("Hello world") == [9707, 1879]
    assert tokenizer.special["<|im_start|>"] == 151_644
    ranks = {}
    for line in path.read_bytes().splitlines():
        token, rank = line.split()
        ranks[base64.b64decode(token)] = int(rank)
    words = [" photograph", "你好世界", "antidisestablishmentarianism", "a" * 37, " Übergröße", "🏳️‍🌈", "));\n\n"]
    for word in words:  # words that the pattern leaves whole
        assert tokenizer.encode(word) == merge_by_rank(word.encode(), ranks)
    for text in TEXTS:
        ids = tokenizer.encode(text)
        assert max(ids) < 151_643
        assert tokenizer.decode(ids) == text


def test_llama2c(test_data):
    folder = test_data / "models/stories260k"
    tokenizer = read_llama2c_pieces(folder / "tok512.json")
    check = json.loads((folder / "config.json").read_text())["check"]
    assert [tokenizer.special["<s>"], *tokenizer.encode(check["prompt"])] == check["prompt_ids"]
    assert tokenizer.vocab_size == 512
    for text in TEXTS:
        assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("name", ["clip", "gpt2", "qwen"])
def test_very_long_text_is_fast(name, request):
    tokenizer = request.getfixturevalue(name)
    for text in ("a red circle " * 8000, "x" * 100_000):
        start = time.process_time()
        tokenizer.encode(text)
        assert time.process_time() - start < 1
