"""The fusion metrics of folders of pictures that any methods have fused, against folders of their sources."""
import logging
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pandas as pd
from PIL import Image
from torch.utils.data import Dataset

from data.decode import to_lumas
from data.fused_pictures import match_pairs
from data.loaders import BatchLoader
from data.pictures import PairOfFiles, pair_files, read_pair, read_picture
from utils.errors import InputError
from utils.files import replacing
from utils.progress import progress_bar
from utils.spreadsheet import as_cell
from utils.text import counted, first_line, printable
from utils.workers import leave_signals_to_the_parent

from .bootstrap import RESAMPLES, intervals
from .fusion_metrics import NAMES, fusion_metrics
from .ratios import share_of_defined

SHOWN = 20  # names in a message

logger = logging.getLogger(__name__)


class Scene(NamedTuple):
    """A pair of images and what each method has made of it."""

    pair: PairOfFiles
    fused: list[str]  # path of each method's picture


class Measured(NamedTuple):
    """What measuring a scene gives."""

    values: np.ndarray | None  # (methods, 10) float64, the metrics in the order of NAMES; None if one cannot be used
    error: str        # the sentence that says why
    notes: list[str]  # how pictures of more than 8 bits were scaled


def find_scenes(methods: dict[str, str], visible: str, infrared: str) -> list[Scene]:
    """The pairs of images of which every method has a picture; what is left out is logged.

    Args:
        methods: folder of the fused pictures by the method's name.
        visible, infrared: folders, see `data.pictures.pair_files`.
    Raises:
        UsageError, InputError: a folder is absent, or names cannot be matched.
    """
    pairs, unpaired = pair_files(visible, infrared)
    _report("no partner for %s of the sources, left out: %s", unpaired)
    found = {}
    for name, folder in methods.items():
        found[name], alone = match_pairs(folder, pairs)
        missing = [pair.name for pair, path in zip(pairs, found[name], strict=True) if path is None]
        if len(missing) == len(pairs):
            raise InputError(f"{printable(folder)}: none of its pictures has the name of one of the "
                             f"{counted(len(pairs), 'pair')}, such as {printable(pairs[0].name)}, suffixes aside"
                             + (f"; there is {printable(min(alone))}" if alone else ""))
        _report(f"{printable(name)} has no picture of %s of the {counted(len(pairs), 'pair')}, left out: %s", missing)
        _report(f"no pair of sources for %s of the pictures of {printable(name)}, left out: %s", alone)
    scenes = [Scene(pair, list(paths)) for pair, *paths in zip(pairs, *found.values(), strict=True) if all(paths)]
    if not scenes:
        raise InputError(f"there is no pair of sources of which all of {', '.join(map(printable, methods))} have a "
                         "picture")
    return scenes


def _report(message: str, names: list[str]) -> None:
    """Warn of names that are left out, if there are some; the message has places for their number and for them."""
    if names:
        listed = ", ".join(map(printable, names[:SHOWN])) + (" …" if len(names) > SHOWN else "")
        logger.warning(f"WARNING: {message}", len(names), listed)


class Scenes(Dataset):
    """Scenes as worker processes measure them: `Scenes(…)[i]` is the `Measured` of scene i."""

    def __init__(self, scenes: list[Scene]):
        self.scenes = scenes

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, i: int) -> Measured:
        notes: list[str] = []
        try:
            return Measured(measure(self.scenes[i], notes), "", notes)
        except InputError as error:
            return Measured(None, str(error), notes)
        except Exception as error:  # decoders raise many kinds; the other scenes can still be measured
            return Measured(None, f"{printable(self.scenes[i].pair.visible)} and its partners cannot be used "
                                  f"({type(error).__name__}: {printable(first_line(error))})", notes)


def measure(scene: Scene, notes: list[str]) -> np.ndarray:
    """The metrics of a scene, (methods, 10) float64, on 8-bit luma at the visible image's size.

    An infrared image of another size is resized to it.

    Args:
        notes: how a picture of more than 8 bits was scaled is appended.
    Raises:
        InputError: a picture cannot be read, or a fused one has another size.
    """
    visible, infrared = read_pair(scene.pair.visible, scene.pair.infrared)
    pictures = [read_picture(path) for path in scene.fused]
    for path, picture in zip([*scene.pair[1:], *scene.fused], [visible, infrared, *pictures], strict=True):
        if picture.note:
            notes.append(f"{printable(path)}: {picture.note}")
    sources = to_lumas(visible.pixels, infrared.pixels)
    values = []
    for path, picture in zip(scene.fused, pictures, strict=True):
        fused = np.asarray(Image.fromarray(picture.pixels).convert("L"))
        if fused.shape != sources[0].shape:
            (height, width), (of_height, of_width) = fused.shape, sources[0].shape
            raise InputError(f"{printable(path)} is of {width}×{height} px, but {printable(scene.pair.visible)} of "
                             f"{of_width}×{of_height} px; the metrics compare pixel by pixel, so make them alike")
        measured = fusion_metrics(fused, *sources)
        values.append([measured[name] for name in NAMES])
    return np.array(values)


def measure_all(scenes: list[Scene], workers: int) -> Iterator[Measured]:
    """Measure scenes in their order, with a progress bar.

    Args:
        workers: processes; 0: this one alone.
    """
    loader = BatchLoader(Scenes(scenes), batch_size=None, num_workers=min(workers, len(scenes)), collate_fn=_as_it_is,
                         worker_init_fn=leave_signals_to_the_parent)
    return progress_bar(loader, desc="measure", unit="image", total=len(scenes))


def _as_it_is(measured: Measured) -> Measured:
    return measured


def write_values(path: str, methods: list[str], scenes: list[Scene], values: np.ndarray) -> None:
    """Write `method,image,EN,…`, a line for each method and image; what is not defined is an empty cell.

    Args:
        values: (scenes, methods, 10) float64.
    Raises:
        InputError: the file cannot be written.
    """
    lines = [{"method": as_cell(method), "image": as_cell(scene.pair.name), **dict(zip(NAMES, row, strict=True))}
             for number, method in enumerate(methods) for scene, row in zip(scenes, values[:, number], strict=True)]
    with replacing(path) as temporary:
        pd.DataFrame(lines).to_csv(temporary, index=False, float_format="%.6f", encoding="utf-8", errors="replace")


def table(methods: list[str], values: np.ndarray, seed: int) -> str:
    """Aligned lines for the terminal: a line for each metric, a column for each method; means and 95% intervals.

    Args:
        values: (N, methods, 10) float64, NaN where a metric is not defined, which its mean leaves out.
        seed: of the bootstrap.
    """
    several = len(values) > 1
    cells = [[printable(method, 40) for method in methods]]
    columns = []
    for number in range(len(methods)):
        ratios = {name: share_of_defined(values[:, number, i]) for i, name in enumerate(NAMES)}
        ends = intervals(ratios, np.arange(len(values)), seed)
        columns.append([_cell(above.sum() / below.sum(), ends[name] if several else None) if below.any() else "-"
                        for name, (above, below) in ratios.items()])
    cells += [list(line) for line in zip(*columns, strict=True)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["".join([f"{name:<6}", *(f"  {cell:<{width}}" for cell, width in zip(line, widths, strict=True))]).rstrip()
             for name, line in zip(["", *NAMES], cells, strict=True)]
    if several:
        lines.append(f"in brackets: 95% intervals, {RESAMPLES} bootstrap resamples of {counted(len(values), 'image')}")
    return "\n".join(lines)


def _cell(mean: float, ends: tuple[float, float] | None) -> str:
    return f"{mean:.3f}" + (f" [{ends[0]:.3f}, {ends[1]:.3f}]" if ends else "")
