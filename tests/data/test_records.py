"""Images to pixels and columns to parts, with the reason when a record is broken."""

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from diptych.data.example import ImageHandle, ImageIn, ImageOut, Text, load_pixels
from diptych.data.images import decode_image, decode_keyed, encode_lossless, image_extension
from diptych.data.records import (
    Columns,
    ExampleRule,
    build_example,
    check_task,
    conversation_parts,
    decode_json,
    decode_text,
    find_column,
    read_fields,
    split_placeholders,
)
from diptych.data.sources.protocol import BadRecord

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL", "ignore::PIL.Image.DecompressionBombWarning")

PIXELS = np.random.default_rng(0).integers(0, 256, (12, 20, 3), dtype=np.uint8)

COLUMNS = Columns(image=("image",), text=("text", "caption"), target_image=("target_image",))


def encode(image: Image.Image | np.ndarray, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(buffer, kind, **options)
    return buffer.getvalue()


def huge_png(width: int, height: int) -> bytes:
    """A few hundred bytes that claim to be a huge picture."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    )


def reason_of(call: object, *arguments: object) -> tuple[str, str]:
    with pytest.raises(BadRecord) as caught:
        call(*arguments)  # type: ignore[operator]
    return caught.value.reason, caught.value.detail


@pytest.mark.parametrize(("kind", "options"), [("PNG", {}), ("WEBP", {"lossless": True}), ("BMP", {}), ("TIFF", {})])
def test_lossless_images_keep_their_pixels(kind, options):
    pixels = decode_image(encode(PIXELS, kind, **options))
    assert np.array_equal(pixels, PIXELS)
    assert pixels.dtype == np.uint8 and pixels.flags.writeable
    assert np.array_equal(decode_image(encode_lossless(PIXELS)), PIXELS)


def test_images_of_records_have_a_key_by_content():
    """Features of a frozen encoder are kept under it."""
    same, again, other = decode_keyed(PNG, "a"), decode_keyed(PNG, "b"), decode_keyed(encode(PIXELS + 1), "c")
    assert isinstance(same, ImageHandle) and same == again != other
    assert same.key == again.key != other.key and load_pixels(same) is same.pixels
    assert np.array_equal(same.pixels, PIXELS)


def test_every_mode_becomes_rgb():
    grey = np.tile(np.arange(20, dtype=np.uint8) * 13, (12, 1))
    assert np.array_equal(decode_image(encode(grey)), np.repeat(grey[:, :, None], 3, 2))
    assert np.array_equal(decode_image(encode(grey.astype(np.uint16) * 257)), np.repeat(grey[:, :, None], 3, 2))
    dark = np.full((4, 4), 200, dtype=np.uint16)  # a nearly black 16-bit picture, not a light grey 8-bit one
    assert decode_image(encode(dark)).max() == 1
    palette = Image.fromarray(PIXELS).quantize(16)
    assert np.array_equal(decode_image(encode(palette)), np.asarray(palette.convert("RGB")))
    assert np.array_equal(decode_image(encode(Image.new("1", (3, 2), 1))), np.full((2, 3, 3), 255))
    cmyk = Image.fromarray(np.full((16, 16, 3), (200, 40, 40), dtype=np.uint8)).convert("CMYK")
    assert np.abs(decode_image(encode(cmyk, "JPEG", quality=95)).astype(int) - (200, 40, 40)).max() < 12


def test_transparency_is_laid_on_white():
    rgba = np.dstack([PIXELS, np.zeros(PIXELS.shape[:2], np.uint8)])
    rgba[0, 0] = (10, 20, 30, 255)
    pixels = decode_image(encode(rgba))
    assert tuple(pixels[0, 0]) == (10, 20, 30) and (pixels[1:] == 255).all()
    palette = Image.fromarray(PIXELS).quantize(16)
    assert (decode_image(encode(palette, transparency=palette.getpixel((0, 0))))[0, 0] == 255).all()


def test_the_first_frame_of_an_animation_is_taken():
    frames = [Image.new("RGB", (6, 5), color) for color in ("red", "lime")]
    for kind in ("GIF", "WEBP"):
        data = encode(frames[0], kind, save_all=True, append_images=frames[1:], lossless=True)
        assert np.array_equal(decode_image(data), np.full((5, 6, 3), (255, 0, 0)))


def test_exif_orientation_is_applied():
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to see it upright
    data = encode(PIXELS, "PNG", exif=exif)
    assert np.array_equal(decode_image(data), np.rot90(PIXELS, -1))


def test_damaged_exif_is_ignored():
    assert np.array_equal(decode_image(encode(PIXELS, "PNG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")), PIXELS)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
@pytest.mark.parametrize("kept", [0.3, 0.7])
def test_a_truncated_image_says_so(kind, kept):
    data = encode(np.random.default_rng(0).integers(0, 256, (80, 90, 3), dtype=np.uint8), kind)
    assert reason_of(decode_image, data[: int(len(data) * kept)], "photo.jpg")[0] == "truncated image"


def test_what_is_no_image_says_so():
    assert reason_of(decode_image, b"", "x") == ("empty image", "0 bytes")
    reason, detail = reason_of(decode_image, b"<html>404</html>", "x")
    assert reason == "not an image" and "16 bytes beginning with b'<html>404</" in detail
    assert reason_of(decode_image, b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "x")[0] == "not an image"
    assert reason_of(decode_image, b"\x89PNG\r\n\x1a\n" + b"\7" * 99, "x")[0] in ("broken image", "truncated image")
    broken = bytearray(encode(PIXELS))
    broken[60:90] = bytes(30)
    assert reason_of(decode_image, bytes(broken), "x")[0] == "broken image"


@pytest.mark.parametrize("size", [(30_000, 30_000), (100_000, 2_000), (12_000, 9_000)])
def test_a_decompression_bomb_is_refused_before_it_is_decoded(size):
    reason, detail = reason_of(decode_image, huge_png(*size), "bomb.png")
    assert reason == "decompression bomb" and "pixels" in detail


def test_max_pixels():
    assert decode_image(encode(PIXELS), "x", 240).shape == (12, 20, 3)
    assert reason_of(decode_image, encode(PIXELS), "x", 239) == (
        "decompression bomb",
        "20x12 pixels, at most 239 allowed",
    )


def test_random_bytes_never_raise_anything_else():
    rng = np.random.default_rng(1)
    sound = [encode(PIXELS, kind) for kind in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")]
    num_refused = 0
    for number in range(300):
        data = bytearray(sound[number % len(sound)])
        for place in rng.integers(0, len(data), 6):
            data[place] = rng.integers(0, 256)
        try:
            assert decode_image(bytes(data), "fuzzed", 10_000).shape[2] == 3
        except BadRecord as error:
            num_refused += 1
            assert error.name == "fuzzed" and error.reason and str(error).startswith(f"fuzzed: {error.reason}")
    assert num_refused > 50


def test_image_extension():
    names = [image_extension(encode(PIXELS, kind)) for kind in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")]
    assert names == ["jpg", "png", "webp", "gif", "bmp", "tif"]
    with pytest.raises(ValueError, match="not a known image format"):
        image_extension(b"nothing")


def test_find_column_takes_the_first_that_is_there():
    record = {"a": None, "b": {"c": {"d": 3}}, "e.f": 4, "g": 5}
    assert find_column(record, ("a", "b.c.d", "g")) == 3
    assert find_column(record, ("e.f",)) == 4
    assert find_column(record, ("b.x", "b.c.d.y", "z")) is None


PNG = encode(PIXELS)


@pytest.mark.parametrize(
    ("task", "record", "expected"),
    [
        ("text_to_image", {"image": PNG, "text": " a cat "}, [Text("a cat"), ImageOut]),
        (
            "image_to_text",
            {"image": PNG, "text": "a cat"},
            [ImageIn, Text("Describe it."), Text("a cat", "assistant", True)],
        ),
        (
            "image_edit",
            {"image": PNG, "text": "add a hat", "target_image": PNG},
            [ImageIn, Text("add a hat"), ImageOut],
        ),
        ("text", {"text": "once"}, [Text("once", "assistant", True)]),
    ],
)
def test_parts_of_each_task(task, record, expected):
    fields = read_fields(record, COLUMNS, task, "k", "file/k")
    example = build_example(fields, ExampleRule(task=task, prompt="Describe it."))
    assert example.key == "k" and len(example.parts) == len(expected)
    for part, wanted in zip(example.parts, expected, strict=True):
        if isinstance(wanted, Text):
            assert part == wanted
        else:
            assert isinstance(part, wanted) and part.is_target == (wanted is ImageOut)
            assert np.array_equal(part.image.pixels, PIXELS)


def test_question_column_replaces_the_prompt():
    columns = Columns(question=("q",), metadata=("label", "more")).or_usual(COLUMNS)
    record = {"image": {"bytes": PNG, "path": None}, "q": "is it?", "text": "yes", "label": 1, "more": {"x": 2}}
    example = build_example(read_fields(record, columns, "image_to_text", "k", "k"), ExampleRule(task="image_to_text"))
    assert example.parts[1:] == (Text("is it?"), Text("yes", "assistant", True))
    assert example.metadata == {"label": 1, "x": 2}


def test_several_captions_take_turns():
    fields = read_fields({"image": PNG, "text": ["one", "two"]}, COLUMNS, "text_to_image", "k", "k")
    first = [build_example(fields, ExampleRule(task="text_to_image"), epoch).parts[0].text for epoch in range(3)]
    assert first == ["one", "two", "one"]


@pytest.mark.parametrize(
    ("record", "reason", "detail"),
    [
        ({"image": PNG}, "missing text", "looked for text or caption, the record has image"),
        ({"text": "a cat"}, "missing image", "looked for image, the record has text"),
        ({"image": PNG, "text": None}, "missing text", "looked for"),
        ({"image": PNG, "text": 7}, "wrong type", "text must be text, got int"),
        ({"image": PNG, "text": ["a", 7]}, "wrong type", "text must be text, got int"),
        ({"image": PNG, "text": []}, "empty text", "an empty list"),
        ({"image": PNG, "text": " \n "}, "empty text", ""),
        ({"image": PNG, "text": b"caf\xe9"}, "not UTF-8", "byte 3 is b'\\xe9'"),
        ({"image": PNG, "text": "half \ud800"}, "not UTF-8", "character 5 is half of a surrogate pair"),
        ({"image": "cat.png", "text": "a cat"}, "wrong type", "image must be encoded bytes, got str"),
        ({"image": {"bytes": None, "path": "x"}, "text": "a"}, "missing image", "no bytes"),
        ({"image": b"GIF8nothing", "text": "a cat"}, "broken image", ""),
        ({"image": PNG[:-30], "text": "a cat"}, "truncated image", ""),
        ({"image": huge_png(50_000, 50_000), "text": "a cat"}, "decompression bomb", "pixels"),
    ],
)
def test_a_broken_record_says_what_is_wrong(record, reason, detail):
    def read() -> None:
        build_example(read_fields(record, COLUMNS, "text_to_image", "k", "a.tar/k"), ExampleRule(task="text_to_image"))

    with pytest.raises(BadRecord) as caught:
        read()
    assert caught.value.reason == reason and detail in caught.value.detail
    assert caught.value.name.startswith("a.tar/k")


def test_text_and_json_of_a_file():
    assert decode_text("\ufeffgrün".encode(), "x") == "grün"
    assert decode_json(b'{"a": [1, null]}', "x") == {"a": [1, None]}
    assert reason_of(decode_json, b'{"a": ', "x")[0] == "broken JSON"
    assert reason_of(decode_json, b"[" * 100_000, "x")[0] == "broken JSON"
    assert reason_of(decode_json, b'"\xff"', "x")[0] == "not UTF-8"


def test_task_is_checked():
    task: Any = "drawing"
    with pytest.raises((ValueError, TypeError), match=r"drawing"):  # the type checker of the tests may be first
        ExampleRule(task=task)
    with pytest.raises(ValueError, match=r"task must be one of text_to_image, .*, text, got 'drawing'"):
        check_task(task)


def test_placeholders_split_text():
    assert split_placeholders("<image>\nWhat?") == [None, "What?"]
    assert split_placeholders("a <image> b<image>") == ["a ", None, " b", None]
    assert split_placeholders("plain") == ["plain"]


def test_conversation_in_both_spellings():
    pictures = [PIXELS, PIXELS + 1]
    first = [
        {"from": "human", "value": "<image>\nWhat is it?"},
        {"from": "gpt", "value": "A cat."},
        {"from": "human", "value": "Draw it in blue."},
        {"from": "gpt", "value": "Here: <image>"},
    ]
    second = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]},
        {"role": "assistant", "content": "A cat."},
        {"role": "user", "content": "Draw it in blue."},
        {"role": "assistant", "content": [{"type": "text", "text": "Here: "}, {"type": "image", "text": None}]},
    ]
    for turns in (first, second):
        parts = conversation_parts(turns, pictures, "k")
        assert isinstance(parts[0], ImageIn) and parts[0].image is pictures[0]
        assert parts[1:5] == [
            Text("What is it?"),
            Text("A cat.", "assistant", True),
            Text("Draw it in blue."),
            Text("Here: ", "assistant", True),
        ]
        assert isinstance(parts[5], ImageOut) and parts[5].is_target and parts[5].image is pictures[1]
    system = conversation_parts([{"role": "system", "content": "Be brief."}, *second], pictures, "k")
    assert system[0] == Text("Be brief.", "system")


@pytest.mark.parametrize(
    ("turns", "num_images", "reason", "detail"),
    [
        (
            [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "x"}],
            0,
            "image placeholder mismatch",
            "1 pl",
        ),
        ([{"from": "human", "value": "hi"}, {"from": "gpt", "value": "x"}], 1, "image placeholder mismatch", "0 pl"),
        ([{"from": "robot", "value": "hi"}], 0, "unknown role", "got 'robot'"),
        ([{"value": "hi"}], 0, "unknown role", "got None"),
        ([{"from": "human", "value": "hi"}], 0, "nothing to learn", "assistant"),
        ([{"from": "human", "value": 3}], 0, "wrong type", "got int"),
        ([{"role": "user", "content": [{"type": "video"}]}], 0, "wrong type", "video"),
        (["hi"], 0, "wrong type", "a turn must be an object"),
        ([], 0, "wrong type", "list of turns"),
        ("hi", 0, "wrong type", "got str"),
        ([{"from": "human", "value": "\udfff"}, {"from": "gpt", "value": "x"}], 0, "not UTF-8", "surrogate"),
    ],
)
def test_a_broken_conversation_says_what_is_wrong(turns, num_images, reason, detail):
    got_reason, got_detail = reason_of(conversation_parts, turns, [PIXELS] * num_images, "k")
    assert got_reason == reason and detail in got_detail
