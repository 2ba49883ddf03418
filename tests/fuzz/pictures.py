"""Images and masks: as bytes, as files in folders, as arguments of Python calls."""
import functools
import io
import random
import struct
import zlib
from pathlib import Path

import numpy as np
from material import SIDE, material, write_files
from mutations import edited, mutate
from PIL import Image
from rows import make_row, npy
from sandbox import Unmakeable, command

from data.decode import decode_image, decode_lumas, decode_pixels, read_mask
from data.pictures import read_pair, read_picture
from predictor import Predictor


def image_seeds() -> list[bytes]:
    rng = np.random.default_rng(0)
    colour = rng.integers(0, 256, (9, 13, 3), dtype=np.uint8)
    deep = rng.integers(1, 2**16, (9, 13), dtype=np.uint16)
    exif = Image.Exif()
    exif[Image.ExifTags.Base.Orientation] = 6
    exif[Image.ExifTags.Base.Artist] = "x" * 20
    seeds = [saved(Image.fromarray(colour), kind) for kind in ("PNG", "JPEG", "BMP", "TIFF", "WEBP", "GIF", "ICO",
                                                               "PPM", "TGA", "JPEG2000", "EPS", "PCX", "SGI", "DDS")]
    seeds += [saved(Image.fromarray(colour).convert(mode), kind) for mode, kind in (
        ("L", "JPEG"), ("CMYK", "JPEG"), ("P", "PNG"), ("1", "PNG"), ("RGBA", "PNG"), ("LA", "PNG"), ("P", "GIF"))]
    seeds += [saved(Image.fromarray(deep), kind) for kind in ("PNG", "TIFF")]
    seeds += [saved(Image.fromarray(values.astype(np.float32)), "TIFF")
              for values in (deep, deep / 2**16, deep * np.nan)]
    seeds += [saved(Image.fromarray(colour), "TIFF", compression=name) for name in ("tiff_lzw", "tiff_deflate", "jpeg")]
    seeds += [saved(Image.fromarray(colour), kind, exif=exif) for kind in ("JPEG", "PNG", "WEBP")]
    return [*seeds, npy(deep), b""]


def saved(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def mutate_image(rng: random.Random, content: bytes) -> bytes:
    """An edit of the bytes; of PNG, whose checksums would give it away, also within a chunk."""
    if content[1:4] != b"PNG" or rng.random() < 0.3:
        return edited(content, rng)
    chunks, place = [], 8
    while place + 12 <= len(content):
        size = struct.unpack(">I", content[place:place + 4])[0]
        chunks.append((content[place + 4:place + 8], content[place + 8:place + 8 + size]))
        place += 12 + size
    if not chunks:
        return edited(content, rng)
    at = rng.randrange(len(chunks))
    name, inner = chunks[at]
    if name == b"IDAT" and rng.random() < 0.5:
        chunks[at] = name, zlib.compress(edited(zlib.decompressobj().decompress(b"") + inner, rng))
    else:
        chunks[at] = name, edited(inner, rng)
    if rng.random() < 0.2:
        chunks.insert(at, rng.choice(chunks))
    return content[:8] + b"".join(struct.pack(">I", len(inner)) + name + inner + struct.pack(
        ">I", zlib.crc32(name + inner)) for name, inner in chunks)


def prepare_image(content: bytes, folder: Path):
    path = str(write_files(folder / "in", {"x.png": content}) / "x.png")
    return [lambda: decode_image(content), lambda: decode_pixels(content), lambda: decode_lumas(content, content),
            lambda: read_mask(content), lambda: read_picture(path), lambda: read_pair(path, path)]


def mask_seeds() -> list:
    """.npy files as (header, pixels), and as bytes."""
    arrays = [np.eye(7, 5, dtype=kind) for kind in ("u1", "?", "<i8", "<f4", ">f8")]
    headers = [np.lib.format.header_data_from_array_1_0(array) for array in arrays]
    return [*([header, array.tobytes()] for header, array in zip(headers, arrays, strict=True)), npy(arrays[0])]


def mutate_mask(rng: random.Random, value):
    return edited(value, rng) if isinstance(value, bytes) else [mutate(rng, value[0]), value[1]]


def prepare_mask(value, folder: Path):
    content = value
    if not isinstance(value, bytes):
        try:
            header = repr(value[0]).encode("latin1", "replace") + b"\n"
        except (RecursionError, ValueError) as error:
            raise Unmakeable from error
        content = b"\x93NUMPY\x02\0" + struct.pack("<I", len(header)) + header + value[1]
    path = str(write_files(folder / "in", {"x.npy": content}) / "x.npy")
    return [lambda: read_mask(content), lambda: read_mask(memoryview(content)), lambda: read_picture(path)]


def picture_seeds() -> list[dict]:
    names = ["0.png", "a man.PNG", "é.png", "2.jpg"]
    rows = [make_row(number, 21, 17) for number in range(4)]
    return [{"visible": {name: row["visible_image"] for name, row in zip(names, rows, strict=True)},
             "infrared": {name: row["infrared_image"] for name, row in zip(names, rows, strict=True)},
             "texts": ["the man", "a car"]}]


def mutate_pictures(rng: random.Random, value: dict) -> dict:
    part = rng.choice(list(value))
    if part == "texts":
        return value | {part: mutate(rng, value[part])}
    files = dict(value[part])
    name = rng.choice(list(files) or [""])
    kind = rng.randrange(4)
    if kind == 0:
        files[edited(name, rng)] = files.pop(name, b"")
    elif kind == 1:
        files[edited(name, rng)] = files.get(name, b"")
    else:
        files[name] = mutate_image(rng, files.get(name, b""))
    return value | {part: files}


def prepare_pictures(value: dict, folder: Path):
    texts = value["texts"]
    if not isinstance(texts, list) or not all(isinstance(text, str) and "\0" not in text for text in texts):
        raise Unmakeable
    visible, infrared = (str(write_files(folder / "in" / name, value[name])) for name in ("visible", "infrared"))
    return [command("predict.py", "--ckpt", str(material() / "model.pth"), "--visible", visible, "--infrared", infrared,
                    "--out", str(folder / "out/p"), "--device", "cpu", *(f"--text={text}" for text in texts))]


def call_seeds() -> list[dict]:
    predictor()  # once for all children
    colour = np.zeros((9, 13, 3), np.uint8)
    return [{"visible": colour, "infrared": np.ones((7, 5)), "text": "a man"},
            {"visible": saved(Image.fromarray(colour), "PNG"), "infrared": colour[..., 0], "text": "a man"},
            {"options": {"device": "cpu", "img_size": SIDE, "mha": "1-1-1-1", "flip": True, "amp": False,
                         "bert_tokenizer": str(material() / "bert")}}]


@edited.register
def _(value: np.ndarray, rng: random.Random):
    """An array of another type, shape or content."""
    kind = rng.choice(("u1", "i1", "u2", "i8", "f2", "f4", "f8", "?", "c8", "O", "U1", "M8[s]", "V2"))
    kinds = [lambda: value.astype(kind), lambda: value[None], lambda: value[..., None], lambda: value[:0],
             lambda: value[0], lambda: value.T, lambda: value * np.nan, lambda: value - 1e308, lambda: value[..., :2],
             lambda: np.broadcast_to(value[:1, :1], (1, 10**5, *value.shape[2:])), lambda: value[::-1, ::-2],
             value.tolist, lambda: np.ma.array(value), lambda: value + np.inf]
    try:
        return rng.choice(kinds)()
    except (ValueError, TypeError, IndexError):
        return value.ravel()


def mutate_call(rng: random.Random, value: dict) -> dict:
    key = rng.choice(list(value))
    return {**value, key: mutate_image(rng, value[key]) if isinstance(value[key], bytes) else mutate(rng, value[key])}


def prepare_call(value: dict, _folder: Path):
    path = str(material() / "model.pth")
    if "options" in value:
        if not isinstance(value["options"], dict) or not {*value["options"]} <= {*call_seeds()[2]["options"]}:
            raise Unmakeable
        return [lambda: Predictor.from_checkpoint(path, **value["options"])]
    try:
        pictures = [Image.open(io.BytesIO(value[name])) if isinstance(value[name], bytes) else value[name]
                    for name in ("visible", "infrared")]
    except Exception as error:  # before anything is asked of the project
        raise Unmakeable from error
    return [lambda: predictor()(*pictures, value["text"])]


@functools.cache
def predictor() -> Predictor:
    return Predictor.from_checkpoint(str(material() / "model.pth"), "cpu")
