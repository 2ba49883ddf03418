"""What is wrong with what an input has led to: with the sentence, with what was printed, with the files left."""
import json
import os
import re
import traceback
from pathlib import Path

import pyarrow.parquet as pq
from PIL import Image

ROOT = Path(__file__).parents[2]
LONGEST_LINE = 10_100  # characters that a sentence may have
NOISE = re.compile(r"^(\w*Decode\w*|tempfile\.tif|\w*TIFF\w*|JPEGLib|libpng \w+): .*\n", re.M)  # they print and raise
CONTROL = re.compile("[\0-\x08\x0b\x0c\x0e-\x1f\x7f\x80-\x9f\u202a-\u202e\u2066-\u2069]")
TEMPORARY = re.compile(r"tmp|writing|\.part$")


def place(error: BaseException) -> str:
    """Where in the project an exception was raised."""
    frames = [(Path(frame.filename), frame.name) for frame in traceback.extract_tb(error.__traceback__)]
    ours = [f"{file.relative_to(ROOT)} {name}" for file, name in frames
            if file.is_relative_to(ROOT) and not file.is_relative_to(ROOT / "tests")
            and not file.is_relative_to(ROOT / ".venv")]
    return f"at {ours[-1]}" if ours else "outside the project"


def about_sentence(text: str) -> str:
    """What is wrong with what a person is told; empty if nothing is."""
    first, *more = text.split("\n")
    if not first.strip() or "Traceback" in text or any(not line.startswith("  ") for line in more):
        return "no single sentence"
    if max(map(len, [first, *more])) > LONGEST_LINE:
        return "a sentence too long to read"
    return ""


def about_output(folder: Path) -> tuple[str, str] | None:
    """What is wrong with what was printed."""
    said, complained = ((folder / name).read_bytes().decode("utf-8", "replace") for name in ("stdout", "stderr"))
    complained = NOISE.sub("", complained)
    if CONTROL.search(complained):
        return "control characters on stderr", repr(complained[:5000])
    if complained and (not complained.startswith("error: ") or about_sentence(complained.removesuffix("\n"))):
        line = next((line for line in complained.splitlines() if line.strip()), "")
        return f"stderr: {about_sentence(complained.strip()) or re.sub('[0-9]+', 'N', line)[:80]}", complained[-5000:]
    if found := CONTROL.search(said):
        return "control characters on stdout", repr(said[max(0, found.start() - 200):found.end() + 200])
    return None


def listing(folder: Path) -> dict[str, tuple]:
    """All that is in `folder`, except its output folder."""
    found = {}
    for root, folders, names in os.walk(folder):
        if root == str(folder):
            folders.remove("out")
            continue  # the files beside are the sandbox's own
        for path in (os.path.join(root, name) for name in [*folders, *names]):
            status = os.lstat(path)
            found[path] = (status.st_mode, *((status.st_size, status.st_mtime_ns) if os.path.isfile(path) else ()))
    return found


def about_files(folder: Path, before: dict) -> tuple[str, str] | None:
    """Files that were changed, left over, or not written to their end."""
    after = listing(folder)
    if changed := [path for path in before.keys() | after.keys() if before.get(path) != after.get(path)]:
        return "a file outside the output folder", changed[0]
    for root, folders, names in os.walk(folder / "out"):
        for name in [*folders, *names]:
            if TEMPORARY.search(name):
                return "a temporary file left", os.path.join(root, name)
        for name in names:
            try:
                _read(os.path.join(root, name))
            except Exception as error:
                return f"an incomplete {os.path.splitext(name)[1]} file", f"{os.path.join(root, name)}: {error}"
    return None


def _read(path: str) -> None:
    """Raise something if a file is not complete."""
    if path.endswith(".json"):
        json.loads(Path(path).read_text("utf-8"))
    elif path.endswith((".png", ".jpg")):
        with Image.open(path) as image:
            image.load()
    elif path.endswith(".parquet"):
        pq.read_metadata(path)
