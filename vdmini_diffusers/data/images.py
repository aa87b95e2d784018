"""Any picture that a person has, read as a viewer shows it."""

import io
import os
import warnings

import numpy as np
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError


MAX_PIXELS = 2**27  # above the 108 megapixels of cameras; 512 MiB as RGBA
# What files of the ISO container are that this Pillow does not read, by the brand in their first bytes.
FOREIGN_BRANDS = {
    **dict.fromkeys(("heic", "heix", "heim", "heis", "hevc", "mif1", "msf1"), "a HEIC picture"),
    **dict.fromkeys(("avif", "avis"), "an AVIF picture"),
}


def read_image(path: str | os.PathLike) -> Image.Image:
    """A picture file as RGB of 8 bits, as a viewer shows it.

    The picture is turned as its EXIF data say, and its colour profile is converted to sRGB. Transparent parts are
    shown on white, as browsers show them: the colours that are stored there are arbitrary, and black would swallow
    dark drawings. Values of 16 bits are scaled to 8. Of an animation, the first frame is read.

    Raises:
        ValueError: if there is no such file, or if it is no picture, is cut off, or has more than `MAX_PIXELS` pixels.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's own, of sizes above 89 million pixels and of odd metadata
            with Image.open(path) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise Image.DecompressionBombError
                if image.format == "EPS":
                    raise ValueError("PostScript is a program, which is not run")
                return _to_rgb(ImageOps.exif_transpose(image))
    # Pillow's readers raise whatever a damaged file leads them to: SyntaxError, struct.error, KeyError, ...
    except Exception as error:
        if isinstance(error, UnidentifiedImageError):
            reason = _what_else(path)
        elif isinstance(error, Image.DecompressionBombError):  # ours, or Pillow's own, of even more
            reason = f"it has more than {MAX_PIXELS:,} pixels"
        else:
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise ValueError(f"{os.fspath(path)!r} cannot be read as a picture: {reason.rstrip('.')}.") from error


def fit_picture(image: Image.Image, width: int, height: int) -> Image.Image:
    """A picture of that size that covers it: scaled evenly until both sides are full, and cut around the centre.

    This is what clips are cut to for training. A picture of that size is returned as it is.
    """
    return image if image.size == (width, height) else ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS)


def _what_else(path: str | os.PathLike) -> str:
    """What a file is that Pillow does not know."""
    with open(path, "rb") as file:
        start = file.read(12)
    if not start:
        return "the file is empty"
    if start[4:8] == b"ftyp":
        what = FOREIGN_BRANDS.get(start[8:12].decode("latin-1"), "a video")
        advice = "give one of its frames" if what == "a video" else "save it as JPEG or PNG"
        return f"it is {what}, which Pillow does not read here: {advice}"
    return "it is none of the kinds that Pillow reads (JPEG, PNG, WebP, GIF, TIFF, BMP and others)"


def on_white(pixels: np.ndarray) -> np.ndarray:
    """RGBA `(height, width, 4)`, uint8 or uint16, to RGB of the same type. Colours are not premultiplied."""
    white = np.iinfo(pixels.dtype).max
    shown = np.empty((*pixels.shape[:2], 3), pixels.dtype)
    alpha = pixels[:, :, 3].astype(np.uint32)
    for channel in range(3):  # one at a time, as 32 bits take four times the memory of 8
        colour = pixels[:, :, channel].astype(np.uint32)
        shown[:, :, channel] = (colour * alpha + white * (white - alpha) + white // 2) // white
    return shown


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F" or image.mode.startswith("I"):
        return _scaled_grey(image)
    profile = image.info.get("icc_profile")
    if image.has_transparency_data:
        image = Image.fromarray(on_white(np.asarray(image.convert("RGBA"))))
    elif image.mode not in ("RGB", "L", "CMYK"):
        image = image.convert("RGB")
    if profile:
        try:
            embedded = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            converted = ImageCms.profileToProfile(image, embedded, ImageCms.createProfile("sRGB"), outputMode="RGB")
            image = converted or image  # `None` is for conversions in place
        except (OSError, ImageCms.PyCMSError):
            pass  # a damaged profile, or one of another kind of colours: viewers ignore it as well
    return image.convert("RGB")


def _scaled_grey(image: Image.Image) -> Image.Image:
    """Grey of 16 bits, which Pillow's own conversion would clip at 255.

    Raises:
        ValueError: for values of more bits, whose black and white nothing tells.
    """
    values = np.asarray(image)
    if image.mode == "F" or values.min() < 0 or values.max() > 65535:
        raise ValueError("its values are not of 8 or 16 bits: convert it")
    grey = (values.astype(np.float32) / 257).round().astype(np.uint8)
    if isinstance(transparent := image.info.get("transparency"), int):
        grey[values == transparent] = 255
    return Image.fromarray(grey).convert("RGB")
