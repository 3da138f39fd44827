"""Encoded images to uint8 RGB, with a plain reason when that is not possible. Pillow and numpy only."""

import hashlib
import io
import struct
from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from diptych.data.bad_record import BadRecord
from diptych.data.example import Pixels, pil_to_pixels

DEFAULT_MAX_PIXELS = 89_478_485
"""Pillow's own limit: a quarter of a GiB as RGB."""

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
"""Raster formats of image data sets. Others are not opened at all: some of Pillow's readers start other programs."""

_MAGIC = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"RIFF", b"GIF8", b"BM", b"II*\x00", b"MM\x00*", b"P5", b"P6")
_ORIENTATION_TAG = 0x0112


@dataclass(frozen=True)
class DecodedImage:
    """Pixels with a key made of the encoded bytes, by which features of the image can be kept; an ``ImageHandle``."""

    key: str
    pixels: Pixels = field(compare=False, repr=False)

    def load(self) -> Pixels:
        return self.pixels


def decode_keyed(data: bytes, name: str = "image", max_pixels: int = DEFAULT_MAX_PIXELS) -> DecodedImage:
    """``decode_image`` with a key: the same bytes have the same key in every data set."""
    return DecodedImage(content_key(data), decode_image(data, name, max_pixels))


def content_key(data: bytes) -> str:
    """The key of an image with these encoded bytes."""
    return f"bytes/{hashlib.blake2b(data, digest_size=16).hexdigest()}"


def decode_image(data: bytes, name: str = "image", max_pixels: int = DEFAULT_MAX_PIXELS) -> Pixels:
    """The first frame of an encoded image, upright (EXIF orientation applied), transparency composited on white.

    16-bit greys are scaled to 8 bits, palettes and CMYK converted, colour profiles ignored. The array is writable.

    Args:
        name: names the image in the error.
        max_pixels: images with more pixels are refused before they are decoded.

    Raises:
        BadRecord: "empty image", "not an image", "truncated image", "broken image" or "decompression bomb".
    """
    if not data:
        raise BadRecord("empty image", name, "0 bytes")
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            width, height = image.size
            if width * height > max_pixels:
                raise BadRecord("decompression bomb", name, f"{width}x{height} pixels, at most {max_pixels} allowed")
            image.load()
            upright = _upright(image)
            pixels = _grey_16_to_pixels(upright) if upright.mode.startswith("I;16") else pil_to_pixels(upright)
    # Pillow has limits of its own: above the first it warns, which is an error where warnings are made errors.
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BadRecord("decompression bomb", name, str(error)) from error
    except UnidentifiedImageError as error:
        reason = "not an image"
        if data.startswith(_MAGIC):
            reason = "truncated image" if _is_cut(data, "") else "broken image"
        raise BadRecord(reason, name, _describe_bytes(data)) from error
    # Pillow's decoders report damage through all of these; MemoryError is a header that lies about the size.
    except (OSError, SyntaxError, ValueError, IndexError, KeyError, EOFError, struct.error, MemoryError) as error:
        reason = "truncated image" if _is_cut(data, str(error)) else "broken image"
        raise BadRecord(reason, name, str(error) or type(error).__name__) from error
    return pixels if pixels.flags.writeable and pixels.flags.c_contiguous else np.array(pixels)


def image_extension(data: bytes) -> str:
    """The usual file extension of encoded image bytes ("jpg", "png", "webp", ...), by their first bytes.

    Raises:
        ValueError: not one of the known formats.
    """
    for magic, extension in zip(_MAGIC, ("jpg", "png", "webp", "gif", "bmp", "tif", "tif", "pgm", "ppm"), strict=True):
        if data.startswith(magic):
            return extension
    raise ValueError(f"not a known image format: {_describe_bytes(data)}.")


def encode_lossless(pixels: Pixels) -> bytes:
    """The pixels as PNG bytes."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def _upright(image: Image.Image) -> Image.Image:
    try:
        orientation = image.getexif().get(_ORIENTATION_TAG, 1)
        return image if orientation == 1 else ImageOps.exif_transpose(image)
    except Exception:  # Pillow raises a dozen types on damaged EXIF data; the pixels are good, so they stay as they are
        return image


def _grey_16_to_pixels(image: Image.Image) -> Pixels:
    # Pillow's own conversion to 8 bits clips instead of scaling.
    grey = np.round(np.asarray(image).astype(np.float32) / 257).astype(np.uint8)
    return np.repeat(grey[:, :, None], 3, axis=2)


def _is_cut(data: bytes, message: str) -> bool:
    """Whether the file ends before its own headers say so; decoders name this fault in many ways."""
    if data.startswith(b"RIFF") and len(data) >= 8:
        return len(data) < 8 + int.from_bytes(data[4:8], "little")
    if data.startswith(b"\x89PNG"):
        return b"IEND" not in data[-16:]
    if data.startswith(b"\xff\xd8") and b"\xff\xd9" not in data[-64:]:
        return True
    return "truncated" in message.lower()


def _describe_bytes(data: bytes) -> str:
    return f"{len(data)} bytes beginning with {data[:12]!r}"
