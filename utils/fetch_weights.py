"""Fetch the data set and published weights from the Hugging Face hub to where the other scripts look for them.

    python utils/fetch_weights.py --what mm-ris ris-fusion bert

An interrupted download resumes where it stopped when the command is given again; a file that exists already is
compared with the hub's checksum and left as it is.
"""
import fnmatch
import hashlib
import io
import os
import sys
from typing import NamedTuple

if __package__ in (None, ""):  # started as a script: its folder, not the project's, is on the path
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

from utils.errors import InputError, UsageError, run
from utils.files import lock
from utils.flags import ArgumentParser, make_folder
from utils.progress import bar_style
from utils.text import counted, first_line, printable

BLOCK = 2**22  # bytes hashed at a time


class Source(NamedTuple):
    """A repository on the hub, and what of it goes where."""

    repo: str
    kind: str  # "model" or "dataset"
    folder: str
    wanted: tuple[str, ...]  # patterns of file names
    single: str = ""  # of the files that fit, one is meant, and gets this name


SOURCES = {
    "mm-ris": Source("ronniejiangC/MM-RIS", "dataset", "data", ("*.parquet",)),
    "ris-fusion": Source("ronniejiangC/RIS-FUSION", "model", "ckpts/risfusion", ("*.pth", "*.pt"),
                         single="model_best_lavt.pth"),
    "bert": Source("google-bert/bert-base-uncased", "model", "bert/pretrained_weights/bert-base-uncased",
                   ("config.json", "vocab.txt", "tokenizer.json", "tokenizer_config.json", "model.safetensors")),
}


class Remote(NamedTuple):
    """A file on the hub."""

    name: str  # within the repository
    size: int  # bytes
    sha256: str | None  # of its content; the hub lists it for large files
    blob: str  # git's hash of its content; the hub lists it for all others


def list_files(source: Source) -> tuple[str, list[Remote]]:
    """The hub's listing of a repository: the commit it is at, and its files.

    Raises:
        InputError: the hub cannot be reached, or has no such repository.
    """
    from huggingface_hub import HfApi

    try:
        info = HfApi().repo_info(source.repo, repo_type=source.kind, files_metadata=True, timeout=30)
    except Exception as error:  # the hub's library raises httpx's or httpx2's errors, by its release, and its own
        raise InputError(by_hand(source, error)) from error
    return info.sha, [Remote(file.rfilename, file.size, file.lfs.sha256 if file.lfs else None, file.blob_id)
                      for file in info.siblings]


def choose(source: Source, files: list[Remote], patterns: list[str]) -> dict[str, Remote]:
    """Which files to fetch, by the names they get here.

    Raises:
        InputError: none fits, or several where one is meant.
    """
    chosen = [file for file in files if fits(file.name, source.wanted) and fits(file.name, patterns or ["*"])]
    if source.single and len(chosen) > 1:
        chosen = [file for file in chosen if os.path.basename(file.name) == source.single] or chosen
    listed = printable(", ".join(file.name for file in files) or "nothing", 2000)
    if not chosen:
        raise InputError(f"{source.repo} has no file like {' '.join(patterns or source.wanted)}; it has {listed}")
    if source.single:
        if len(chosen) > 1:
            raise InputError(f"{source.repo} has several files that may be meant; choose one with --only: {listed}")
        return {source.single: chosen[0]}
    names = [os.path.basename(file.name) for file in chosen]
    if len(set(names)) < len(names):  # the same name in two folders of the repository
        names = [file.name.replace("/", "_") for file in chosen]
    return dict(zip(names, chosen, strict=True))


def fits(name: str, patterns) -> bool:
    return any(fnmatch.fnmatch(text, pattern) for pattern in patterns for text in (name, os.path.basename(name)))


def fetch(source: Source, revision: str, file: Remote, path: str) -> str:
    """Make `path` the hub's `file`, unless it is already; return its SHA-256.

    What has been downloaded so far is in `path`.part. From huggingface_hub 1.31 on, if not earlier, the library's own
    download starts anew in each process, which for gigabytes is too often; `http_get`, on which it is built, resumes.

    Raises:
        InputError: the download broke off, or is not what the hub lists; or a file cannot be read or written.
    """
    from huggingface_hub import hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers
    from huggingface_hub.utils import tqdm as hub_tqdm

    class Bar(hub_tqdm):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs | bar_style())

    if os.path.lexists(path):
        digest = verified(path, file)
        if digest:
            return digest
        raise InputError(f"{path} is there, but is not the hub's {file.name}; move it away and run this again")
    part = f"{path}.part"
    try:
        with Part(part) as target:
            if target.tell() > file.size:
                target.truncate(0)
                target.seek(0)
            http_get(hf_hub_url(source.repo, file.name, repo_type=source.kind, revision=revision), target,
                     resume_size=target.tell(), headers=build_hf_headers(), expected_size=file.size,
                     displayed_filename=os.path.basename(path), tqdm_class=Bar)
    except InputError:
        raise
    except Exception as error:  # see list_files
        size = os.path.getsize(part) if os.path.exists(part) else 0
        raise InputError(f"{path}: {size} of {file.size} bytes are here, then: {by_hand(source, error)} "
                         "The same command resumes from there.") from error
    digest = verified(part, file)
    try:
        if digest:
            os.replace(part, path)
            return digest
        os.remove(part)
    except OSError as error:
        raise InputError(f"{path}: it cannot be written ({error.strerror})") from error
    raise InputError(f"{path}: the download does not have the hub's checksum and was removed; run this again")


class Part(io.FileIO):
    """What has been downloaded of a file, to be continued.

    Raises:
        InputError: from the start or a write: the file is a symbolic link, another process downloads to it, or it
            cannot be written.
    """

    def __init__(self, path: str):
        if os.path.islink(path):
            raise InputError(f"{path} is a symbolic link, which is not followed; remove it")
        try:
            super().__init__(path, "ab", opener=lambda name, flags: os.open(
                name, flags | getattr(os, "O_NOFOLLOW", 0), 0o666))
        except OSError as error:
            raise InputError(f"{path}: it cannot be written ({error.strerror})") from error
        if not lock(self):
            self.close()
            raise InputError(f"{path}: another process is downloading to this file; wait until it has ended")

    def write(self, data) -> int:
        rest = memoryview(data)
        try:
            while rest:  # the system may write less than it is given
                rest = rest[super().write(rest):]
        except OSError as error:
            raise InputError(f"{self.name}: it cannot be written ({error.strerror})") from error
        return len(data)


def verified(path: str, file: Remote) -> str | None:
    """The SHA-256 of the file at `path`, if its content is that of `file`; else None.

    Raises:
        InputError: it cannot be read.
    """
    digest, blob = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % file.size)
    try:
        if not os.path.isfile(path) or os.path.getsize(path) != file.size:
            return None
        with open(path, "rb") as content:
            while block := content.read(BLOCK):
                digest.update(block)
                blob.update(block)
    except OSError as error:
        raise InputError(f"{path}: it cannot be read ({error.strerror})") from error
    found = digest.hexdigest()
    same = found == file.sha256 if file.sha256 else blob.hexdigest() == file.blob
    return found if same else None


def by_hand(source: Source, error: Exception) -> str:
    """What to say when the hub does not answer as it should: why, and how to do without this script."""
    kind, page = ("--repo-type dataset ", "datasets/") if source.kind == "dataset" else ("", "")
    files = source.single or ", ".join(source.wanted)
    return (f"{source.repo} cannot be fetched from the Hugging Face hub ({first_line(error)}). By hand, where there is "
            f"a connection: `hf download {source.repo} {kind}--local-dir DIR`, or a browser at "
            f"https://huggingface.co/{page}{source.repo}; then put {files} into {source.folder}/.")


def build_parser() -> ArgumentParser:
    parser = ArgumentParser(
        description="Fetch the data set and published weights from the Hugging Face hub to where the other scripts "
                    "look for them.",
        epilog="; ".join(f"{what}: {source.repo} to {source.folder}/" for what, source in SOURCES.items()))
    parser.add_argument("--what", nargs="+", required=True, choices=SOURCES, help="one or more of these")
    parser.add_argument("--to", metavar="DIR",
                        help="folder to write to; only with a single --what (default: by --what)")
    parser.add_argument("--only", nargs="+", default=[], metavar="PATTERN",
                        help="fetch only files whose names match, as in '*test*'; only with a single --what")
    return parser


def main(arguments: list[str] | None = None) -> None:
    args = build_parser().parse_args(arguments)
    for flag in ("to", "only"):
        if getattr(args, flag) and len(args.what) > 1:
            raise UsageError(f"--{flag} goes with one --what, not with {len(args.what)}")
    for what in args.what:
        source = SOURCES[what]
        if args.to:
            source = source._replace(folder=args.to)
        revision, files = list_files(source)
        chosen = choose(source, files, args.only)
        make_folder(source.folder, "--to")
        total = sum(file.size for file in chosen.values())
        print(f"{source.repo} at {revision[:8]}: {counted(len(chosen), 'file')}, {total / 1e6:.1f} MB", flush=True)
        for name, file in sorted(chosen.items()):
            path = os.path.join(source.folder, name)
            print(f"{path}  sha256 {fetch(source, revision, file, path)}", flush=True)


if __name__ == "__main__":
    run(main)
