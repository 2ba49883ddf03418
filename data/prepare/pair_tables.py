"""Tables of pairs of pictures, each with a sentence of its own, for prediction."""
import csv
import os
from typing import NamedTuple

from data.pairing import stem
from data.pictures import PairOfFiles
from utils.errors import InputError
from utils.text import counted, printable

from .tables import nonempty_text, read_csv, read_text

COLUMNS = ("visible", "infrared", "text")
OPTIONAL = ("name",)


class Request(NamedTuple):
    """A pair of files and what is asked about it."""

    files: PairOfFiles
    texts: list[str]
    names: list[str]  # with each sentence, the start of the names of its results


def read_requests(path: str) -> list[Request]:
    """The pairs of a table, in the order in which they occur first; lines about the same two files are one request.

    Args:
        path: CSV or TSV, as for `tables.read_csv`, with the columns COLUMNS and OPTIONAL. Paths of pictures are
            relative to the table's folder. Without a name, that of the visible file without its suffix serves.
    Raises:
        InputError: the table cannot be read, or a line is wrong, or names a file that is not there. No line counts
            then, so that nothing is found wrong after hours of work.
    """
    requests: dict[tuple[str, str], Request] = {}
    errors = []
    try:
        for where, record in read_csv(read_text(path), COLUMNS, OPTIONAL):
            try:
                visible, infrared, text, name = _checked(record, os.path.dirname(path))
            except ValueError as error:
                errors.append(f"{printable(path)}, {where}: {error}")
                continue
            request = requests.setdefault((visible, infrared), Request(PairOfFiles(name, visible, infrared), [], []))
            request.texts.append(text)
            request.names.append(name)
    except OSError as error:
        raise InputError(f"{printable(path)}: it cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise InputError(f"{printable(path)}: the table {error}") from error
    except csv.Error as error:
        raise InputError(f"{printable(path)}: it is not a table ({error})") from error
    if errors:
        more = f"; likewise {counted(len(errors) - 1, 'other line')}" if errors[1:] else ""
        raise InputError(f"{errors[0]}{more}")
    if not requests:
        raise InputError(f"{printable(path)}: the table has no line below its header")
    return list(requests.values())


def _checked(record: dict | str, folder: str) -> tuple[str, str, str, str]:
    """Visible and infrared path, text and name of a line."""
    if isinstance(record, str):
        raise ValueError(record)
    visible, infrared, text = (nonempty_text(record[column], column) for column in COLUMNS)
    paths = [os.path.normpath(os.path.join(folder, path)) for path in (visible, infrared)]
    for column, path in zip(COLUMNS[:2], paths, strict=True):
        if not os.path.isfile(path):
            raise ValueError(f"there is no {column} file {printable(path)!r}")
    name = record.get("name", "").strip() or stem(os.path.basename(visible))
    return paths[0], paths[1], text, name
