"""Pictures and class masks as bytes on disk: decoding, the header, and the checks that say why one is broken.

JPEG goes through libjpeg-turbo (`simplejpeg`), at half, a quarter or an eighth of its size where the caller
needs no more: decoding is what limits the speed of a data loader. There is no second decoder to fall back to.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

from automoe.errors import DataError

# Loader workers are processes; OpenCV's own threads would only fight over the cores they already share.
cv2.setNumThreads(0)

_DCT_DENOMINATORS = (8, 4, 2)


class Decoded(NamedTuple):
    """`image` uint8 [H,W,3] RGB and `scale`, decoded pixels per raw pixel: 1, 1/2, 1/4 or 1/8 exactly."""

    image: np.ndarray
    scale: float


def jpeg_size(data: bytes, where: str) -> tuple[int, int]:
    """Height and width from a JPEG's header. Raises DataError naming `where`."""
    try:
        height, width, _, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError as error:
        raise DataError(f"{where} is not a readable JPEG ({error})") from error
    return int(height), int(width)


def decode_jpeg(data: bytes, where: str, *, needed_scale: float = 1.0) -> Decoded:
    """Decodes a JPEG to RGB, at the smallest power-of-two size that still has `needed_scale` of the raw one.

    Args:
        data: the JPEG file's bytes.
        where: file or sample for the error message.
        needed_scale: wanted pixels per raw pixel; at 0.5 or less the DCT itself is computed at reduced size.

    Raises DataError for a truncated or corrupt file: a recoverable defect counts as corrupt.
    """
    height, width = jpeg_size(data, where)
    denominator = next((d for d in _DCT_DENOMINATORS if needed_scale <= 1 / d), 1)
    least_height, least_width = -(-height // denominator), -(-width // denominator)
    try:
        image = simplejpeg.decode_jpeg(data, "RGB", min_height=least_height, min_width=least_width)
    except ValueError as error:
        raise DataError(f"{where} is a damaged JPEG ({error})") from error
    if image.shape[:2] != (least_height, least_width):
        # Seen only where the smallest sizes coincide (a picture of a few pixels): decode those as they are.
        image = simplejpeg.decode_jpeg(data, "RGB")
        denominator = 1
    return Decoded(image, 1 / denominator)


def check_jpeg(data: bytes, where: str) -> tuple[int, int]:
    """Height and width of a JPEG whose every block decodes; raises DataError otherwise."""
    size = jpeg_size(data, where)
    decode_jpeg(data, where, needed_scale=1 / 8)
    return size


def load_image(path: Path | str) -> np.ndarray:
    """Reads a picture for prediction: uint8 [H,W,3] RGB. JPEG, PNG and whatever else Pillow reads.

    Raises DataError naming the file where it is missing or broken.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read the image {path}: {error.strerror}") from error
    if data[:2] == b"\xff\xd8":
        return decode_jpeg(data, str(path)).image
    try:
        with Image.open(io.BytesIO(data)) as picture:
            return np.array(picture.convert("RGB"))
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise DataError(f"{path} is not a readable image ({error})") from error


def read_mask(data: bytes, where: str) -> np.ndarray:
    """Class ids of a mask PNG as found: uint8 [H,W].

    Palette images give their indices (that is where ids live, whatever the colours), RGB ones their value
    where the three channels agree. Raises DataError for colours, for other modes and for damaged files.
    """
    try:
        with Image.open(io.BytesIO(data)) as picture:
            ids = np.array(picture)
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise DataError(f"{where} is not a readable mask ({error})") from error
    if ids.ndim == 3:
        if not (ids[..., :3] == ids[..., :1]).all():
            raise DataError(
                f"{where} holds colours, not class ids; use the mask files of the official download "
                "(labels/.../masks), not the pictures made of them"
            )
        ids = ids[..., 0]
    if ids.size and (ids.min() < 0 or ids.max() > 255):
        raise DataError(f"{where} holds values outside 0 to 255 ({ids.min()} to {ids.max()})")
    return ids.astype(np.uint8)


def encode_mask(ids: np.ndarray) -> bytes:
    """Class ids uint8 [H,W] as an 8-bit greyscale PNG."""
    done, data = cv2.imencode(".png", ids)
    if not done:
        raise DataError(f"a mask of shape {ids.shape} and type {ids.dtype} could not be written as PNG")
    return data.tobytes()


def decode_mask(data: bytes, where: str) -> np.ndarray:
    """Class ids uint8 [H,W] of a greyscale PNG written by `encode_mask` or kept as found by `prepare`."""
    ids = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if ids is None or ids.ndim != 2 or ids.dtype != np.uint8:
        raise DataError(f"{where}: the stored mask is damaged; run `automoe prepare` again")
    return ids


def is_plain_mask(data: bytes) -> bool:
    """Whether the PNG is 8-bit greyscale without palette, so that its bytes can be kept as found."""
    # PNG signature (8), IHDR length and type (8), width and height (8), then bit depth and colour type.
    return len(data) > 26 and data[:8] == b"\x89PNG\r\n\x1a\n" and data[24] == 8 and data[25] == 0
