import json
import pickle
import subprocess
import sys
import time

import pytest

from diptych.data.tokenizer import FastTokenizer, train_tokenizer
from diptych.train.part_configs import TokenizerConfig

SPECIAL = ("<|end|>", "<|image|>")
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring", "heart", "diamond")
COLOURS = ("red", "green", "blue", "yellow", "purple", "orange", "white", "brown")
TEXTS = [
    f"a {size} {colour} {shape} {relation} a {other} square, {count} of them"
    for size in ("small", "medium", "large")
    for colour in COLOURS
    for shape in SHAPES
    for relation, other, count in (("above", "blue", 12), ("to the left of", "green", 3))
]
STRANGE = [
    "",
    " ",
    "  two  spaces ",
    "line\nbreak\r\n\ttab",
    "👩‍🚀 🏳️‍🌈 ❤️",
    "مرحبا بالعالم — שלום עולם",
    "नमस्ते दुनिया",
    "中文日本語한국어",
    "\u202eright to left override\u202c",
    "e\u0301 is not é",
    "\x00\x7f\ufffd",
    "3.14159 and 007",
    "don't — “quote” … ½",
]


@pytest.fixture(scope="module")
def tokenizer() -> FastTokenizer:
    return train_tokenizer(TEXTS, vocab_size=512, special_tokens=SPECIAL)


@pytest.mark.parametrize("text", STRANGE)
def test_any_text_round_trips(tokenizer, text):
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert all(0 <= token < tokenizer.vocab_size for token in ids)


def test_common_words_are_single_tokens_in_a_small_vocabulary(tokenizer):
    words = (*SHAPES, *COLOURS, "small", "medium", "large", "above", "left", "of", "them")
    assert {word: len(tokenizer.encode(f" {word}")) for word in words} == dict.fromkeys(words, 1)
    assert len(tokenizer.encode("a small red circle above a blue square")) == 8


def test_a_vocabulary_too_small_for_all_merges_still_holds_the_frequent_words():
    small = train_tokenizer(TEXTS, vocab_size=256 + 48)
    assert len(small.encode("a small red circle above a blue square")) == 8
    assert small.vocab_size <= 256 + 48


def test_digits_stand_alone(tokenizer):
    assert len(tokenizer.encode("2048")) == 4
    assert tokenizer.encode("12")[1] == tokenizer.encode("2")[0]


def test_special_tokens_have_the_last_ids_and_no_text_becomes_one(tokenizer):
    assert list(tokenizer.special) == list(SPECIAL)
    assert list(tokenizer.special.values()) == [tokenizer.vocab_size - 2, tokenizer.vocab_size - 1]
    text = "a red circle<|end|> <|image|>"
    ids = tokenizer.encode(text)
    assert not set(ids) & set(tokenizer.special.values())
    assert tokenizer.decode(ids) == text


def test_decoding_leaves_special_tokens_out(tokenizer):
    ids = [tokenizer.special["<|image|>"], *tokenizer.encode("a star"), tokenizer.special["<|end|>"]]
    assert tokenizer.decode(ids) == "a star"


def test_a_cut_character_decodes_to_the_replacement_character(tokenizer):
    assert tokenizer.decode(tokenizer.encode("é")[:1]) == "\ufffd"


def test_saved_and_loaded_is_the_same(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "new" / "folder")
    again = FastTokenizer.load(tmp_path / "new" / "folder")
    assert (again.fingerprint, again.special, again.vocab_size) == (
        tokenizer.fingerprint,
        tokenizer.special,
        tokenizer.vocab_size,
    )
    assert again.encode(TEXTS[0] + "<|end|>") == tokenizer.encode(TEXTS[0] + "<|end|>")
    again.save(tmp_path / "twice")
    assert (tmp_path / "twice/tokenizer.json").read_bytes() == (tmp_path / "new/folder/tokenizer.json").read_bytes()


def test_a_worker_process_gets_the_same_tokenizer(tokenizer):
    copy = pickle.loads(pickle.dumps(tokenizer))
    assert copy.encode("a<|end|>") == tokenizer.encode("a<|end|>")
    assert copy.fingerprint == tokenizer.fingerprint


def test_training_gives_the_same_file_in_every_process(tokenizer):
    code = (
        "import json,sys; from diptych.data.tokenizer import train_tokenizer;"
        "print(train_tokenizer(json.load(sys.stdin), 512, ('<|end|>', '<|image|>')).fingerprint)"
    )
    other = subprocess.run(
        [sys.executable, "-c", code], input=json.dumps(TEXTS[::-1]), capture_output=True, text=True, check=True
    )
    assert other.stdout.strip() == tokenizer.fingerprint


def test_very_long_text_is_fast(tokenizer):
    for text in ("a red circle " * 8000, "x" * 100_000, "🙂" * 100_000, " " * 100_000):
        start = time.process_time()
        ids = tokenizer.encode(text)
        assert time.process_time() - start < 1
        assert tokenizer.decode(ids) == text


def test_added_special_tokens_follow_the_last_id(tokenizer):
    more = tokenizer.with_special_tokens(["[IMG]", "[/IMG]"])
    assert more.special["[IMG]"] == tokenizer.vocab_size
    assert more.special["[/IMG]"] == tokenizer.vocab_size + 1
    assert more.encode("[IMG] a star") == tokenizer.encode("[IMG] a star")
    assert more.fingerprint != tokenizer.fingerprint


def test_messages(tokenizer, tmp_path):
    with pytest.raises(ValueError, match="at least 256 bytes \\+ 2 special tokens, got 100"):
        train_tokenizer(TEXTS, 100, SPECIAL)
    with pytest.raises(ValueError, match="no text to learn from"):
        train_tokenizer([], 512)
    with pytest.raises(ValueError, match="'<a>' is empty or exists already"):
        train_tokenizer(TEXTS, 512, ("<a>", "<a>"))
    with pytest.raises(ValueError, match=r"'<\|end\|>' is empty or exists already"):
        tokenizer.with_special_tokens(["<|end|>"])
    with pytest.raises(FileNotFoundError, match=r"tokenizer\.json is missing.*copy it from there"):
        FastTokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0", "model"')
    with pytest.raises(ValueError, match=r"tokenizer\.json is damaged: .*beside the model's weights"):
        FastTokenizer.load(tmp_path)
    with pytest.raises(ValueError, match=r"character 2 .* is half of a character"):
        tokenizer.encode("a \udcff")


def test_a_transformers_tokenizer_gives_the_same_ids_as_transformers_does(tmp_path):
    transformers = pytest.importorskip("transformers")
    trained = train_tokenizer(TEXTS, 400)
    trained.save(tmp_path / "raw")
    peer = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(tmp_path / "raw/tokenizer.json"), eos_token="<|im_end|>", pad_token="<|pad|>"
    )
    peer.add_tokens(["<plain>"])
    peer.save_pretrained(tmp_path / "peer")
    ours = FastTokenizer.from_transformers(tmp_path / "peer")
    assert ours.special == {name: peer.convert_tokens_to_ids(name) for name in ("<|im_end|>", "<|pad|>")}
    assert ours.vocab_size == len(peer)
    for text in (*STRANGE, TEXTS[0], "a <|im_end|> typed by a user", "an added <plain> token"):
        expected = peer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        assert ours.encode(text) == expected
    assert not set(ours.encode("<|im_end|>")) & set(ours.special.values())
    ours.save(tmp_path / "ours")
    assert FastTokenizer.load(tmp_path / "ours").fingerprint == ours.fingerprint
    again = transformers.AutoTokenizer.from_pretrained(tmp_path / "ours")
    assert again(TEXTS[0])["input_ids"] == ours.encode(TEXTS[0])
    assert again.eos_token == "<|im_end|>"


def test_truncation_and_padding_of_a_foreign_file_are_switched_off(tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    train_tokenizer(TEXTS, 400).save(tmp_path)
    engine = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    engine.enable_truncation(4)
    engine.enable_padding(length=77)
    ours = FastTokenizer(engine.to_str())
    assert ours.decode(ours.encode(TEXTS[0])) == TEXTS[0]


def test_columns_of_the_built_in_world_are_one_token_with_the_space_before_them():
    """So that what followed a word before, as in "circle c3", is the very next token."""
    tokenizer = TokenizerConfig().build()
    for column in "abcdefgh":
        tokens = tokenizer.encode(f" small red circle {column}3, on beige")
        assert [tokenizer.decode([token]) for token in tokens[2:6]] == [" circle", f" {column}", "3", ","]
