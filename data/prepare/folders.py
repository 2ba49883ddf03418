"""The picture files of a folder, found by the names that tables give them."""
import os
import posixpath

from utils.text import printable

from ..pairing import fold, match_names, stem
from ..pictures import list_pictures


class Folder:
    """The picture files in a folder and its subfolders.

    Args:
        path: the folder; one that does not exist has no files.
        arrays: whether `.npy` files count as pictures.
    Raises:
        InputError: the folder cannot be read.
    """

    def __init__(self, path: str, arrays: bool = False):
        self.path = path
        files = list_pictures(path) if os.path.isdir(path) else {}
        # Name relative to the folder, with forward slashes: path.
        self.files = {name: file for name, file in files.items() if arrays or not name.lower().endswith(".npy")}
        self._stems, self._folded, self._bases = {}, {}, {}
        for name in self.files:
            self._stems.setdefault(stem(name), []).append(name)
            self._folded.setdefault(fold(stem(name)), []).append(name)
            self._bases.setdefault(fold(stem(posixpath.basename(name))), []).append(name)

    def find(self, name: str, anywhere: bool = True) -> str:
        """The key in `files` of the picture `name`.

        If there is no such file, another suffix, other upper and lower case or, for a name without folders, any
        subfolder will do, in this order, where just one file fits.

        Args:
            anywhere: whether to look in subfolders.
        Raises:
            ValueError: no file fits, or several do; says so.
        """
        name = posixpath.normpath(name.replace("\\", "/"))
        if name in self.files:
            return name
        indices = [(self._stems, str), (self._folded, fold)]
        if anywhere and "/" not in name:
            indices.append((self._bases, fold))
        for index, key in indices:
            for wanted in (name, stem(name)):
                found = index.get(key(wanted), [])
                if len(found) > 1:
                    raise ValueError(f"{self.path} has several pictures of this name: {printable(', '.join(found))}")
                if found:
                    return found[0]
        if not os.path.isdir(self.path):
            raise ValueError(f"there is no folder {self.path}")
        raise ValueError(f"{self.path} has no picture '{printable(name)}'")


class Partners:
    """Finds the picture in one folder that belongs to a picture in another, by `pairing.match_names`."""

    def __init__(self, folder: Folder, other: Folder, words: tuple[frozenset[str], frozenset[str]]):
        self._other = other
        self._matches = match_names(folder.files, other.files, words)

    def find(self, name: str) -> str:
        """The key in the other folder's `files` of the partner of `name`.

        Raises:
            ValueError: there is none, or there are several; says so.
        """
        try:
            return self._other.find(name, anywhere=False)
        except ValueError:
            if name in self._matches.partners:
                return self._matches.partners[name]
            if candidates := self._matches.ambiguous.get(name):
                raise ValueError(f"{self._other.path}: it is unclear which of these belong together: "
                                 f"{printable(', '.join(candidates))}") from None
            raise
