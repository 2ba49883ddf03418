"""Command lines of all scripts, and our own results read again."""
import functools
import json
import random
import re
from itertools import pairwise
from pathlib import Path

from checks import ROOT
from material import material, read_files, write_files
from mutations import ODD_NUMBERS, ODD_TEXTS, edited, mutate
from rows import make_row
from sandbox import Unmakeable, command
from sets import table_seeds

from utils.sizes import LARGEST_SIDE

SIZES = ("--img_size", "--prefusion_base_ch", "--size")


def result_seeds() -> list[dict]:
    metrics = {"mIoU": 50.0, "oIoU": 47.5, "num_samples": 2, "precision@0.5": 50.0, "settings": {"img_size": 33},
               "fusion_metrics": {"fused": {"EN": 6.5}}}
    samples = ("index,image_name,question,iou,intersection,union\n100,0.png,a man,0.750000,30,40\n"
               "101,1.png,a car,0.250000,10,40\n")
    log = [{"epoch": epoch, "total": 1.5 - epoch / 4, "seg": 0.5, "fusion": 0.3, "mIoU": 3.5, "oIoU": 2.5,
            "precision@0.5": 1.0} for epoch in range(3)]
    return [{"metrics.json": metrics, "per_sample.csv": samples}, {"log.jsonl": "\n".join(map(json.dumps, log))}]


def mutate_results(rng: random.Random, files):
    if "log.jsonl" in files and isinstance(files["log.jsonl"], str) and rng.random() < 0.6:
        lines = files["log.jsonl"].splitlines()
        try:
            at = rng.randrange(len(lines))
            lines[at] = json.dumps(mutate(rng, json.loads(lines[at])))
            return {**files, "log.jsonl": "\n".join(lines)}
        except (ValueError, TypeError, RecursionError):
            pass
    if not files or rng.random() < 0.02:
        return {}
    name = rng.choice(list(files))
    return {**files, name: mutate(rng, files[name])}


def prepare_results(files, folder: Path):
    if "log.jsonl" in files:
        run = str(write_files(folder / "in/run", files))
        return [command("utils/plot_log.py", run, run, "--out", str(folder / "out/x.png"))]
    one, other = (str(write_files(folder / "in" / name, what)) for name, what in (
        ("one", files), ("other", result_seeds()[0])))
    return [command("compare.py", one, other), command("compare.py", other, one)]


def command_seeds() -> list[list[str]]:
    device = ["--device", "cpu"]
    return [
        ["data/synthetic.py", "--out", "OUT/s", "--train", "2", "--val", "1", "--test", "1", "--size", "48",
         "--seed", "3"],
        ["data/build_parquet.py", "IN/t.json", "--out", "OUT/x.parquet", "--visible", "IN/visible", "--infrared",
         "IN/infrared", "--masks", "IN/masks", "--seed", "1"],
        ["data/build_parquet.py", "IN/t.json", "--out", "OUT/s", "--split", "0.5,0.5", "--overwrite"],
        ["data/check_parquet.py", "IN/data.parquet", "--out_dir", "OUT/c", "--samples", "2", "-j", "0", "--strict"],
        ["data/merge_parquet.py", "IN/data.parquet", "IN/data.parquet", "--out", "OUT/x.parquet"],
        ["data/merge_parquet.py", "IN/data.parquet", "--out", "OUT/s", "--split", "0.6,0.2,0.2", "--seed", "2"],
        ["data/add_fused.py", "IN/data.parquet", "--fused", "IN/visible", "--out", "OUT/x.parquet"],
        ["compare.py", "IN/run", "IN/run/metrics.json", "--seed", "1"],
        ["utils/plot_log.py", "IN/run", "IN/run", "--out", "OUT/x.png"],
        ["predict.py", "--ckpt", "IN/model.pth", "--visible", "IN/visible", "--infrared", "IN/infrared", "--text",
         "a man", "--text", "a man", "--out", "OUT/p", "--img_size", "33", "--mha", "1-1-1-1", "--tta", "flip",
         *device],
        ["test.py", "--ckpt", "IN/model.pth", "--test_parquet", "IN/data.parquet", "--out_dir", "OUT/t", "-b", "2",
         "-j", "0", "--limit", "2", "--iou_thresholds", "0.5,0.9", "--save", "masks", "--seed", "5", *device],
        ["train_with_lavt.py", "--train_parquet", "IN/data.parquet", "--val_parquet", "IN/data.parquet",
         "--bert_tokenizer", "IN/bert", "--ck_bert", "IN/bert", "--pretrained_swin_weights", "", "--init_from_lavt_one",
         "", "--swin_type", "micro", "--prefusion_base_ch", "2", "--img_size", "33", "-b", "4", "-j", "0", "--epochs",
         "1", "--eval_vis_dir", "", "--output-dir", "OUT/r", "--model_id", "x", "--lr_seg", "1e-3", "--seed", "1",
         *device],
    ]


def mutate_command(rng: random.Random, words: list) -> list:
    flags = [place for place, word in enumerate(words) if place and isinstance(word, str) and word.startswith("-")]
    if flags and rng.random() < 0.6:  # the value of a flag
        place = rng.choice(flags) + 1
        if place < len(words):
            return [*words[:place], edited(words[place], rng), *words[place + 1:]]
    if rng.random() < 0.5:  # another flag
        value = str(rng.choice((*ODD_NUMBERS, *ODD_TEXTS, "1", "2", "0.5", "IN", "IN/model.pth", "OUT")))
        return [*words, rng.choice(flags_of(str(words[0]))), *([value] if rng.random() < 0.7 else [])]
    return [words[0], *edited(words[1:], rng)]


@functools.cache
def flags_of(script: str) -> list[str]:
    """The flags in the source of a script, and those that several scripts share."""
    source = "".join((ROOT / name).read_text("utf-8") for name in (script, "utils/flags.py"))
    return sorted({"--help", "--", "--x", "-b", "-j", *re.findall(r'"(--[\w-]+)"', source)})


def prepare_command(words: list, folder: Path):
    if not all(isinstance(word, str) and "\0" not in word and "\ud800" not in word for word in words):
        raise Unmakeable  # no system passes them to a program
    if any(flag in SIZES and re.fullmatch("[0-9]{1,5}", value) and 200 < int(value) <= LARGEST_SIDE
           for flag, value in pairwise(words)):
        raise Unmakeable  # a network that large may take more memory than is allowed here
    write_files(folder / "in", read_files(material(), "data.parquet", "model.pth")
                | {"t.json": table_seeds()[1]["t.json"]})
    for name in ("visible", "infrared"):
        write_files(folder / "in" / name, {f"{i}.png": make_row(i)[f"{name}_image"] for i in range(2)})
    write_files(folder / "in/masks", {"0.npy": make_row(0)["segmentation"]})
    write_files(folder / "in/run", result_seeds()[0] | result_seeds()[1])
    write_files(folder / "in/bert", read_files(material() / "bert"))
    places = {"IN": str(folder / "in"), "OUT": str(folder / "out")}
    words = [words[0], *(word if word.split("/")[0] not in places else
                         places[word.split("/")[0]] + word[len(word.split("/")[0]):] for word in words[1:])]
    return [command(*words)]
