"""How fast samples are decoded, beside the straightforward way, and how much memory reading a large file takes.

    python benchmarks/bench_data.py [--gigabytes 5] [--folder DIR] [--out FILE.json]

Linux only: memory is read from /proc. The synthetic file is written to a temporary folder and deleted afterwards.
"""
import argparse
import io
import json
import multiprocessing
import os
import platform
import subprocess
import sys
import tempfile
import time
import warnings

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))  # when run as a script

from utils.errors import UsageError, run
from utils.flags import ArgumentParser, at_least

WIDTH, HEIGHT, SIDE, BATCH = 640, 480, 480, 16
PAIRS = 32
WORKERS = (0, 2, 8)
OPENED_ROWS = 12_500
WORDS = ("the", "a", "man", "woman", "car", "bus", "dog", "on", "left", "right", "red", "dark", "warm", "near")


def scene(rng, channels: int, quality: int, stored: str):
    """An encoded picture with detail at every scale; 0.15 to 0.17 bytes a pixel at quality 90, as road scenes have."""
    import numpy as np
    from PIL import Image

    picture = np.zeros((HEIGHT, WIDTH, channels))
    for scale in (2, 4, 8, 16, 32, 64, 128):
        shape = (HEIGHT // scale + 2, WIDTH // scale + 2, channels)
        coarse = rng.normal(0, 1.5 * scale**0.65, shape).astype(np.float32)
        layers = [Image.fromarray(coarse[..., c]).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
                  for c in range(channels)]
        picture += np.stack([np.asarray(layer) for layer in layers], axis=2)
    pixels = (128 + picture).clip(0, 255).astype(np.uint8)
    image = Image.fromarray(pixels[..., 0] if channels == 1 else pixels).convert(stored)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def make_pairs(count: int, quality: int, infrared: str) -> list[tuple[bytes, bytes, bytes]]:
    """Visible image, infrared image and mask, encoded; `infrared` is the mode it is stored in, L or RGB."""
    import numpy as np

    pairs = []
    for number in range(count):
        rng = np.random.default_rng(number)
        top, left = rng.integers(0, HEIGHT - 100), rng.integers(0, WIDTH - 100)
        mask = np.zeros((HEIGHT, WIDTH), np.uint8)
        mask[top:top + 80, left:left + 60] = 1
        buffer = io.BytesIO()
        np.save(buffer, mask)
        pairs.append((scene(rng, 3, quality, "RGB"), scene(rng, 1, quality, infrared), buffer.getvalue()))
    return pairs


def straightforward(pair) -> list:
    """Pillow decodes and resizes, torchvision's to_tensor and normalize do the rest."""
    from PIL import Image
    from torchvision.transforms.functional import normalize, to_tensor

    from utils.color import IMAGENET_MEAN, IMAGENET_STD

    images = []
    for content in pair[:2]:
        image = Image.open(io.BytesIO(content)).convert("RGB").resize((SIDE, SIDE), Image.Resampling.BILINEAR)
        images.append(normalize(to_tensor(image), IMAGENET_MEAN, IMAGENET_STD))
    return images


def straightforward_with_mask(pair) -> list:
    import numpy as np
    import torch
    from PIL import Image

    mask = Image.fromarray((np.load(io.BytesIO(pair[2])) > 0).astype(np.uint8))
    target = np.asarray(mask.resize((SIDE, SIDE), Image.Resampling.NEAREST)).astype(np.int64)
    return [*straightforward(pair), torch.from_numpy(target)]


class Ours:
    """What `MMRISDataset` does with the cells of a row; `exact` as there."""

    def __init__(self, exact: bool):
        from data.resize import Resizer

        self.resizer = Resizer(SIDE, exact)
        self.memory = [None, None]

    def images(self, pair) -> list:
        import torch

        from data.decode import decode_pixels

        out = [torch.empty(3, SIDE, SIDE), torch.empty(3, SIDE, SIDE)]
        self.memory = [decode_pixels(content, memory) for content, memory in zip(pair[:2], self.memory, strict=True)]
        self.resizer.pair(*self.memory, *out)
        return out

    def with_mask(self, pair) -> list:
        import torch

        from data.decode import decode_mask

        target = torch.empty(SIDE, SIDE, dtype=torch.int64)
        self.resizer.mask(decode_mask(pair[2]), target)
        return [*self.images(pair), target]


def decoding(quality: int, rounds: int) -> list[dict]:
    """Samples a second of one core, by Pillow alone and by this project (resizing exactly, and fast) in turn."""
    import numpy as np
    import torch

    torch.set_num_threads(1)
    results = []
    for infrared in ("L", "RGB"):
        pairs, exact, fast = make_pairs(PAIRS, quality, infrared), Ours(True), Ours(False)
        kilobytes = [round(float(np.mean([len(pair[i]) for pair in pairs])) / 1e3, 1) for i in (0, 1)]
        for what, ways in (("pair", (straightforward, exact.images, fast.images)),
                           ("pair and mask", (straightforward_with_mask, exact.with_mask, fast.with_mask))):
            plain, *seconds = time_in_turn(pairs, ways, rounds)
            for resizing, ours, taken in zip(("exact", "fast"), (exact, fast), seconds, strict=True):
                difference, masks_exact = compare(pairs, ours)
                results.append({
                    "what": what, "infrared_stored_as": infrared, "resizing": resizing, "kilobytes": kilobytes,
                    "pillow_per_second": 1 / plain.mean(), "ours_per_second": 1 / taken.mean(),
                    "ratio": plain.mean() / taken.mean(),
                    "ratio_of_rounds": np.percentile(plain / taken, (10, 50, 90)).tolist(),
                    "largest_difference_of_255": difference, "masks_exact": masks_exact})
    return results


def compare(pairs: list, ours: Ours) -> tuple[float, bool]:
    """The largest difference of a pixel from Pillow's, from 0 to 255, and whether all masks are the same."""
    import torch

    from utils.color import destandardise

    difference, masks_exact = 0.0, True
    for pair in pairs:
        *plain, plain_mask = straightforward_with_mask(pair)
        *fast, fast_mask = ours.with_mask(pair)
        masks_exact &= torch.equal(plain_mask, fast_mask)
        for one, other in zip(plain, fast, strict=True):
            difference = max(difference, float((destandardise(one) - destandardise(other)).abs().max()) * 255)
    return difference, masks_exact


def time_in_turn(pairs: list, ways, rounds: int):
    """For each way an array with the seconds of CPU time that a sample took in each round."""
    import numpy as np

    seconds = np.zeros((len(ways), rounds))
    for number in range(-1, rounds):  # the first to warm up, overwritten
        for place, way in enumerate(ways):
            start = time.process_time()
            for pair in pairs:
                way(pair)
            seconds[place, number] = (time.process_time() - start) / len(pairs)
    return seconds


def write_file(path: str, gigabytes: float, rows_per_group: int, rows: int | None = None, pictures: bool = True) -> int:
    """Write a file of about that size, some 400 kB a row, uncompressed; or of `rows` rows. Returns the rows.

    Without `pictures` the rows have a few bytes in their place, which opening a file does not look at.
    """
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    from data.columns import SCHEMA

    pairs = make_pairs(PAIRS, 90, "L") if pictures else [(b"visible", b"infrared", b"mask")] * PAIRS
    rng = np.random.default_rng(0)
    rows = rows or int(gigabytes * 1e9 / np.mean([sum(map(len, pair)) for pair in pairs])) + 1
    with pq.ParquetWriter(path, SCHEMA, compression="none", use_dictionary=False) as writer:
        for start in range(0, rows, rows_per_group):
            numbers = list(range(start, min(start + rows_per_group, rows)))
            vis, ir, masks = zip(*(pairs[number % PAIRS] for number in numbers), strict=True)
            writer.write_table(pa.table({
                "index": numbers, "image_name": [f"{number:06d}.jpg" for number in numbers], "visible_image": vis,
                "infrared_image": ir, "question": [" ".join(rng.choice(WORDS, rng.integers(4, 15))) for _ in numbers],
                "segmentation": masks}, schema=SCHEMA))
    return rows


def memory(pid: int | str = "self") -> dict[str, float]:
    """Resident memory of a process in MB, and what of it no other process shares."""
    with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as file:
        sizes = {line.split()[0]: int(line.split()[1]) / 1000 for line in file.readlines()[1:]}
    return {"resident": sizes["Rss:"], "private": sizes["Private_Clean:"] + sizes["Private_Dirty:"]}


def peak() -> float:
    """The most memory that this process has had, MB."""
    with open("/proc/self/status", encoding="ascii") as file:
        return next(int(line.split()[1]) / 1000 for line in file if line.startswith("VmHWM:"))


def measure_pandas(path: str) -> dict:
    """In a process of its own: read the whole file into a DataFrame."""
    import pandas as pd

    start = time.perf_counter()
    frame = pd.read_parquet(path)
    return {"reader": "pandas reads it all", "rows": len(frame), "seconds": time.perf_counter() - start,
            "main": {"opened": memory()}, "peak": peak()}


def measure_opening(path: str, bert: str) -> dict:
    """In a process of its own: memory that opening adds to a program that has imported its libraries."""
    from bert import Tokenizer
    from data import MMRISDataset

    tokenizer = Tokenizer(bert)
    before, start = memory()["resident"], time.perf_counter()
    dataset = MMRISDataset(path, tokenizer, SIDE)
    seconds = time.perf_counter() - start
    return {"rows": len(dataset), "seconds": seconds, "imported": before, "opened": memory()["resident"],
            "peak": peak()}


def measure_epoch(path: str, bert: str, workers: int) -> dict:
    """In a process of its own: an epoch in training's order; memory after opening and at three times of it."""
    import torch

    from bert import Tokenizer
    from data import MMRISDataset, collate, epoch_order

    warnings.filterwarnings("ignore", message="This DataLoader will create")  # more processes than cores
    torch.set_num_threads(1)
    dataset = MMRISDataset(path, Tokenizer(bert), SIDE)
    order = epoch_order(dataset, 0, 0).tolist()
    loader = torch.utils.data.DataLoader(
        dataset, BATCH, sampler=order, num_workers=workers, collate_fn=collate, drop_last=True)
    main, of_workers = {"opened": memory()}, {}
    at = {max(len(loader) * percent // 100, 1): f"{percent}%" for percent in (10, 50, 95)}
    start = time.perf_counter()
    for step, _ in enumerate(loader, start=1):
        if step in at:
            main[at[step]] = memory()
            found = [memory(child.pid) for child in multiprocessing.active_children()]
            if found:
                of_workers[at[step]] = {key: max(one[key] for one in found) for key in found[0]}
    return {"reader": "MMRISDataset", "workers": workers, "rows": len(order),
            "seconds": time.perf_counter() - start, "main": main, "worker": of_workers, "peak": peak()}


def apart(what: str, *arguments) -> dict:
    """Run a measurement of this file in a new interpreter, so that none sees the memory of another."""
    done = subprocess.run([sys.executable, os.path.abspath(__file__), "--measure", what, *map(str, arguments)],
                          stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def machine() -> dict[str, str]:
    """Where and when, for the record."""
    import pyarrow
    import simplejpeg
    import torch
    from PIL import Image

    with open("/proc/cpuinfo", encoding="ascii", errors="replace") as file:
        names = [line.split(":")[1].strip() for line in file if line.startswith("model name")]
    return {"cpu": f"{os.cpu_count()} x {names[0] if names else platform.machine()}", "date": time.strftime("%Y-%m-%d"),
            "python": platform.python_version(), "torch": torch.__version__, "pillow": Image.__version__,
            "simplejpeg": simplejpeg.__version__, "pyarrow": pyarrow.__version__}


def print_decoding(results: list[dict]) -> None:
    print(f"\nDecode {WIDTH}x{HEIGHT} JPEGs, resize to {SIDE} px, standardise: samples a second of one core")
    print(f"{'':16}{'infrared as':>12}{'resizing':>10}{'kB':>10}{'Pillow':>9}{'ours':>9}{'ratio':>8}{'p10..p90':>12}"
          f"{'difference':>13}  masks")
    for row in results:
        low, _, high = row["ratio_of_rounds"]
        print(f"{row['what']:16}{row['infrared_stored_as']:>12}{row['resizing']:>10}"
              f"{'{:.0f}+{:.0f}'.format(*row['kilobytes']):>10}"
              f"{row['pillow_per_second']:9.1f}{row['ours_per_second']:9.1f}{row['ratio']:8.2f}"
              f"{f'{low:.2f}..{high:.2f}':>12}{row['largest_difference_of_255']:9.2f}/255"
              f"  {'exact' if row['masks_exact'] else 'DIFFER'}")


def print_memory(size: float, rows: list[dict]) -> None:
    print(f"\nResident memory in MB (in brackets: shared with no other process), {size / 1e9:.2f} GB")
    times = ("opened", "10%", "50%", "95%")
    print(f"{'':24}{'samples/s':>10}{'main: opened':>16}" + "".join(f"{at:>14}" for at in times[1:])
          + f"{'worker: 10%':>16}" + "".join(f"{at:>14}" for at in times[2:]) + f"{'main peak':>12}")

    def cells(of: dict, names) -> str:
        return "".join(f"{of[at]['resident']:7.0f} ({of[at]['private']:4.0f})" if at in of else f"{'':14}"
                       for at in names)
    for row in rows:
        name = f"{row['workers']} workers" if "workers" in row else row["reader"]
        print(f"{name:24}{row['rows'] / row['seconds']:10.0f}  {cells(row['main'], times)}  "
              f"{cells(row.get('worker', {}), times[1:])}{row['peak']:12.0f}", flush=True)


def main() -> None:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gigabytes", type=at_least(0, float), default=5, help="size of the synthetic file; 0: none")
    parser.add_argument("--rows_per_group", type=at_least(1), default=16, help="its row groups")
    parser.add_argument("--quality", type=at_least(1), default=90, help="of the JPEGs to decode")
    parser.add_argument("--rounds", type=at_least(1), default=20, help=f"times that {PAIRS} pairs are decoded each way")
    parser.add_argument("--folder", help="where to write the file (default: the system's temporary folder)")
    parser.add_argument("--out", help="write all figures to this JSON file, too")
    parser.add_argument("--measure", nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        what, path, *rest = args.measure
        result = {"pandas": measure_pandas, "opening": measure_opening,
                  "epoch": lambda path, bert, workers: measure_epoch(path, bert, int(workers))}[what](path, *rest)
        print(json.dumps(result))
        return
    if not os.path.exists("/proc/self/smaps_rollup"):
        raise UsageError("this benchmark reads memory from /proc, which only Linux has")

    report = {"machine": machine()}
    print(", ".join(f"{key} {value}" for key, value in report["machine"].items()))
    report["decoding"] = decoding(args.quality, args.rounds)
    print_decoding(report["decoding"])
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        from bert.tiny import write_tiny_bert

        bert, path = os.path.join(folder, "bert"), os.path.join(folder, "bench.parquet")
        write_tiny_bert(bert, [" ".join(WORDS)], hidden=16, layers=1, heads=1)
        report["opening"] = opening(path, bert, args.gigabytes, args.rows_per_group)
        if args.gigabytes:
            report["memory"] = reading(path, bert, args.gigabytes, args.rows_per_group)
    from measure import save

    save(report, args.out)


def opening(path: str, bert: str, gigabytes: float, rows_per_group: int) -> dict:
    """Open a file of OPENED_ROWS rows."""
    write_file(path, gigabytes, rows_per_group, OPENED_ROWS)
    result = apart("opening", path, bert)
    print(f"\nOpening {result['rows']} rows: {result['seconds']:.2f} s, {result['opened'] - result['imported']:.0f} MB "
          f"more than the {result['imported']:.0f} MB of the imported libraries, "
          f"{result['peak'] - result['imported']:.0f} MB at the most")
    return result


def reading(path: str, bert: str, gigabytes: float, rows_per_group: int) -> list[dict]:
    """Epochs over a tenth of the file and over all of it, and pandas."""
    results = []
    for part in (gigabytes / 10, gigabytes):
        write_file(path, part, rows_per_group)
        rows = [apart("epoch", path, bert, workers) for workers in WORKERS]
        if part == gigabytes:
            rows.append(apart("pandas", path))
        size = os.path.getsize(path)
        print_memory(size, rows)
        results += [{"file_bytes": size, **row} for row in rows]
    return results


if __name__ == "__main__":
    run(main)
