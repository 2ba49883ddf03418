"""Where BERT's vocabulary and configuration come from when a checkpoint is opened."""
import os
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from utils.errors import UsageError
from utils.flags import BERT
from utils.text import printable

FILES = {"bert_tokenizer": ("tokenizer.json", "vocab.txt"), "ck_bert": ("config.json",)}  # one of them is needed
CONTENTS = {"bert_tokenizer": "vocabulary", "ck_bert": "configuration"}


class BertFolders(NamedTuple):
    """Folders with BERT's vocabulary and configuration; None for what is taken from the checkpoint itself."""

    bert_tokenizer: str | None
    ck_bert: str | None


def check_given(given: dict[str, Any]) -> dict[str, str]:
    """The folders that the caller names, by the arguments of `open_checkpoint`; without those that are None.

    Raises:
        UsageError: one is no path or no folder.
    """
    folders = {}
    for name, folder in given.items():
        if folder is None:
            continue
        if not isinstance(folder, str | os.PathLike) or not os.path.isdir(folder):
            raise UsageError(f"there is no folder '{printable(folder)}'", name)
        folders[name] = str(folder)
    return folders


def find_bert(given: dict[str, str], stored: dict[str, Any], embedded: dict[str, bool],
              fetch: Callable[[], str] | None = None) -> BertFolders:
    """The folders to use.

    For each of the two: the given folder; else the folder given for the other, if it has the file; else what the
    checkpoint carries; else a folder that the checkpoint names, for this or for the other; else bert-base-uncased,
    in its usual folder or fetched.

    Args:
        given: of `check_given`.
        stored: `args` of the checkpoint.
        embedded: whether the checkpoint carries the vocabulary (`bert_tokenizer`) and the configuration (`ck_bert`).
        fetch: gives a folder of bert-base-uncased; may raise an InputError.
    Raises:
        UsageError: there is none; names what is to be given.
    """
    found, absent = {}, []
    for name, files in FILES.items():
        here = _with_one_of(files, given.values())
        elsewhere = _with_one_of(files, [stored.get(name), *(stored.get(other) for other in FILES), BERT])
        if name in given:
            found[name] = given[name]
        elif here:
            found[name] = here[0]
        elif embedded[name]:
            found[name] = None
        elif elsewhere:
            found[name] = elsewhere[0]
        else:
            absent.append(name)
    if absent and fetch is not None:
        found |= dict.fromkeys(absent, fetch())
    elif absent:
        what = " or ".join(CONTENTS[name] for name in absent)
        named = ", ".join(sorted({f"'{printable(stored[name])}'" for name in FILES if stored.get(name)})) or "none"
        files = " and ".join(" or ".join(FILES[name]) for name in absent)
        both = ", which serves for both" if len(absent) > 1 else ""
        raise UsageError(f"there is no {what} of BERT in the checkpoint, in the folder that it names ({named}) or in "
                         f"the default ({BERT}); name a folder with {files}{both}", absent[0])
    return BertFolders(**found)


def _with_one_of(files: tuple[str, ...], folders: Iterable[Any]) -> list[str]:
    """The folders that are there and have one of the files."""
    return [folder for folder in folders if isinstance(folder, str) and any(
        os.path.isfile(os.path.join(folder, file)) for file in files)]
