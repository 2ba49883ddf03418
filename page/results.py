"""What the page shows and hands out of an answer: pictures to look at, words, and a ZIP file."""
import html
import json
import os
import shutil
import tempfile
import zipfile
from typing import NamedTuple

import numpy as np

from evaluation.predictions import describe, names_of_sentences, record, write_prediction
from evaluation.results import encode_png
from predictor import Prediction
from utils.draw import heat_map, outlined, resize
from utils.files import file_stem, replacing

from .answers import Answered

LONGEST_SIDE = 1600  # pixels of a picture on the page; the ZIP file has all of them


class Views(NamedTuple):
    """Pictures for the page, (h, w, 3) or (h, w) uint8, all of one size: at most LONGEST_SIDE."""

    visible: np.ndarray
    fused: np.ndarray
    outlined: np.ndarray
    mask: np.ndarray
    probability: np.ndarray


def at_threshold(prediction: Prediction, threshold: float) -> Prediction:
    """The prediction with the mask of what has a probability above `threshold`; 0.5 gives that of the predictor."""
    return prediction._replace(mask=prediction.probability > threshold)


def draw_views(answered: Answered, number: int, threshold: float) -> Views:
    """The pictures of the answer to sentence `number`, counted from 0."""
    prediction = at_threshold(answered.answers[number].prediction, threshold)
    height, width = prediction.mask.shape
    scale = min(1.0, LONGEST_SIDE / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    visible, fused, mask, probability = (picture if size == (width, height) else resize(picture, size) for picture in (
        answered.pair.visible, prediction.fused, prediction.mask, prediction.probability))
    return Views(visible, fused, outlined(fused, mask), mask.astype(np.uint8) * 255, heat_map(probability))


def describe_all(answered: Answered, number: int, threshold: float) -> str:
    """HTML: what was found for each sentence with its time, more of number `number`, and all notes."""
    lines = []
    for index, answer in enumerate(answered.answers):
        found, *details = describe(at_threshold(answer.prediction, threshold).mask).split("\n")
        lines.append(f"<li><b>{html.escape(answer.text)}</b>: {html.escape(found)} "
                     f"<span class='time'>{seconds(answer.seconds)}</span>")
        if index == number and details:
            lines.append("<ul>" + "".join(f"<li>{html.escape(line.strip())}</li>" for line in details) + "</ul>")
        lines.append("</li>")
    height, width = answered.pair.visible.shape[:2]
    pair = ("Pair reused: its images had been encoded for an earlier sentence" if answered.reused else
            "Pair read and encoded")
    shown = f"; shown here with at most {LONGEST_SIDE} px" if max(height, width) > LONGEST_SIDE else ""
    notes = [*answered.notes, *(note for answer in answered.answers for note in answer.notes)]
    return (f"<ul class='found'>{''.join(lines)}</ul>"
            f"<p class='pair'>{pair} ({seconds(answered.seconds)}). {width}×{height} px{shown}.</p>"
            + "".join(f"<p class='note'>Note: {html.escape(note)}</p>" for note in notes))


def seconds(value: float) -> str:
    """A duration in seconds, in words."""
    return f"{value:.2f} s" if value < 10 else f"{value:.0f} s"


def results_folder(folder: str, key: str) -> str:
    """The folder for the files of the answers with a key of `SharedPredictor.ask`."""
    return os.path.join(folder, "results", key)


def remove_results(folder: str, key: str) -> None:
    """Remove the files of answers that are no longer kept."""
    shutil.rmtree(results_folder(folder, key), ignore_errors=True)


def write_zip(answered: Answered, threshold: float, folder: str, checkpoint: str) -> str:
    """Write all pictures and a `predictions.json`, as predict.py does, to a ZIP file; return its path.

    Args:
        folder: made if absent; earlier files of that name are replaced.
        checkpoint: what `predictions.json` names.
    Raises:
        InputError: it cannot be written.
    """
    os.makedirs(folder, exist_ok=True)
    path = os.path.join(folder, f"{file_stem(answered.files.name)}.zip")
    records = []
    names = names_of_sentences([answer.text for answer in answered.answers])
    with tempfile.TemporaryDirectory(dir=folder) as work:
        for stem, answer in zip(names, answered.answers, strict=True):
            prediction = at_threshold(answer.prediction, threshold)
            start = os.path.join(work, file_stem(f"{answered.files.name}-{stem}"))
            paths = write_prediction(answered.pair, answer.text, prediction, start)
            paths["probability"] = f"{start}-probability.png"
            with open(paths["probability"], "wb") as file:
                file.write(encode_png(heat_map(prediction.probability)))
            records.append(record(answered.files, answer.text, prediction, paths))
        with open(os.path.join(work, "predictions.json"), "w", encoding="utf-8") as file:
            json.dump({"ckpt": checkpoint, "threshold": threshold, "predictions": records}, file, indent=2)
        with replacing(path, durable=False) as temporary, zipfile.ZipFile(temporary, "w") as archive:
            for name in sorted(os.listdir(work)):  # stored, as PNG is compressed already
                archive.write(os.path.join(work, name), name)
    return path
