"""Whether reading data keeps up with training."""
import os
import sys
import time

import pyarrow as pa
import pyarrow.parquet as pq

from bert import Tokenizer
from data import MMRISDataset, synthetic, training_loader
from data.parquet_rows import ROWS_PER_GROUP

BATCH, SCENES, STEPS, VALIDATION_ROWS = 16, 100, 100, 16
TINY_BATCH, TINY_SCENES, TINY_STEPS = 2, 8, 8
FIRST = 10  # steps that are not counted: the worker processes start, cuDNN chooses
MOST_WORKERS = 16


class Enough(Exception):
    """The training run is as long as it should be."""


class TimedLoader:
    """A loader that notes when each batch is asked for and how long the caller waits for it, in seconds."""

    def __init__(self, loader):
        self.loader, self.dataset, self.collate_fn = loader, loader.dataset, loader.collate_fn
        self.asked: list[float] = []
        self.waited: list[float] = []

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self):
        batches = iter(self.loader)
        while True:
            self.asked.append(time.perf_counter())
            batch = next(batches, None)
            self.waited.append(time.perf_counter() - self.asked[-1])
            if batch is None:
                return
            yield batch


def batch_of(bench) -> int:
    """Samples in a batch."""
    return TINY_BATCH if bench.tiny else BATCH


def synthetic_files(bench) -> str:
    """The folder with a training file for so many steps, whose scenes repeat, made if it is not there."""
    folder = os.path.join(bench.scratch, "synthetic")
    scenes, steps = (TINY_SCENES, TINY_STEPS) if bench.tiny else (SCENES, STEPS)
    path = os.path.join(folder, "train.parquet")
    if not os.path.exists(path):
        size = max(bench.side, 48)
        synthetic.main(["--out", folder, "--train", str(scenes), "--val", str(2 if bench.tiny else VALIDATION_ROWS),
                        "--test", "1", "--size", str(size), "--overwrite"])
        rows = pq.read_table(os.path.join(folder, "mm_ris_train.parquet"))
        count = steps * batch_of(bench)
        repeated = pa.concat_tables([rows] * -(-count // scenes)).slice(0, count)
        column = repeated.schema.get_field_index("index")
        numbers = pa.array(range(count), repeated.schema.field(column).type)
        pq.write_table(repeated.set_column(column, "index", numbers), path, row_group_size=ROWS_PER_GROUP)
    return folder


def reading(bench) -> None:
    """Samples a second that worker processes read, while nothing else is done."""
    folder = synthetic_files(bench)
    for row in bench.wanted:
        workers = int(row.split()[-1])
        bench.row(row, lambda workers=workers: _reading(bench, folder, workers))


def _reading(bench, folder: str, workers: int) -> dict:
    dataset = MMRISDataset(os.path.join(folder, "train.parquet"), Tokenizer(os.path.join(folder, "bert")), bench.side)
    pin = bench.device.type == "cuda"
    loader = TimedLoader(training_loader(dataset, batch_of(bench), workers=workers, pin_memory=pin))
    batches = 0
    for _ in loader:
        batches += 1
    skipped = min(FIRST, batches // 2)
    seconds = loader.asked[batches] - loader.asked[skipped]
    rate = (batches - skipped) * batch_of(bench) / seconds
    used = max((figures["samples/s"] for figures in bench.earlier.get("training", {}).values()
                if "samples/s" in figures), default=None)
    return {"px": bench.side, "batch": batch_of(bench), "cores": os.cpu_count(), "samples/s": rate,
            "times what the fastest training row uses": rate / used if used else "not measured"}


def training_run(bench) -> None:
    """The row of a real run."""
    bench.row("train_with_lavt.py", lambda: _training_run(bench))


def command_line(bench, folder: str) -> list[str]:
    """A training run as it would be started; random weights, the published sizes or those of make demo."""
    bert = os.path.join(folder, "bert")
    networks = (["--swin_type", "micro", "--prefusion_base_ch", "8", "--ck_bert", bert] if bench.tiny
                else ["--swin_type", "base", "--window12", "--ck_bert", ""])
    workers = 1 if bench.tiny else min(MOST_WORKERS, os.cpu_count() or 1)
    return ["train_with_lavt.py", "--train_parquet", os.path.join(folder, "train.parquet"),
            "--val_parquet", os.path.join(folder, "mm_ris_val.parquet"), "--bert_tokenizer", bert, *networks,
            "--pretrained_swin_weights", "", "--init_from_lavt_one", "", "--img_size", str(bench.side),
            "-b", str(batch_of(bench)), "-j", str(workers), "--epochs", "1", "--print-freq", "20", "--pin_mem",
            *(["--amp", "--channels-last"] if bench.amp() else []), "--device", str(bench.device),
            "--eval_vis_dir", "", "--output-dir", os.path.join(bench.scratch, "run")]


def _training_run(bench) -> dict:
    """One epoch by the script's own code; what comes after its last step is left out."""
    import train_with_lavt
    import trainer

    words, train_one_epoch, found = command_line(bench, synthetic_files(bench)), trainer.train_one_epoch, {}

    def timed_epoch(model, criterion, loader, *rest, **options):
        found["loader"] = TimedLoader(loader)
        train_one_epoch(model, criterion, found["loader"], *rest, **options)
        found["end"] = time.perf_counter()
        raise Enough

    before, sys.argv = sys.argv, words
    trainer.train_one_epoch = timed_epoch
    try:
        trainer.run_job(train_with_lavt.parse_args())
    except Enough:
        pass
    finally:
        sys.argv, trainer.train_one_epoch = before, train_one_epoch
    loader = found["loader"]
    steps = len(loader)
    skipped = min(FIRST, steps // 2)
    seconds, waited = found["end"] - loader.asked[skipped], sum(loader.waited[skipped:steps])
    return {"px": bench.side, "batch": batch_of(bench), "workers": words[words.index("-j") + 1],
            "flags": " ".join(flag for flag in ("--amp", "--channels-last", "--pin_mem") if flag in words),
            "steps": steps - skipped, "ms a step": 1e3 * seconds / (steps - skipped),
            "samples/s": (steps - skipped) * batch_of(bench) / seconds, "share of waiting for data": waited / seconds}
