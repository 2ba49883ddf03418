"""Which files of two folders belong together, by their names alone."""
import os
import re
import unicodedata
from collections.abc import Callable, Iterable
from typing import NamedTuple

VISIBLE_WORDS = frozenset(["vis", "visible", "rgb", "vi", "color", "colour", "co", "eo", "optical"])
INFRARED_WORDS = frozenset(["ir", "infrared", "thermal", "tir", "lwir", "mwir", "swir", "nir", "therm"])
MASK_WORDS = frozenset(["mask", "masks", "label", "labels", "gt", "seg", "segmentation"])
# A word as people put names together: VIS and Bunker in VISBunker, Preview and Data in PreviewData, IR and 18 in IR18.
WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+|[^\W\d_]+")


class Matches(NamedTuple):
    """Names of one folder, each with its partner's in the other; relative to their folders, with forward slashes."""

    partners: dict[str, str]
    ambiguous: dict[str, list[str]]  # the names of both folders among which the choice is open
    ignored: tuple[list[str], list[str]]  # words of the first and second folder's names that did not count


def match_names(first: Iterable[str], second: Iterable[str], words: tuple[frozenset[str], frozenset[str]]) -> Matches:
    """Match file names of two folders, whatever their suffixes.

    Three rules apply in turn, each to the names that the one before has left: the names are the same; they are the
    same but for upper and lower case; they are the same without the words in which the folders differ. These words are
    the usual ones for the kind of picture, and any that occur in all names of one folder and in none of the other.

    Args:
        first, second: paths relative to the folders, with forward slashes.
        words: the usual words, in lower case, for the pictures of the first and of the second folder.
    """
    names = [sorted(first), sorted(second)]
    ignored = _differing_words(names, words)
    keys: list[list[Callable[[str], str]]] = [
        [stem, stem], [_folded, _folded], [lambda name, side=side: _without(name, ignored[side]) for side in (0, 1)]]
    partners, ambiguous, used = {}, {}, (set(), set())
    for rule in keys:
        groups = [_grouped(side, key) for side, key in zip(names, rule, strict=True)]
        for key in sorted(groups[0].keys() & groups[1].keys()):
            here, there = groups[0][key], groups[1][key]
            if len(here) == len(there) == 1:
                partners[here[0]] = there[0]
                if rule is keys[-1]:
                    for side, name in enumerate((here[0], there[0])):
                        used[side].update(ignored[side] & words_of(name))
            else:
                ambiguous |= dict.fromkeys([*here, *there], [*here, *there])
            names = [[name for name in side if name not in found]
                     for side, found in zip(names, (set(here), set(there)), strict=True)]
    return Matches(partners, ambiguous, (sorted(used[0]), sorted(used[1])))


def stem(name: str) -> str:
    """A relative path without its suffix."""
    return os.path.splitext(name)[0]


def fold(name: str) -> str:
    """A name in a form that is the same for upper and lower case, and for both ways to encode letters with accents."""
    return unicodedata.normalize("NFC", name).casefold()


def words_of(name: str) -> set[str]:
    """The words of which a name consists, in lower case, without its suffix."""
    return {fold(word) for word in WORD.findall(stem(name))}


def _folded(name: str) -> str:
    return fold(stem(name))


def _differing_words(names: list[list[str]], usual: tuple[frozenset[str], frozenset[str]]
                     ) -> tuple[set[str], set[str]]:
    """For each folder, the words of its names that do not count when its names are compared with the other's."""
    result = []
    of_all = [[words_of(name) for name in side] for side in names]
    for side, other in ((0, 1), (1, 0)):
        ignored = set(usual[side])
        if min(len(of_all[side]), len(of_all[other])) > 1:  # of a single pair, any words are in all names
            common = set.intersection(*of_all[side]) - set.union(*of_all[other])
            ignored |= {word for word in common if not word.isdigit()}
        result.append(ignored)
    return result[0], result[1]


def _without(name: str, ignored: set[str]) -> str:
    """A key for `name` without the words `ignored`."""
    parts = []
    for part in stem(name).split("/"):
        words = [word for word in map(fold, WORD.findall(part)) if word not in ignored]
        # Letters are joined, as StreetView and streetview are one name; numbers stay apart.
        parts.append(re.sub(r"(?<=[^\W\d]) (?=[^\W\d])", "", " ".join(words)))
    return "/".join(part for part in parts if part)


def _grouped(names: list[str], key: Callable[[str], str]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(key(name), []).append(name)
    return groups
