"""All rows of parquet data sets, checked by several processes: problems, statistics, and samples to look at."""
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from utils.errors import InputError
from utils.progress import progress_bar
from utils.text import first_line

from ..cells import column_problem, plain_rows
from ..columns import IMAGES, MASK, TEXT
from ..parquet_rows import find_parquet, open_parquet
from .row_checks import ERROR, WARNING, Facts, Problem, check_row

BYTES = (*IMAGES, MASK)
ROWS_PER_JOB = 4  # what a process gets at a time, and so what a set with large images costs in memory
AREAS = (0.0, 0.001, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)  # upper edges of the histogram


class Finding(NamedTuple):
    """A problem and where it is."""

    file: str
    row: int | None  # within the file, from 0; None: the file as a whole
    problem: Problem

    def __str__(self) -> str:
        row = "" if self.row is None else f": row {self.row}"
        column = f"{self.problem.column} " if self.problem.column else ""
        return f"{self.file}{row}: {column}{self.problem.reason}"


@dataclass
class DataSet:
    """Statistics of what one path names: a file, or a folder of them."""

    path: str
    files: list[str]
    rows: int = 0
    unusable: int = 0
    with_warnings: int = 0
    has_index: bool = True
    words: Counter = field(default_factory=Counter)  # in an expression
    expressions: Counter = field(default_factory=Counter)  # of an image, by the digests of its pixels
    sizes: Counter = field(default_factory=Counter)  # (width, height) of the visible images
    areas: Counter = field(default_factory=Counter)  # position in AREAS
    indices: set = field(default_factory=set)
    said: dict = field(default_factory=dict)  # (image, expression): digest of its mask, place


class Job(NamedTuple):
    """Some rows that follow each other."""

    data: DataSet
    file: str
    first: int
    rows: list[tuple[dict, dict[str, str]]]  # as `plain_rows` gives them
    thumbnails: list[int]  # for each row, the width wanted, or 0


class Checker:
    """Goes once through all rows of some data sets.

    What stays in memory is a few numbers and digests for each row, and the rows that the processes work on.

    Attributes, complete once `run` has returned:
        sets: a DataSet for each path.
        findings: list of Finding, in order.
        samples: list of (file, row, sentence, thumbnails), evenly spread over all rows.

    Args:
        paths: parquet files, or folders of them; each is a data set of its own.
        workers: processes; 0: this one alone.
        samples: how many rows to make thumbnails of.
        thumbnail: their width in pixels.
    Raises:
        InputError: there is nothing of a path's name, or no parquet file in a folder.
    """

    def __init__(self, paths: list[str], workers: int, samples: int, thumbnail: int):
        self.sets = [DataSet(path, find_parquet(path)) for path in paths]
        self.findings: list[Finding] = []
        self.samples: list[tuple[str, int, str, list[np.ndarray]]] = []
        self._workers = workers
        self._thumbnail = thumbnail
        self._seen: dict[bytes, list[tuple[DataSet, str, int]]] = {}  # digest of an image: first place in each set
        self._files: list[tuple[DataSet, str, int]] = []  # those that can be read, and their rows
        for data in self.sets:
            rows = [self._open(data, file) for file in data.files]
            if None not in rows and not sum(rows):
                self._report(data.path, None, ERROR, "empty", "", "there are no rows in it")
        self._total = sum(rows for _, _, rows in self._files)
        self._wanted = set(np.linspace(0, max(0, self._total - 1), samples, dtype=int).tolist()) if samples else set()

    def run(self) -> None:
        """Check everything.

        Raises:
            InputError: a process has died, as it does when memory runs out.
        """
        with progress_bar(total=self._total, desc="checking", unit="row") as bar:
            for job, facts in self._answers():
                for offset, ((cells, _), fact) in enumerate(zip(job.rows, facts, strict=True)):
                    self._take(job.data, job.file, job.first + offset, cells, fact)
                bar.update(len(facts))

    def _open(self, data: DataSet, file: str) -> int | None:
        """Check the columns of a file; return the number of its rows, or None if they cannot be read."""
        try:
            parquet = open_parquet(file)
        except InputError as error:
            self._report(file, None, ERROR, "file", "", str(error).removeprefix(f"{file}: "))
            return None
        problems = check_columns(parquet.schema_arrow)
        for problem in problems:
            self._report(file, None, *problem)
        if problems:
            return None
        self._files.append((data, file, parquet.metadata.num_rows))
        return parquet.metadata.num_rows

    def _jobs(self) -> Iterator[Job]:
        row = 0  # over all sets
        for data, file, rows in self._files:
            parquet = open_parquet(file)
            columns = [name for name in (*TEXT, *BYTES, "index") if name in parquet.schema_arrow.names]
            data.has_index &= "index" in columns
            batches = parquet.iter_batches(batch_size=ROWS_PER_JOB, columns=columns, use_threads=False)
            first = 0
            while True:
                try:
                    batch = next(batches, None)
                    rows_here = plain_rows(batch) if batch else []
                except (OSError, pa.ArrowException) as error:
                    self._report(file, None, ERROR, "file", "", f"from row {first} on, it cannot be read "
                                                                f"({first_line(error)})")
                    break
                if not rows_here:
                    break
                wanted = [self._thumbnail * (row + first + offset in self._wanted) for offset in range(len(rows_here))]
                yield Job(data, file, first, rows_here, wanted)
                first += len(rows_here)
            row += rows

    def _answers(self) -> Iterator[tuple[Job, list[Facts]]]:
        """Each job and what was found, in order; a few jobs ahead in other processes."""
        if not self._workers:
            for job in self._jobs():
                yield job, check_rows(job.rows, job.thumbnails)
            return
        with ProcessPoolExecutor(self._workers) as pool:
            waiting = deque()
            for job in self._jobs():
                waiting.append((job, pool.submit(check_rows, job.rows, job.thumbnails)))
                if len(waiting) > 2 * self._workers:
                    yield self._answer(*waiting.popleft())
            while waiting:
                yield self._answer(*waiting.popleft())

    @staticmethod
    def _answer(job: Job, future) -> tuple[Job, list[Facts]]:
        try:
            return job, future.result()
        except BrokenProcessPool as error:
            raise InputError(f"{job.file}: a process died near row {job.first}, as when memory runs out; "
                             "try with a smaller -j") from error

    def _take(self, data: DataSet, file: str, row: int, cells: dict, facts: Facts) -> None:
        """Add one row to the statistics, and compare it with those before."""
        before = len(self.findings)
        for problem in facts.problems:
            self._report(file, row, *problem)
        visible = facts.images[0]
        data.rows += 1
        data.unusable += not facts.usable
        data.words[facts.words] += 1
        if facts.area is not None:
            data.areas[int(np.searchsorted(AREAS, facts.area))] += 1
        if visible is not None:
            data.sizes[facts.sizes[0]] += data.expressions[visible] == 0
            data.expressions[visible] += 1
        self._compare(data, file, row, cells, facts)
        data.with_warnings += any(found.problem.severity == WARNING for found in self.findings[before:])
        if facts.thumbnails is not None:
            self.samples.append((file, row, cells["question"], facts.thumbnails))

    def _compare(self, data: DataSet, file: str, row: int, cells: dict, facts: Facts) -> None:
        leaks = []
        for column, digest in zip(BYTES, facts.images, strict=False):
            if digest is None:
                continue
            places = self._seen.setdefault(digest, [])
            if all(other is not data for other, _, _ in places):
                leaks += [(column, name, number) for _, name, number in places]
                places.append((data, file, row))
        for column, name, number in leaks[:1]:  # both images of a pair leak as one
            self._report(file, row, WARNING, "leak", column, f"is also in {name}: row {number}")
        if cells["question"] and facts.mask and all(facts.images):
            key = (*facts.images, cells["question"])
            mask, name, number = data.said.setdefault(key, (facts.mask, file, row))
            if (name, number) != (file, row):
                kind, end = ("duplicate", "the same mask") if mask == facts.mask else ("ambiguous", "but another mask")
                self._report(file, row, WARNING, kind, "",
                             f"has the images and the sentence of {name}: row {number}, {end}")
        if "index" in cells:
            if not isinstance(cells["index"], int):
                self._report(file, row, WARNING, "index", "index", "is not a whole number; row numbers replace it")
            elif cells["index"] in data.indices:
                self._report(file, row, WARNING, "index", "index",
                             f"{cells['index']} was there before; row numbers replace it")
            else:
                data.indices.add(cells["index"])

    def _report(self, file: str, row: int | None, *problem: str) -> None:
        self.findings.append(Finding(file, row, Problem(*problem)))


def check_rows(rows: list[tuple[dict, dict[str, str]]], thumbnails: list[int]) -> list[Facts]:
    """`check_row` for each."""
    return [check_row(cells, width, reasons) for (cells, reasons), width in zip(rows, thumbnails, strict=True)]


def check_columns(schema: pa.Schema) -> list[Problem]:
    """What is wrong with the columns of a file."""
    problems = [(column, column_problem(schema, column, wanted))
                for columns, wanted in ((TEXT, "text"), (BYTES, "bytes")) for column in columns]
    return [Problem(ERROR, "column", column, reason) for column, reason in problems if reason]
