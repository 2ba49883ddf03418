"""All rows of parquet data sets, checked by several processes: problems, statistics, and samples to look at."""
from array import array
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from bert import Tokenizer
from utils.errors import InputError
from utils.progress import progress_bar
from utils.text import LONGEST_LINE, first_line, printable

from ..cells import column_problem, plain_rows
from ..columns import FUSED, IMAGES, MASK, TEXT
from ..parquet_rows import find_parquet, open_parquet
from .row_checks import ERROR, WARNING, CheckedRow, Problem, check_row

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
        return f"{printable(self.file)}{row}: {printable(column + self.problem.reason, LONGEST_LINE)}"


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
    areas: array = field(default_factory=lambda: array("d"))  # the objects' shares of their images, 0 to 1
    cut_sentences: int | None = None  # with more than MAX_TOKENS word pieces; None: not counted
    indices: set = field(default_factory=set)
    first_rows: dict = field(default_factory=dict)  # (images, expression): digest of the mask, file and row

    def area_histogram(self) -> list[int]:
        """How many objects lie above the previous and up to each of AREAS; empty masks come first."""
        return np.bincount(np.searchsorted(AREAS, self.areas), minlength=len(AREAS)).tolist()


class Job(NamedTuple):
    """Some rows that follow each other."""

    data: DataSet
    file: str
    first: int
    rows: list[tuple[dict, dict[str, str]]]  # as `plain_rows` gives them
    thumbnails: list[int]  # for each row, the width wanted, or 0


class Checker:
    """Reads all rows of some data sets once.

    It keeps a few numbers and digests of each row in memory, and the rows that the processes work on.

    Attributes, complete once `run` has returned:
        sets: a DataSet for each path.
        findings: list of Finding, in order.
        samples: list of (file, row, sentence, thumbnails), evenly spread over all rows.

    Args:
        paths: parquet files, or folders of them; each is a data set of its own.
        workers: processes; 0: this one alone.
        samples: how many rows to make thumbnails of.
        thumbnail: their width in pixels.
        tokenizer: with BERT's vocabulary, to count the sentences that are longer than what it reads.
    Raises:
        InputError: there is nothing of a path's name, or no parquet file in a folder.
    """

    def __init__(self, paths: list[str], workers: int, samples: int, thumbnail: int,
                 tokenizer: Tokenizer | None = None):
        self._tokenizer = tokenizer
        self.sets = [DataSet(path, find_parquet(path)) for path in paths]
        self.findings: list[Finding] = []
        self.samples: list[tuple[str, int, str, list[np.ndarray]]] = []
        self._workers = workers
        self._thumbnail = thumbnail
        self._seen: dict[bytes, list[tuple[DataSet, str, int]]] = {}  # digest of an image: its first row in each set
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
            for job, checked in self._answers():
                for offset, ((cells, _), found) in enumerate(zip(job.rows, checked, strict=True)):
                    self._take(job.data, job.file, job.first + offset, cells, found)
                if self._tokenizer:
                    self._count_cut_sentences(job)
                bar.update(len(checked))

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
            columns = [name for name in (*TEXT, *BYTES, FUSED, "index") if name in parquet.schema_arrow.names]
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

    def _answers(self) -> Iterator[tuple[Job, list[CheckedRow]]]:
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
    def _answer(job: Job, future) -> tuple[Job, list[CheckedRow]]:
        try:
            return job, future.result()
        except BrokenProcessPool as error:
            raise InputError(f"{job.file}: a process died near row {job.first}, as when memory runs out; "
                             "try fewer worker processes") from error

    def _take(self, data: DataSet, file: str, row: int, cells: dict, found: CheckedRow) -> None:
        """Add one row to the statistics, and compare it with those before."""
        before = len(self.findings)
        for problem in found.problems:
            self._report(file, row, *problem)
        visible = found.images[0]
        data.rows += 1
        data.unusable += not found.usable
        data.words[found.words] += 1
        if found.area is not None:
            data.areas.append(found.area)
        if visible is not None:
            data.sizes[found.sizes[0]] += data.expressions[visible] == 0
            data.expressions[visible] += 1
        self._compare(data, file, row, cells, found)
        data.with_warnings += any(finding.problem.severity == WARNING for finding in self.findings[before:])
        if found.thumbnails is not None:
            self.samples.append((file, row, cells["question"], found.thumbnails))

    def _count_cut_sentences(self, job: Job) -> None:
        sentences = [cells["question"] for cells, _ in job.rows if cells["question"]]
        input_ids, attention_mask = self._tokenizer([*sentences, ""])
        end = input_ids[-1, 1]  # of the empty sentence: [CLS] [SEP]; a sentence that is cut lacks [SEP]
        cut = (attention_mask[:, -1] == 1) & (input_ids[:, -1] != end)
        job.data.cut_sentences = (job.data.cut_sentences or 0) + int(cut.sum())

    def _compare(self, data: DataSet, file: str, row: int, cells: dict, found: CheckedRow) -> None:
        leaks = []
        for column, digest in zip(BYTES, found.images, strict=False):
            if digest is None:
                continue
            rows_with_it = self._seen.setdefault(digest, [])
            if all(other is not data for other, _, _ in rows_with_it):
                leaks += [(column, name, number) for _, name, number in rows_with_it]
                rows_with_it.append((data, file, row))
        for column, name, number in leaks[:1]:  # both images of a pair leak as one
            self._report(file, row, WARNING, "leak", column, f"is also in {name}: row {number}")
        if cells["question"] and found.mask and all(found.images):
            key = (*found.images, cells["question"])
            mask, name, number = data.first_rows.setdefault(key, (found.mask, file, row))
            if (name, number) != (file, row):
                kind, end = ("duplicate", "the same mask") if mask == found.mask else ("ambiguous", "but another mask")
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


def check_rows(rows: list[tuple[dict, dict[str, str]]], thumbnails: list[int]) -> list[CheckedRow]:
    """`check_row` for each."""
    return [check_row(cells, width, reasons) for (cells, reasons), width in zip(rows, thumbnails, strict=True)]


def check_columns(schema: pa.Schema) -> list[Problem]:
    """What is wrong with the columns of a file, of which FUSED may be absent."""
    byte_columns = [*BYTES, *[FUSED] * (FUSED in schema.names)]
    problems = [(column, column_problem(schema, column, wanted))
                for columns, wanted in ((TEXT, "text"), (byte_columns, "bytes")) for column in columns]
    return [Problem(ERROR, "column", column, reason) for column, reason in problems if reason]
