"""Picture files: PNGs that say how they were made, contact sheets, and reading whatever a user calls a picture.

Pillow and numpy only. A picture's record is one JSON object in the PNG text entry ``diptych``, pure ASCII, beside the
usual entries ``Description`` and ``Software`` that image viewers show. Nothing in it depends on the clock, so that
equal pixels and settings give equal bytes.
"""

import json
import os
import re
import unicodedata
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont, PngImagePlugin, UnidentifiedImageError

from diptych import __version__
from diptych.data.example import ImageLike, load_pixels

RECORD_KEY = "diptych"
SHEET_KEY = "contact_sheet"
MAX_PIXELS = 80_000_000
"""Pictures with more pixels are refused before they are decoded."""

_MARGIN = 24
_GAP = 20
_CAPTION_GAP = 8
_FONT_SIZE = 14
_LINE_HEIGHT = 18
_MAX_CAPTION_LINES = 3
_SHORTEST_SHOWN_SIDE = 192
_LARGEST_UPSCALE = 3
_INK = (38, 38, 43)
_FRAME = (222, 222, 226)

_Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


@dataclass(frozen=True)
class SheetCell:
    """One picture of a contact sheet, at its own size."""

    image: Image.Image
    caption: str


def read_picture(path: str | Path) -> Image.Image:
    """A picture file as RGB, transparency on white, turned as its EXIF orientation says.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is a folder, is no picture, is cut off, or is larger than ``MAX_PIXELS``.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"There is no picture {path}. Check the path (current folder: {Path.cwd()}).")
    if path.is_dir():
        raise ValueError(f"{path} is a folder, not a picture. Name one file in it.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                width, height = image.size
                pixels = load_pixels(image) if width * height <= MAX_PIXELS else None
                orientation = image.getexif().get(0x0112, 1)
    except UnidentifiedImageError:
        raise ValueError(
            f"{path} is not a picture that can be read: expected PNG, JPEG, WebP, GIF, BMP or TIFF, and its first "
            f"bytes are {path.read_bytes()[:8]!r}."
        ) from None
    except Image.DecompressionBombError as error:
        raise ValueError(f"{path} is too large to be read safely ({error}). Make it smaller first.") from None
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(
            f"{path} begins like a picture but cannot be decoded ({error}). Is the file complete?"
        ) from None
    if pixels is None:
        raise ValueError(
            f"{path} has {width} x {height} pixels, more than the {MAX_PIXELS // 10**6} million that are read. "
            "Make it smaller first."
        )
    return _turn(Image.fromarray(pixels), orientation)


def save_png(image: ImageLike, path: str | Path, metadata: Mapping[str, Any] | None = None) -> Path:
    """Writes a PNG whole or not at all, with ``metadata`` inside; ``read_png_metadata`` gives it back.

    Args:
        metadata: JSON-able. A ``prompt`` in it is also what image viewers show as the description.

    Raises:
        OSError: the folder cannot be written, or the disk is full; nothing is left behind.
    """
    path = Path(path)
    text = PngImagePlugin.PngInfo()
    if metadata is not None:
        text.add_text("Software", f"diptych {__version__}")
        if "prompt" in metadata:
            prompt = str(metadata["prompt"]).encode("utf-8", "replace").decode("utf-8")
            text.add_itxt("Description", prompt, zip=len(prompt) > 1000)
        record = json.dumps(metadata, sort_keys=True)
        text.add_text(RECORD_KEY, record, zip=len(record) > 1000)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.unfinished")
    try:
        with unfinished.open("wb") as file:
            Image.fromarray(load_pixels(image)).save(file, format="PNG", pnginfo=text)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    return path


def read_png_metadata(path: str | Path) -> dict[str, Any]:
    """What ``save_png`` was given; empty for a PNG of another origin.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is no PNG, or its record is damaged.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"There is no picture {path}.")
    try:
        with Image.open(path, formats=["PNG"]) as image:
            record = image.info.get(RECORD_KEY)
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"{path} is not a PNG that can be read ({error}).") from None
    if record is None:
        return {}
    try:
        metadata = json.loads(record)
    except json.JSONDecodeError as error:
        raise ValueError(f"The diptych record in {path} is damaged: {error}.") from None
    if not isinstance(metadata, dict):
        raise ValueError(f"The diptych record in {path} must be a JSON object, got {type(metadata).__name__}.")
    return metadata


def unused_path(path: str | Path, metadata: Mapping[str, Any]) -> Path:
    """``path``, or ``name-2.png``, ``name-3.png`` ...: the first that is free or holds a picture with this very record.

    Repeating a command replaces its own pictures; another model or setting never overwrites them.
    """
    path = Path(path)
    wanted = json.loads(json.dumps(metadata))
    number, candidate = 1, path
    while candidate.exists():
        try:
            found = read_png_metadata(candidate)
        except ValueError:
            found = {}
        # Where the pictures lie on a sheet is no setting.
        if {key: value for key, value in found.items() if key != SHEET_KEY} == wanted:
            break
        number += 1
        candidate = path.with_name(f"{path.stem}-{number}{path.suffix}")
    return candidate


def file_slug(text: str, max_length: int = 48) -> str:
    """``text`` as a file name without extension: lower case letters and digits of any script, joined by dashes."""
    words = re.findall(r"[^\W_]+", unicodedata.normalize("NFKC", text[:1000]).lower())
    slug = ""
    for word in words:
        longer = f"{slug}-{word}" if slug else word
        if len(longer.encode()) > max_length:
            break
        slug = longer
    return slug or (words[0].encode()[:max_length].decode("utf-8", "ignore") if words else "") or "image"


def contact_sheet(
    images: Sequence[ImageLike], captions: Sequence[str] | None = None, columns: int | None = None
) -> Image.Image:
    """Pictures side by side on white, each with its caption below; small ones are shown 2 or 3 times as large.

    Args:
        captions: one a picture; wrapped to the picture's width, cut after three lines.
        columns: chosen for a landscape sheet if not given.

    Raises:
        ValueError: no pictures, a caption too many or too few, or ``columns`` below 1.
    """
    return _lay_out(images, captions, columns)[0]


def save_contact_sheet(
    path: str | Path,
    images: Sequence[ImageLike],
    captions: Sequence[str] | None = None,
    columns: int | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> Path:
    """Writes a contact sheet that ``read_contact_sheet`` can take apart again without loss."""
    sheet, layout = _lay_out(images, captions, columns)
    return save_png(sheet, path, {**(metadata or {}), SHEET_KEY: layout})


def read_contact_sheet(path: str | Path) -> list[SheetCell]:
    """The pictures of a sheet that ``save_contact_sheet`` wrote, at their own size; empty for any other PNG.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is no PNG, or its record is damaged.
    """
    layout = read_png_metadata(path).get(SHEET_KEY)
    if layout is None:
        return []
    sheet = read_picture(path)
    cells = []
    for cell in layout:
        left, top, width, height = cell["box"]
        shown = sheet.crop((left, top, left + width, top + height))
        size = (width // cell["scale"], height // cell["scale"])
        cells.append(SheetCell(shown.resize(size, Image.Resampling.NEAREST), cell["caption"]))
    return cells


def _lay_out(
    images: Sequence[ImageLike], captions: Sequence[str] | None, columns: int | None
) -> tuple[Image.Image, list[dict[str, Any]]]:
    if not images:
        raise ValueError("A contact sheet needs at least one picture, got none.")
    if captions is not None and len(captions) != len(images):
        raise ValueError(
            f"A contact sheet needs one caption a picture: got {len(captions)} for {len(images)} pictures."
        )
    if columns is not None and columns < 1:
        raise ValueError(f"A contact sheet needs at least one column, got {columns}.")
    pictures = [Image.fromarray(load_pixels(image)) for image in images]
    longest_side = max(max(picture.size) for picture in pictures)
    scale = max(1, min(_LARGEST_UPSCALE, _SHORTEST_SHOWN_SIDE // longest_side))
    cell_width = max(picture.width for picture in pictures) * scale
    cell_height = max(picture.height for picture in pictures) * scale
    columns = min(columns or _landscape_columns(len(pictures), cell_width, cell_height), len(pictures))

    texts = list(captions) if captions is not None else [""] * len(pictures)
    fonts = [_font_for(text) for text in texts]
    wrapped = [_wrap(text, cell_width, font) for text, font in zip(texts, fonts, strict=True)]
    rows = [range(start, min(start + columns, len(pictures))) for start in range(0, len(pictures), columns)]
    caption_heights = [max(len(wrapped[index]) for index in row) * _LINE_HEIGHT for row in rows]
    row_heights = [cell_height + (_CAPTION_GAP + height if height else 0) for height in caption_heights]

    sheet_width = 2 * _MARGIN + columns * cell_width + (columns - 1) * _GAP
    sheet_height = 2 * _MARGIN + sum(row_heights) + (len(rows) - 1) * _GAP
    sheet = Image.new("RGB", (sheet_width, sheet_height), "white")
    draw = ImageDraw.Draw(sheet)
    layout = []
    top = _MARGIN
    for row, row_height in zip(rows, row_heights, strict=True):
        for column, index in enumerate(row):
            left = _MARGIN + column * (cell_width + _GAP)
            shown = pictures[index].resize(
                (pictures[index].width * scale, pictures[index].height * scale), Image.Resampling.NEAREST
            )
            # Smaller pictures stand in the middle of their cell.
            x, y = left + (cell_width - shown.width) // 2, top + (cell_height - shown.height) // 2
            draw.rectangle((x - 1, y - 1, x + shown.width, y + shown.height), outline=_FRAME)
            sheet.paste(shown, (x, y))
            for number, line in enumerate(wrapped[index]):
                draw.text((left, top + cell_height + _CAPTION_GAP + number * _LINE_HEIGHT), line, _INK, fonts[index])
            layout.append({"box": [x, y, shown.width, shown.height], "scale": scale, "caption": texts[index]})
        top += row_height + _GAP
    return sheet, layout


def _landscape_columns(count: int, width: int, height: int) -> int:
    """The number of columns that brings the sheet nearest to 3 : 2 without an almost empty last row."""

    def badness(columns: int) -> float:
        rows = -(-count // columns)
        ratio = columns * width / (rows * (height + 40))
        empty = rows * columns - count
        return abs(ratio / 1.5 - 1) + empty / count

    return min(range(1, count + 1), key=badness) if count <= 400 else 20


@lru_cache(maxsize=4)
def _default_font() -> _Font:
    return ImageFont.load_default(_FONT_SIZE)


@lru_cache(maxsize=4)
def _wide_font() -> _Font:
    """A font with more scripts than Pillow's own, if this machine has it."""
    try:
        return ImageFont.truetype("DejaVuSans.ttf", _FONT_SIZE - 1)
    except OSError:
        return _default_font()


def _font_for(text: str) -> _Font:
    return _default_font() if all(ord(character) < 0x180 for character in text) else _wide_font()


def _wrap(text: str, width: int, font: _Font) -> list[str]:
    """``text`` in at most three lines that fit into ``width`` pixels, the last one ending in dots if there was more."""
    # Longer text cannot be shown anyway, and measuring a 100,000-character prompt word by word is slow.
    words = " ".join(text[:2000].split()).split(" ") if text.strip() else []
    lines: list[str] = []
    line = ""
    while words and len(lines) <= _MAX_CAPTION_LINES:
        word = words.pop(0)
        longer = f"{line} {word}" if line else word
        if font.getlength(longer) <= width:
            line = longer
        elif line:
            lines.append(line)
            line = ""
            words.insert(0, word)
        else:
            cut = len(word)
            while cut > 1 and font.getlength(word[:cut]) > width:
                cut -= 1
            lines.append(word[:cut])
            if word[cut:]:
                words.insert(0, word[cut:])
    if line:
        lines.append(line)
    if len(lines) <= _MAX_CAPTION_LINES and not words:
        return lines
    lines = lines[:_MAX_CAPTION_LINES]
    last = lines[-1]
    while last and font.getlength(last + " …") > width:
        # A whole word at a time, unless there is only one.
        last = last.rpartition(" ")[0] or last[:-1]
    lines[-1] = f"{last} …"
    return lines


def _turn(image: Image.Image, orientation: int) -> Image.Image:
    turns = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }
    return image.transpose(turns[orientation]) if orientation in turns else image
