"""JPEG, WebP, GIF, AVIF, JPEG 2000 and HEIC, by the encoders of Pillow, imagecodecs and libheif."""

from __future__ import annotations

import io
import struct
from typing import Any

import imagecodecs
import numpy as np
import pillow_heif
from PIL import Image

from tests.grid.files import (
    ORIENTATIONS,
    SIZES,
    GridFile,
    as_rgb,
    eight_bits,
    exif,
    picture,
    turned,
)
from tests.grid.pairwise import Row, pairwise

JPEG_FACTORS: dict[str, list[Any]] = {
    "colours": ["grey", "ycc", "rgb", "cmyk", "ycck"],
    "subsampling": ["444", "422", "420", "440", "411"],
    "coding": ["baseline", "optimised", "progressive", "restarts", "lossless", "12 bits"],
    "markers": ["as written", "no JFIF", "no Adobe", "none"],
    "exif": [*ORIENTATIONS, "MM 6", "MM 8"],
    "extra": ["none", "profile", "comment", "fill bytes", "XMP", "second EXIF"],
    "tail": ["none", "text", "another picture"],
    "size": SIZES,
}


def jpeg_files() -> list[GridFile]:
    def is_possible(row: Row) -> bool:
        colours, coding = row["colours"], row["coding"]
        by_pillow = coding in ("progressive", "restarts")
        return (
            (row["subsampling"] == "444" or colours in ("ycc", "ycck"))
            and (
                not by_pillow or (colours != "ycck" and row["subsampling"] in ("444", "422", "420"))
            )
            and (coding not in ("lossless", "12 bits") or colours in ("grey", "rgb"))
            and ("no Adobe" not in row["markers"] or colours in ("cmyk", "ycck", "rgb"))
            and (colours != "rgb" or row["markers"] == "as written")
            and (colours != "ycck" or row["markers"] in ("as written", "no JFIF"))
        )

    return [_jpeg(row) for row in pairwise(JPEG_FACTORS, is_possible)]


def _jpeg(row: Row) -> GridFile:
    colours, coding = row["colours"], row["coding"]
    n_channels = {"grey": 1, "ycc": 3, "rgb": 3}.get(colours, 4)
    pixels = picture(row["size"], n_channels, 12 if coding == "12 bits" else 8)
    image = pixels[..., 0] if n_channels == 1 else pixels
    if coding in ("progressive", "restarts"):
        modes = {"grey": "L", "cmyk": "CMYK"}
        options: dict[str, Any] = {"progressive": True} if coding == "progressive" else {}
        if coding == "restarts":
            options["restart_marker_blocks"] = 2
        sampling = ":".join(row["subsampling"])
        buffer = io.BytesIO()
        Image.fromarray(image, modes.get(colours, "RGB")).save(
            buffer, "JPEG", quality=92, subsampling=sampling, keep_rgb=colours == "rgb", **options
        )
        data = buffer.getvalue()
    else:
        space = {"grey": "gray", "ycc": "rgb", "rgb": "rgb"}.get(colours, "cmyk")
        out = {"grey": "gray", "ycc": "ycbcr", "rgb": "rgb", "cmyk": "cmyk", "ycck": "ycck"}[
            colours
        ]
        special: dict[str, Any] = {}
        if coding == "lossless":
            special = {"lossless": True}
        if coding == "12 bits":
            special = {"bitspersample": 12}
        data = imagecodecs.jpeg8_encode(
            np.ascontiguousarray(image), 92, colorspace=space, outcolorspace=out,
            subsampling=row["subsampling"], optimize=coding == "optimised", **special,
        )  # fmt: skip
    return GridFile("jpeg", row, _jpeg_container(data, row), None, 1 if n_channels == 4 else 0)


def _jpeg_container(data: bytes, row: Row) -> bytes:
    if row["markers"] in ("no JFIF", "none"):
        data = _without_segment(data, 0xE0)
    if row["markers"] in ("no Adobe", "none"):
        data = _without_segment(data, 0xEE)
    added = b""
    if row["exif"]:
        order, value = (
            ("MM", int(row["exif"][-1])) if isinstance(row["exif"], str) else ("II", row["exif"])
        )
        added += _segment(0xE1, b"Exif\0\0" + exif(value, order))
    added += {
        "profile": _segment(0xE2, b"ICC_PROFILE\0\1\1" + b"no profile" * 20),
        "comment": _segment(0xFE, b"\xff\xda\xff\xd9 a comment"),
        "fill bytes": b"\xff\xff\xff" + _segment(0xFE, b"x"),
        "XMP": _segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0<x tiff:Orientation='6'/>"),
        "second EXIF": _segment(0xE1, b"Exif\0\0" + exif(3)) if row["exif"] else b"",
    }.get(row["extra"], b"")
    data = data[:2] + added + data[2:]
    tail = {"text": b"some text", "another picture": data}
    return data + tail.get(row["tail"], b"")


def _segment(marker: int, payload: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(payload) + 2) + payload


def _without_segment(data: bytes, marker: int) -> bytes:
    at = 2
    while data[at + 1] not in (0xDA, marker):
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    if data[at + 1] == 0xDA:
        return data
    return data[:at] + data[at + 2 + int.from_bytes(data[at + 2 : at + 4], "big") :]


def saved(pixels: np.ndarray, kind: str, mode: str | None = None, **options: Any) -> bytes:
    image = pixels[..., 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image), mode).save(buffer, kind, **options)
    return buffer.getvalue()


WEBP_FACTORS: dict[str, list[Any]] = {
    "coding": ["lossless", "lossy", "near lossless"],
    "alpha": [False, True],
    "exif": [*ORIENTATIONS, "MM 6", "headed 6"],
    "profile": [False, True],
    "xmp": [False, True],
    "frames": [1, 3],
    "method": [0, 4, 6],
    "size": SIZES,
}


def webp_files() -> list[GridFile]:
    return [_webp(row) for row in pairwise(WEBP_FACTORS)]


def _exif_choice(choice: int | str) -> tuple[int, bytes]:
    """Orientation and EXIF payload of a choice such as 3, ``MM 6`` or ``headed 6``."""
    if isinstance(choice, int):
        return choice, exif(choice) if choice else b""
    name, value = choice.split()
    data = exif(int(value), "MM" if name == "MM" else "II")
    return int(value), b"Exif\0\0" + data if name == "headed" else data


def _webp(row: Row) -> GridFile:
    pixels = picture(row["size"], 4 if row["alpha"] else 3)
    orientation, exif_bytes = _exif_choice(row["exif"])
    options: dict[str, Any] = {"method": row["method"], "quality": 80, "exact": True}
    options["lossless"] = row["coding"] != "lossy"
    if row["coding"] == "near lossless":
        options["near_lossless"] = 60
    if exif_bytes:
        options["exif"] = exif_bytes
    if row["profile"]:
        options["icc_profile"] = b"no profile"
    if row["xmp"]:
        options["xmp"] = b"<x/>"
    if row["frames"] > 1:
        more = [Image.fromarray(255 - pixels[..., :3])] * (row["frames"] - 1)
        options |= {"save_all": True, "append_images": more}
    drawn = turned(pixels[..., :3], orientation) if row["coding"] == "lossless" else None
    if row["alpha"] and row["frames"] > 1:
        drawn = None  # the encoder of animations blends
    return GridFile("webp", row, saved(pixels, "WEBP", **options), drawn)


GIF_FACTORS: dict[str, list[Any]] = {
    "interlace": [0, 1],
    "palette": ["global", "local", "both"],
    "bits": [1, 2, 4, 8],
    "transparency": [False, True],
    "version": [b"GIF87a", b"GIF89a"],
    "place": ["whole", "inside"],
    "frames": [1, 2],
    "background": [0, 1],
    "size": SIZES,
}


def gif_files() -> list[GridFile]:
    def is_possible(row: Row) -> bool:
        is_new = row["version"] == b"GIF89a"
        return (is_new or not (row["transparency"] or row["frames"] > 1)) and (
            row["place"] == "whole" or row["size"] == (45, 61)
        )

    return [_gif(row) for row in pairwise(GIF_FACTORS, is_possible)]


def _gif(row: Row) -> GridFile:
    bits, (height, width) = row["bits"], row["size"]
    rng = np.random.default_rng(bits)
    used = rng.integers(0, 256, (1 << bits, 3)).astype(np.uint8)
    other = rng.integers(0, 256, (1 << bits, 3)).astype(np.uint8)
    is_global = row["palette"] != "local"
    flags = 0x80 | (bits - 1) if is_global else 0
    data = row["version"] + struct.pack("<HHBBB", width, height, flags, row["background"], 0)
    if is_global:
        data += (used if row["palette"] == "global" else other).tobytes()
    samples = picture(row["size"], 1, bits)[..., 0]
    top, left = (5, 9) if row["place"] == "inside" else (0, 0)
    part = samples[top : height - 2 * top, left : width - left]
    for number in range(row["frames"]):
        frame = part if number == 0 else (1 << bits) - 1 - part
        if row["version"] == b"GIF89a":
            data += b"\x21\xf9\x04" + struct.pack("<BHBB", row["transparency"], 10, 1, 0)
        local = 0 if row["palette"] == "global" else 0x80 | (bits - 1)
        place = struct.pack(
            "<HHHHB", left, top, frame.shape[1], frame.shape[0], local | row["interlace"] << 6
        )
        data += (
            b"\x2c" + place + (used.tobytes() if local else b"") + _lzw(_laced(frame, row), bits)
        )
    drawn = used[samples] if row["place"] == "whole" else None
    if row["transparency"]:
        drawn = None
    return GridFile("gif", row, data + b";", drawn)


def _laced(frame: np.ndarray, row: Row) -> np.ndarray:
    if not row["interlace"]:
        return frame
    return np.concatenate([frame[0::8], frame[4::8], frame[2::4], frame[1::2]])


def _lzw(samples: np.ndarray, bits: int) -> bytes:
    """Codes of one length: the table is cleared before it needs longer ones."""
    bits = max(bits, 2)
    clear, length = 1 << bits, bits + 1
    codes = [clear]
    for number, value in enumerate(samples.ravel().tolist()):
        if number and number % (clear - 2) == 0:
            codes.append(clear)
        codes.append(value)
    codes.append(clear + 1)
    total = 0
    for place, code in enumerate(codes):
        total |= code << (place * length)
    packed = total.to_bytes((len(codes) * length + 7) // 8, "little")
    blocks = (packed[i : i + 255] for i in range(0, len(packed), 255))
    return bytes([bits]) + b"".join(bytes([len(block)]) + block for block in blocks) + b"\0"


AVIF_FACTORS: dict[str, list[Any]] = {
    "writer": ["Pillow", "imagecodecs"],
    "subsampling": ["4:4:4", "4:2:2", "4:2:0", "4:0:0"],
    "bits": [8, 10, 12],
    "alpha": [False, True],
    "range": ["full", "limited"],
    "exif": [*ORIENTATIONS, "MM 6"],
    "frames": [1, 2],
    "quality": [60, 100],
    "size": [(45, 61), (16, 32), (64, 48), (8, 17)],
}


def avif_files() -> list[GridFile]:
    def is_possible(row: Row) -> bool:
        if row["writer"] == "Pillow":  # its encoder dies on several frames with an orientation
            return row["bits"] == 8 and (row["frames"] == 1 or not row["exif"])
        is_grey = row["subsampling"] == "4:0:0"
        is_plain = not row["exif"] and row["frames"] == 1 and row["range"] == "full"
        return is_plain and not (is_grey and row["alpha"])

    return [_avif(row) for row in pairwise(AVIF_FACTORS, is_possible)]


def _avif(row: Row) -> GridFile:
    pixels = picture(row["size"], 4 if row["alpha"] else 3, row["bits"])
    if row["writer"] == "imagecodecs":
        pixel_format = row["subsampling"].replace(":", "")
        if pixel_format == "400":
            pixels = np.ascontiguousarray(pixels[..., 0])
        data = imagecodecs.avif_encode(
            pixels, row["quality"], speed=9, bitspersample=row["bits"], pixelformat=pixel_format
        )
        return GridFile("avif", row, data, None, 3)
    options: dict[str, Any] = {"subsampling": row["subsampling"], "range": row["range"]}
    _, exif_bytes = _exif_choice(row["exif"])
    if exif_bytes:
        options["exif"] = exif_bytes
    if row["frames"] > 1:
        options |= {"save_all": True, "append_images": [Image.fromarray(255 - pixels)]}
    data = saved(pixels, "AVIF", quality=row["quality"], speed=10, **options)
    return GridFile("avif", row, data, None, 3)


JP2_FACTORS: dict[str, list[Any]] = {
    "writer": ["Pillow", "imagecodecs"],
    "channels": [1, 2, 3, 4],
    "bits": [4, 8, 10, 12, 16],
    "container": ["jp2", "j2k"],
    "reversible": [True, False],
    "colour transform": [True, False],
    "tiles": [False, True],
    "progression": ["LRCP", "RLCP", "RPCL", "PCRL", "CPRL"],
    "resolutions": [1, 3],
    "white": [False, True],
    "size": [(45, 61), (16, 32), (64, 48), (37, 19)],
}


def jp2_files() -> list[GridFile]:
    def is_possible(row: Row) -> bool:
        if row["colour transform"] and row["channels"] < 3:
            return False
        if row["writer"] == "Pillow":
            return row["bits"] == 8 or (row["bits"] == 16 and row["channels"] == 1)
        return row["progression"] == "LRCP" and not row["tiles"]

    return [_jp2(row) for row in pairwise(JP2_FACTORS, is_possible)]


def _jp2(row: Row) -> GridFile:
    bits = row["bits"]
    pixels = picture(row["size"], row["channels"], bits)
    if row["white"]:
        pixels[: row["size"][0] // 3] = (1 << bits) - 1
    is_whole = row["reversible"] and not (row["tiles"] and bits == 16)  # Pillow writes others then
    drawn = as_rgb(eight_bits(pixels, bits)) if is_whole else None
    if row["writer"] == "imagecodecs":
        image = np.ascontiguousarray(pixels[..., 0] if row["channels"] == 1 else pixels)
        data = imagecodecs.jpeg2k_encode(
            image, 0 if row["reversible"] else 90, codecformat=row["container"],
            bitspersample=bits, reversible=row["reversible"], mct=row["colour transform"],
            resolutions=row["resolutions"],
        )  # fmt: skip
        return GridFile("jp2", row, data, drawn, 0 if is_whole else 2)
    data = saved(
        pixels, "JPEG2000", irreversible=not row["reversible"], no_jp2=row["container"] == "j2k",
        mct=int(row["colour transform"]), progression=row["progression"],
        num_resolutions=row["resolutions"], tile_size=(16, 16) if row["tiles"] else None,
    )  # fmt: skip
    return GridFile("jp2", row, data, drawn, 0 if is_whole else 2)


HEIC_FACTORS: dict[str, list[Any]] = {
    "mode": ["L", "RGB", "RGBA", "RGB;16", "RGBA;16"],
    "chroma": ["444", "422", "420"],
    "quality": [60, -1],
    "exif": [*ORIENTATIONS, "MM 6"],
    "pictures": [1, 2],
    "primary": ["first", "last"],
    "size": [(64, 64), (46, 62), (65, 71)],
}


def heic_files() -> list[GridFile]:
    return [_heic(row) for row in pairwise(HEIC_FACTORS)]


def _heic(row: Row) -> GridFile:
    mode, (height, width) = row["mode"], row["size"]
    n_channels = {"L": 1, "RGB": 3, "RGBA": 4}[mode.partition(";")[0]]
    pixels = picture(row["size"], n_channels, 16 if "16" in mode else 8)
    other = np.iinfo(pixels.dtype).max - pixels
    pictures = [pixels, other][: row["pictures"]]
    shown = len(pictures) - 1 if row["primary"] == "last" else 0
    file = pillow_heif.HeifFile()
    for image in pictures:
        file.add_frombytes(mode, (width, height), np.ascontiguousarray(image).tobytes())
    buffer = io.BytesIO()
    orientation, exif_bytes = _exif_choice(row["exif"])
    options: dict[str, Any] = {"exif": b"Exif\0\0" + exif_bytes} if exif_bytes else {}
    file.save(
        buffer, quality=row["quality"], chroma=row["chroma"], primary_index=shown,
        matrix_coefficients=0 if row["quality"] < 0 and row["chroma"] == "444" else 6, **options,
    )  # fmt: skip
    drawn = as_rgb(pictures[shown])
    if "16" in mode:
        drawn = drawn >> 8
    is_exact = row["quality"] < 0 and (row["chroma"] == "444" or mode == "L")
    exact = turned(drawn.astype(np.uint8), orientation) if is_exact else None
    return GridFile("heic", row, buffer.getvalue(), exact, 2)


WRITERS = {
    "jpeg": jpeg_files, "webp": webp_files, "gif": gif_files, "avif": avif_files,
    "jp2": jp2_files, "heic": heic_files,
}  # fmt: skip
