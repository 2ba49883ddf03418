"""Milliseconds of one pair from file to file, as predict.py does it, by part; the sentence was encoded before."""
import os
import statistics

from bench_data import HEIGHT, WIDTH, make_pairs
from bench_infer import Way
from measure import timed

from bert import Tokenizer
from bert.tiny import write_tiny_bert
from data.pictures import read_pair
from evaluation.predictions import write_prediction
from predictor import Predictor

SENTENCE = "the red car"


def from_file_to_file(bench) -> None:
    """The rows in bfloat16 and in float32."""
    bert = os.path.join(bench.scratch, "predictor-bert")
    write_tiny_bert(bert, [SENTENCE], hidden=16, layers=1, heads=1)
    files = [os.path.join(bench.scratch, name) for name in ("visible.jpg", "infrared.jpg")]
    for path, content in zip(files, make_pairs(1, 90, "L")[0], strict=False):
        with open(path, "wb") as file:
            file.write(content)
    for row, way in (("a pair from file to file, bf16", "amp"), ("a pair from file to file, float32", "default")):
        bench.row(row, lambda way=way: _by_part(bench, way, Tokenizer(bert), files))


def _by_part(bench, way: str, tokenizer: Tokenizer, files: list[str]) -> dict:
    caller = Way(way, bench.args(1), bench.device, bench.model()).caller
    predictor = Predictor(caller, tokenizer, bench.side, bench.device)
    parts: dict[str, list[float]] = {"decode": [], "encode the pair": [], "answer": [], "save": []}
    found: dict = {}

    def decode():
        found["pictures"] = [picture.pixels for picture in read_pair(*files)]

    def encode():
        found["pair"] = predictor.encode_pair(*found["pictures"])

    def answer():
        found["prediction"] = predictor.predict(found["pair"], SENTENCE)

    def save():
        stem = os.path.join(bench.scratch, "prediction")
        write_prediction(found["pair"], SENTENCE, found["prediction"], stem)

    for number in range(-2, 2 * bench.rounds):
        for (_, seconds), function in zip(parts.items(), (decode, encode, answer, save), strict=True):
            took = timed(function, bench.device)()
            if number >= 0:
                seconds.append(took)
    medians = {f"{name}, ms": 1e3 * statistics.median(seconds) for name, seconds in parts.items()}
    return {"stored": f"{WIDTH}×{HEIGHT}", "px": bench.side, **medians, "together, ms": sum(medians.values())}
