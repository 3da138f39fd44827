"""Picture files: records in PNGs, contact sheets that can be taken apart, and clear words about bad files."""

import io
import json
import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diptych.data import picture_files
from diptych.data.picture_files import (
    contact_sheet,
    file_slug,
    read_contact_sheet,
    read_picture,
    read_png_metadata,
    save_contact_sheet,
    save_png,
    unused_path,
)


def _picture(seed: int, height: int = 24, width: int = 32) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    "prompt",
    ["a red circle", "", "שלום <b>&amp;</b> 🎨 «é»\n\ttwo lines", "word " * 20_000, "\udce9 from a broken terminal"],
)
def test_metadata_comes_back_whatever_the_prompt(tmp_path: Path, prompt: str):
    metadata = {"prompt": prompt, "seed": 2**62, "guidance_scale": 1.5, "size": [64, 96], "negative_prompt": None}
    path = save_png(_picture(0), tmp_path / "new" / "folder" / "a.png", metadata)
    assert read_png_metadata(path) == metadata
    assert np.array_equal(np.asarray(Image.open(path)), _picture(0))


def test_image_viewers_find_prompt_and_software(tmp_path: Path):
    path = save_png(_picture(0), tmp_path / "a.png", {"prompt": "ein Kreis über 🎨"})
    with Image.open(path) as image:
        assert image.info["Description"] == "ein Kreis über 🎨"
        assert image.info["Software"].startswith("diptych ")


def test_equal_settings_give_equal_bytes(tmp_path: Path):
    first = save_png(_picture(1), tmp_path / "a.png", {"prompt": "x", "seed": 1})
    second = save_png(_picture(1), tmp_path / "b.png", {"seed": 1, "prompt": "x"})
    assert first.read_bytes() == second.read_bytes()


def test_a_png_of_another_origin_has_no_record(tmp_path: Path):
    Image.fromarray(_picture(0)).save(tmp_path / "a.png")
    assert read_png_metadata(tmp_path / "a.png") == {}
    assert read_contact_sheet(tmp_path / "a.png") == []


def test_a_failed_write_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    target = save_png(_picture(0), tmp_path / "a.png")
    before = target.read_bytes()

    def no_space(self: Image.Image, file: io.BytesIO, **options: object) -> None:
        file.write(b"half a picture")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", no_space)
    with pytest.raises(OSError, match="No space left"):
        save_png(_picture(1), target)
    assert target.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_unused_path_repeats_its_own_and_spares_all_others(tmp_path: Path):
    mine = {"prompt": "x", "seed": 0, "size": (1, 2)}
    assert unused_path(tmp_path / "x-0.png", mine) == tmp_path / "x-0.png"
    save_png(_picture(0), tmp_path / "x-0.png", mine)
    assert unused_path(tmp_path / "x-0.png", mine) == tmp_path / "x-0.png"
    assert unused_path(tmp_path / "x-0.png", {**mine, "seed": 1}) == tmp_path / "x-0-2.png"
    (tmp_path / "x-0-2.png").write_text("not a PNG")
    assert unused_path(tmp_path / "x-0.png", {**mine, "seed": 1}) == tmp_path / "x-0-3.png"


@pytest.mark.parametrize(
    ("text", "slug"),
    [
        ("A red circle, above a BLUE square!", "a-red-circle-above-a-blue-square"),
        ("../../etc/passwd", "etc-passwd"),
        ("🎨", "image"),
        ("", "image"),
        ("x" * 300, "x" * 48),
        ("עיגול אדום", "עיגול-אדום"),
        ("é" * 300, "é" * 24),
        ("one " * 100, "-".join(["one"] * 12)),
        ("con\x00trol\nlines", "con-trol-lines"),
    ],
)
def test_file_slug(text: str, slug: str):
    assert file_slug(text) == slug
    assert len(file_slug(text).encode()) <= 48


@pytest.mark.parametrize("columns", [None, 1, 3, 50])
@pytest.mark.parametrize("side", [16, 64, 130, 250])
def test_a_contact_sheet_can_be_taken_apart_again(tmp_path: Path, columns: int | None, side: int):
    pictures = [_picture(seed, side, side - seed) for seed in range(5)]
    captions = ["short", "", "many words " * 40, "x" * 400, "über 🎨 שלום"]
    path = save_contact_sheet(tmp_path / "sheet.png", pictures, captions, columns, {"step": 7})
    cells = read_contact_sheet(path)
    assert [cell.caption for cell in cells] == captions
    for cell, picture in zip(cells, pictures, strict=True):
        assert np.array_equal(np.asarray(cell.image), picture)
    assert read_png_metadata(path)["step"] == 7


def test_small_pictures_are_enlarged_and_margins_are_white():
    sheet = np.asarray(contact_sheet([np.zeros((64, 64, 3), np.uint8)] * 2, columns=2))
    assert sheet.shape == (2 * 24 + 192, 2 * 24 + 2 * 192 + 20, 3)
    assert (sheet[:20] == 255).all() and (sheet[:, :20] == 255).all()
    assert (sheet == 0).all(axis=2).sum() == 2 * 192**2
    large = np.asarray(contact_sheet([np.zeros((300, 300, 3), np.uint8)]))
    assert (large == 0).all(axis=2).sum() == 300**2


def test_captions_stay_inside_their_column():
    black = np.zeros((64, 64, 3), np.uint8)
    sheet = np.asarray(contact_sheet([black, black], ["W" * 500 + " " + "word " * 90, ""], columns=2))
    below = sheet[24 + 192 + 4 :]
    assert (below[:, :216] < 200).any(), "the caption is drawn"
    assert (below[:, 24 + 192 + 2 :] == 255).all(), "and keeps out of the next column"


@pytest.mark.parametrize(
    ("images", "captions", "columns", "message"),
    [
        (0, None, None, "at least one picture, got none"),
        (2, ["a"], None, "one caption a picture: got 1 for 2 pictures"),
        (2, None, 0, "at least one column, got 0"),
    ],
)
def test_contact_sheet_says_what_is_wrong(images: int, captions: list[str] | None, columns: int | None, message: str):
    with pytest.raises(ValueError, match=message):
        contact_sheet([_picture(0)] * images, captions, columns)


def test_read_picture_turns_and_composites(tmp_path: Path):
    upright = np.zeros((4, 8, 3), np.uint8)
    upright[:, 6:] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    # Orientation 6: the file holds the picture turned a quarter to the left.
    Image.fromarray(np.rot90(upright)).save(tmp_path / "turned.png", exif=exif)
    assert np.array_equal(np.asarray(read_picture(tmp_path / "turned.png")), upright)
    Image.new("RGBA", (3, 2), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    assert (np.asarray(read_picture(tmp_path / "clear.png")) == 255).all()


def test_read_picture_says_what_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(FileNotFoundError, match=r"There is no picture .*none\.png"):
        read_picture(tmp_path / "none.png")
    with pytest.raises(ValueError, match="is a folder, not a picture"):
        read_picture(tmp_path)
    (tmp_path / "text.png").write_text("hello world")
    with pytest.raises(ValueError, match=r"text\.png is not a picture that can be read.*b'hello wo'"):
        read_picture(tmp_path / "text.png")
    whole = save_png(_picture(0, 200, 200), tmp_path / "whole.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"cut\.png begins like a picture but cannot be decoded"):
        read_picture(tmp_path / "cut.png")
    monkeypatch.setattr(picture_files, "MAX_PIXELS", 10_000)
    with pytest.raises(ValueError, match=r"whole\.png has 200 x 200 pixels, more than"):
        read_picture(tmp_path / "whole.png")


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_damaged_files_only_ever_raise_value_errors_that_name_them(tmp_path: Path):
    generator = random.Random(0)
    path = tmp_path / "damaged"
    refused = 0
    for kind in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "PPM", "WEBP"):
        buffer = io.BytesIO()
        Image.radial_gradient("L").convert("RGB").resize((48, 48)).save(buffer, kind)
        for _ in range(40):
            damaged = bytearray(buffer.getvalue())
            for _ in range(generator.randint(1, 12)):
                damaged[generator.randrange(min(len(damaged), 300))] = generator.randrange(256)
            path.write_bytes(damaged)
            try:
                assert read_picture(path).mode == "RGB"
            except ValueError as error:
                refused += 1
                assert str(error).startswith(str(path))
    assert 40 < refused < 280


def test_a_folder_that_cannot_be_made_is_an_os_error(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        save_png(_picture(0), tmp_path / "file" / "a.png")


def test_a_damaged_record_is_named(tmp_path: Path):
    path = save_png(_picture(0), tmp_path / "a.png", {"prompt": "x"})
    record = json.dumps({"prompt": "x"}).encode()
    whole = path.read_bytes()
    assert record in whole
    info = picture_files.PngImagePlugin.PngInfo()
    info.add_text("diptych", "{broken")
    Image.fromarray(_picture(0)).save(path, pnginfo=info)
    with pytest.raises(ValueError, match=r"The diptych record in .*a\.png is damaged"):
        read_png_metadata(path)
