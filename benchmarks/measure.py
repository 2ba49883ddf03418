"""What the speed benchmarks share: models of two sizes, clocks, counts of operations, tables."""
import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from types import SimpleNamespace

import torch
from torch.utils.flop_counter import FlopCounterMode

from models import build_model
from utils.device import describe, synchronize

TOKENS, VOCABULARY = 20, 1000
LOSSES = {"seg_loss": "ce", "lambda_prefusion": 3.0, "w_ssim_vis": 0.5, "w_ssim_ir": 0.0, "w_mse_vis": 0.5,
          "w_mse_ir": 2.0, "w_sobel_vis": 0.0, "w_sobel_ir": 1.0, "w_grad": 1.0}
MODEL = {"mha": "", "fusion_drop": 0.0, "pretrained_swin_weights": "", "ck_bert": ""}
SHAPES = {
    "readme": SimpleNamespace(**MODEL, **LOSSES, swin_type="base", window12=True, prefusion_base_ch=32, img_size=480,
                              batch_size=1),
    "demo": SimpleNamespace(**MODEL, **LOSSES, swin_type="micro", window12=False, prefusion_base_ch=8, img_size=96,
                            batch_size=8),
}


def make_model(shape: str, device: torch.device) -> torch.nn.Module:
    """The joint model from random weights: the published sizes, or those of `make demo`."""
    from bert.tiny import write_tiny_bert

    args = SimpleNamespace(**vars(SHAPES[shape]))
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        if shape == "demo":
            write_tiny_bert(folder, ["the red car"])
            args.ck_bert = folder
        return build_model(args).to(device)


def make_batch(size: int, side: int, device: torch.device, words: int = 10) -> dict[str, torch.Tensor]:
    """Random images (B, 3, side, side), sentences of `words` word pieces between [CLS] and [SEP], and masks."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, size, 3, side, side, generator=generator)
    ids = torch.randint(1, 20, (size, TOKENS), generator=generator)
    real = (torch.arange(TOKENS) < words + 2).long().expand(size, TOKENS)
    target = torch.zeros(size, side, side, dtype=torch.int64)
    target[:, side // 4: side // 2, side // 4: side // 2] = 1
    batch = {"vis": images[0], "ir": images[1], "input_ids": ids * real, "attention_mask": real.clone(),
             "target": target}
    return {name: tensor.to(device) for name, tensor in batch.items()}


def forward_flops(shape: str, side: int) -> dict[str, int]:
    """Floating-point operations of a forward pass of one sample, by network: two for each multiplication and addition.

    Counted by PyTorch, without attention's fused kernels, which its counter does not know on every device.
    """
    from straightforward import straightforwardly

    model, batch = make_model(shape, torch.device("cpu")).eval(), make_batch(1, side, torch.device("cpu"))
    counter = FlopCounterMode(display=False)
    with straightforwardly(), torch.no_grad(), counter:
        model(batch["vis"], batch["ir"], batch["input_ids"], batch["attention_mask"])
    by_module = {name: sum(counts.values()) for name, counts in counter.get_flop_counts().items()}
    total, text = by_module["Global"], by_module["RISFusion.text_encoder"]
    segmenter, decoder = by_module["RISFusion.segmenter"], by_module["RISFusion.segmenter.classifier"]
    return {"text": text, "fuser": total - text - segmenter, "swin": segmenter - decoder, "decoder": decoder,
            "total": total}


def matrix_rate(device: torch.device, dtype: torch.dtype, side: int = 2048):
    """A function that multiplies two matrices of random numbers; and the operations that takes."""
    a, b = torch.randn(2, side, side, device=device).to(dtype)
    return lambda: a @ b, 2 * side ** 3


def in_turn(ways: dict, device: torch.device, rounds: int, warm_up: int = 1) -> dict[str, list[float]]:
    """Seconds of each of the functions in each round; they take turns, so that what else the machine does hits all."""
    seconds = {name: [] for name in ways}
    for number in range(-warm_up, rounds):
        for name, way in ways.items():
            synchronize(device)
            start = time.perf_counter()
            way()
            synchronize(device)
            if number >= 0:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def ratio(slow: list[float], fast: list[float]) -> float:
    """How many times as fast: the median over the rounds, in each of which both were measured side by side."""
    return statistics.median(s / f for s, f in zip(slow, fast, strict=True))


class PartClock:
    """Times the networks of a model, forward and, through gradient hooks, backward. Waits for the device at each mark.

    What comes between the marks of two networks in the backward pass belongs to the one that was entered last.
    """

    def __init__(self, model, device: torch.device):
        self.device = device
        self.forward: dict[str, float] = {}
        self.backward: dict[str, float] = {}
        self._entered: tuple[str, float] | None = None
        backbone = model.segmenter.backbone
        self._time(model, "encode_pair", "fuser")
        self._time(model.text_encoder, "forward", "text")
        self._time(model.fuser, "decode", "fuser")
        self._time(backbone.patch_embed, "forward", "Swin patches")
        for number, stage in enumerate(backbone.layers, start=1):
            self._time(stage, "forward", f"Swin stage {number}")
        self._time(model.segmenter.classifier, "forward", "decoder")

    def _time(self, owner, method: str, part: str) -> None:
        inner = getattr(owner, method)

        def timed(*inputs, **named):
            start = self.now()
            output = inner(*inputs, **named)
            self.forward[part] = self.forward.get(part, 0.0) + self.now() - start
            for tensor in _tensors(output):
                if tensor.requires_grad:
                    tensor.register_hook(lambda _: self.enter(part))
            return output

        setattr(owner, method, timed)

    def now(self) -> float:
        """Seconds, when the device has done what it was given."""
        synchronize(self.device)
        return time.perf_counter()

    def enter(self, part: str) -> None:
        """Say that the backward pass has come to `part`."""
        now = self.now()
        if self._entered:
            name, since = self._entered
            self.backward[name] = self.backward.get(name, 0.0) + now - since
        self._entered = (part, now)

    def leave(self) -> None:
        """Say that the backward pass is over."""
        self.enter("")
        self._entered = None


def _tensors(output):
    if isinstance(output, torch.Tensor):
        return [output]
    values = output.values() if isinstance(output, dict) else output
    return [tensor for value in values for tensor in _tensors(value)] if isinstance(output, (tuple, list, dict)) else []


def apart(script: str, *arguments: str) -> dict:
    """Run a script in a new interpreter, whose memory nothing else has used; it prints a JSON object last."""
    done = subprocess.run([sys.executable, script, *arguments], stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def machine(device: torch.device) -> dict[str, str]:
    """Where and when, for the record."""
    cpu = platform.machine()
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="ascii", errors="replace") as file:
        cpu = next((line.split(":")[1].strip() for line in file if line.startswith("model name")), cpu)
    return {"device": describe(device), "cpu": f"{os.cpu_count()} x {cpu}", "torch": torch.__version__,
            "python": platform.python_version(), "date": time.strftime("%Y-%m-%d")}


def print_table(title: str, head: list[str], rows: list[list]) -> None:
    """Columns as wide as their content, numbers to the right."""
    cells = [head, *([f"{cell:.3g}" if isinstance(cell, float) else str(cell) for cell in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    print(f"\n{title}")
    for row in cells:
        print("  ".join(cell.ljust(width) if i == 0 else cell.rjust(width)
                        for i, (cell, width) in enumerate(zip(row, widths, strict=True))))


def write_profile(folder: str, ways: dict, parts: dict[str, dict[str, float]]) -> None:
    """A profiler trace of each function, and a picture of where the milliseconds of each go."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    os.makedirs(folder, exist_ok=True)
    for name, way in ways.items():
        way()
        with torch.profiler.profile() as profile:
            way()
        profile.export_chrome_trace(os.path.join(folder, f"{name}.json"))
    figure, axes = plt.subplots(figsize=(9, 1 + 0.3 * len(max(parts.values(), key=len)) * len(parts)),
                                layout="constrained")
    names = list(dict.fromkeys(name for times in parts.values() for name in times))
    for number, (who, times) in enumerate(parts.items()):
        places = [place + number * 0.8 / len(parts) for place in range(len(names))]
        axes.barh(places, [times.get(name, 0.0) for name in names], 0.8 / len(parts),
                  label=f"{who}: {sum(times.values()):.0f} ms")
    axes.set_yticks([place + 0.2 for place in range(len(names))], names)
    axes.invert_yaxis()
    axes.set_xlabel("milliseconds")
    axes.legend()
    figure.savefig(os.path.join(folder, "parts.png"), dpi=120)
    plt.close(figure)


def save(report: dict, path: str | None) -> None:
    """Write everything that was measured to a JSON file, if there is to be one."""
    if path:
        with open(path, "w", encoding="utf-8") as file:
            json.dump(report, file, indent=1)
