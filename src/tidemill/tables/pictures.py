"""Pictures as data URLs, resized to a bound."""

import base64
import io
from typing import Any, Final

from PIL import Image, ImageOps, UnidentifiedImageError

from tidemill.schemas.jsonl.attachments import sniffed
from tidemill.tables import RowError

SIDE_PIXELS: Final = 1_024
"""The default bound of the longer side."""
PIXELS_MAX: Final = 64_000_000
"""A picture with more is not decoded: some hundred bytes may unpack to gigabytes."""
QUALITY: Final = 90
FORMATS: Final = ("AVIF", "BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")
"""Formats that are read. Pillow has others, some of which start a program."""
_PASSED: Final = frozenset({"JPEG", "PNG", "WEBP"})
"""Formats that servers read; others become JPEG."""


def data_url(value: Any, side: int = SIDE_PIXELS) -> str:
    """The data URL of a picture: bytes, or an object with `bytes` as Hugging Face stores it, or a data URL.

    Raises:
        RowError: It is not a picture, or too large.
    """
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, str) and value.startswith("data:"):
        return value
    if value is None:
        raise RowError("it has no picture")
    if not isinstance(value, bytes):
        raise RowError("its picture is neither bytes nor a data URL")
    content, media_type = _resized(value, side)
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"


def encoded(image: Image.Image) -> bytes:
    """A picture as JPEG; what is transparent becomes white."""
    if image.mode not in {"RGB", "L"}:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()


def _check_pixels(width: int, height: int) -> None:
    if width * height > PIXELS_MAX:
        raise RowError(f"its picture has {width:,} x {height:,} pixels; at most {PIXELS_MAX:,} are read")


def _resized(content: bytes, side: int) -> tuple[bytes, str]:
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            _check_pixels(*image.size)
            if max(image.size) <= side and image.format in _PASSED:
                image.verify()
                return content, sniffed(content[:16]) or f"image/{image.format.lower()}"
            upright = ImageOps.exif_transpose(image)
            upright.thumbnail((side, side))
            return encoded(upright), "image/jpeg"
    except UnidentifiedImageError as error:
        raise RowError(f"its picture has none of the formats {', '.join(FORMATS)}") from error
    except RowError:
        raise
    except Exception as error:
        # A broken picture raises whatever its decoder runs into.
        raise RowError(f"its picture cannot be read: {type(error).__name__}: {str(error)[:200]}") from error
