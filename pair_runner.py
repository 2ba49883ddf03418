"""What predict.py does with pairs of pictures and films, from a checkpoint to the files that it writes.

`args` is the complete and checked command line of `predict.py` throughout.
"""
import contextlib
import functools
import logging
import os
import re
from argparse import Namespace
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from tqdm.contrib.logging import logging_redirect_tqdm

from data.films import open_film
from data.homography import read_matrix, warp
from data.pictures import PairOfFiles, pair_files, read_pair
from data.prepare.pair_tables import Request, read_requests
from evaluation.films import make_film
from evaluation.inference import open_checkpoint
from evaluation.predictions import describe, names_of_sentences, record, write_prediction
from evaluation.results import write_json
from predictor import Pair, Predictor
from utils import distributed
from utils.device import select_device
from utils.errors import InputError, naming
from utils.files import file_stem, set_aside, unique_names
from utils.flags import PICTURE_KINDS, checkpoint_flags, make_folder
from utils.progress import progress_bar
from utils.text import counted, first_line, listed, printable

RECORDS = "predictions.json"
WAIT = 24 * 60  # minutes until a process of several gives up the others, whose pairs may be larger

logger = logging.getLogger(__name__)
pair_logger = logging.getLogger(f"{__name__}.pairs")  # about single pairs, which each process of several prints


def run_job(args: Namespace) -> None:
    """Make a film, or process the pairs, as this process of one or several.

    Raises:
        UsageError, InputError: what cannot be done, in one sentence.
    """
    device = select_device(args.device, distributed.local_rank())
    with distributed.job(device, WAIT), logging_redirect_tqdm():
        (make_one_film if args.film else predict_pairs)(args, device)


def make_one_film(args: Namespace, device: torch.device) -> None:
    """Make a film of two.

    Raises:
        UsageError, InputError: what cannot be done, in one sentence.
    """
    matrix = open_matrix(args)
    films = []
    for flag in ("visible", "infrared"):
        with naming(flag):
            films.append(open_film(getattr(args, flag), args.seconds or (0, float("inf")), args.fps, args.max_pixels))
    make_folder(os.path.dirname(args.out) or ".", "--out")
    predictor = open_predictor(args, device)
    make_film(predictor, (films[0], films[1]), args.text[0], args.out, show=args.show, every=args.every, matrix=matrix)


def predict_pairs(args: Namespace, device: torch.device) -> None:
    """Process this process's share of the pairs; the main process writes what all have found to `predictions.json`.

    Raises:
        UsageError, InputError: what cannot be done, in one sentence; the other pairs are processed before.
    """
    matrix = open_matrix(args)
    requests = find_requests(args)
    make_folder(args.out, "--out")
    predictor = open_predictor(args, device)

    names = result_names(requests)
    earlier = (f"({'|'.join(re.escape(name) for row in names for name in row)})-({'|'.join(PICTURE_KINDS)})\\.(png|jpg)"
               f"|{re.escape(RECORDS)}")
    make_room = functools.cache(lambda: set_aside(args.out, earlier))  # once, and only when there are new pictures
    rank, several = distributed.rank(), distributed.world_size() > 1
    if several:
        if rank == 0:
            make_room()
        distributed.wait_for_all()  # no process writes before the results of an earlier run are moved
        for name in (pair_logger.name, Predictor.__module__):
            logging.getLogger(name).setLevel(logging.INFO)
    runner = PairRunner(predictor, args, matrix, (lambda: None) if several else make_room,
                        must_succeed=len(requests) == 1 and not several)
    mine = range(rank, len(requests), distributed.world_size())
    bar = progress_bar(mine, unit="pair", disable=len(requests) == 1 or rank > 0)
    records, failed = runner.records, list(runner.failed)
    try:
        runner.run((number, requests[number], names[number]) for number in bar)
        failed = distributed.joined(sorted(runner.failed))
        records = dict(distributed.joined(list(records.items())))
    finally:  # what was found before an interruption is kept, too
        found = [entry for number in sorted(records) for entry in records[number]]
        if rank == 0 and found:
            path = os.path.join(args.out, RECORDS)
            write_json(path, {"ckpt": args.ckpt, "predictions": found})
            logger.info("%s: %s", path, counted(len(found), "prediction"))
    distributed.wait_for_all()
    if failed and rank == 0:
        raise InputError(f"{len(failed)} of {len(requests)} pairs could not be used; the reasons are above")


def find_requests(args: Namespace) -> list[Request]:
    """The pairs of files, each with its sentences.

    Raises:
        UsageError, InputError: there is none; says why.
    """
    if args.table is not None:
        return read_requests(args.table)
    pairs, unpaired = pair_files(args.visible, args.infrared, left_out=args.out)
    if unpaired:
        logger.warning("no partner for %d of the images, which are left out: %s", len(unpaired), listed(unpaired))
    return [Request(files, args.text, [files.name] * len(args.text)) for files in pairs]


def result_names(requests: list[Request]) -> list[list[str]]:
    """For each request a file name for each sentence, without kind and suffix: `FLIR_00018-the_red_car`; all differ."""
    stems = []
    for request in requests:
        words = names_of_sentences(request.texts)
        stems.append([file_stem(f"{name}-{word}") for name, word in zip(request.names, words, strict=True)])
    flat = [stem for row in stems for stem in row]
    names = iter(unique_names(flat, list(range(1, len(flat) + 1))))
    return [[next(names) for _ in row] for row in stems]


def open_matrix(args: Namespace) -> np.ndarray | None:
    """The matrix of `--align`, (3, 3) float64, if there is one.

    Raises:
        InputError: the file holds no such matrix.
    """
    with naming("align"):
        return None if args.align is None else read_matrix(args.align)


def open_predictor(args: Namespace, device: torch.device) -> Predictor:
    """The `Predictor` for the flags."""
    with naming("ckpt"):
        opened = open_checkpoint(args.ckpt, device, flip=args.tta == "flip", amp=args.amp, keep_memory=True,
                                 must_fuse=True, **checkpoint_flags(args))
    return Predictor(opened.model, opened.tokenizer, opened.img_size, device, fuse_size=args.fuse_size,
                     tile=args.tile, show_progress=True)


class PairRunner:
    """Predicts for one pair after the other, and writes the pictures while the next prediction is computed.

    Attributes:
        records: by the number of a pair, its entries of `predictions.json`.
        failed: numbers of the pairs that could not be used.

    Args:
        matrix: (3, 3), by which infrared images are warped; None: they are not.
        make_room: called before pictures are written.
        must_succeed: raise what goes wrong with a pair, instead of going on with the next one.
    """

    def __init__(self, predictor: Predictor, args: Namespace, matrix: np.ndarray | None, make_room: Callable[[], None],
                 must_succeed: bool):
        self.records: dict[int, list[dict[str, Any]]] = {}
        self.failed: set[int] = set()
        self._predictor = predictor
        self._args = args
        self._matrix = matrix
        self._make_room = make_room
        self._must_succeed = must_succeed
        self._pool = ThreadPoolExecutor(1)
        self._saving: tuple[int, Request, Future] | None = None

    def run(self, pairs: Iterable[tuple[int, Request, list[str]]]) -> None:
        """Process pairs, given as their number, the request, and names of the pictures, one for each sentence.

        Raises:
            InputError: whatever goes wrong with a pair that must succeed, in one sentence.
        """
        with self._pool:
            try:
                for number, request, stems in pairs:
                    self.records[number] = []
                    with self._failure_of(number, request):
                        self._predict(number, request, stems)
            finally:
                self._finish_saving()

    def _predict(self, number: int, request: Request, stems: list[str]) -> None:
        pair = self._predictor.encode_pair(*self._read(request))
        for stem, text, name in zip(stems, request.texts, request.names, strict=True):
            prediction = self._predictor.predict(pair, text)
            self._finish_saving()
            self._make_room()
            files = request.files._replace(name=name)
            self._saving = number, request, self._pool.submit(self._save, files, pair, text, prediction, stem)

    def _read(self, request: Request) -> tuple[np.ndarray, np.ndarray]:
        """The two pictures, (h, w, 3) uint8 each."""
        files = request.files
        pictures = read_pair(files.visible, files.infrared, self._args.max_pixels)
        for path, picture in zip((files.visible, files.infrared), pictures, strict=True):
            if picture.note:
                pair_logger.info("%s: %s", printable(path), picture.note)
        visible, infrared = (picture.pixels for picture in pictures)
        if self._matrix is not None:
            infrared, covered = warp(infrared, self._matrix, visible)
            if covered < 1:
                pair_logger.info("%s: warped; the %.1f %% of the picture that it does not cover are filled with the "
                                 "visible image's luma", printable(files.infrared), 100 * (1 - covered))
        return visible, infrared

    def _save(self, files: PairOfFiles, pair: Pair, text: str, prediction, stem: str) -> tuple[dict[str, Any], str]:
        """Write the pictures; what was found, as an entry of `predictions.json` and in words."""
        path = os.path.join(self._args.out, stem)
        paths = write_prediction(pair, text, prediction, path, self._args.save, self._args.format)
        return (record(files, text, prediction, paths),
                "\n".join([describe(prediction.mask), *(f"  {path}" for path in paths.values())]))

    def _finish_saving(self) -> None:
        """Wait for the pictures of the last prediction, and say what was found."""
        if self._saving is None:
            return
        number, request, saved = self._saving
        self._saving = None
        with self._failure_of(number, request):
            entry, words = saved.result()
            self.records[number].append(entry)
            pair_logger.info("%s, '%s': %s", printable(entry["name"]), printable(entry["text"]), words)

    @contextlib.contextmanager
    def _failure_of(self, number: int, request: Request):
        """A context for work on one pair: its errors are said in one sentence, and the next pair follows."""
        try:
            yield
        except InputError as error:
            self._fail(number, error)
        except Exception as error:  # decoders, NumPy and PyTorch raise many kinds; other pairs can still be processed
            files = request.files
            self._fail(number, InputError(f"{printable(files.visible)} and {printable(files.infrared)} cannot be used "
                                          f"({type(error).__name__}: {printable(first_line(error))})"))

    def _fail(self, number: int, error: InputError) -> None:
        if self._must_succeed:
            raise error
        pair_logger.error("error: %s", error)
        self.failed.add(number)
