"""Where the time and the memory of a way go, by network."""
import json
import os
import subprocess
import sys
import time

import torch
from measure import print_table, shared_flags

from models.fast import return_freed_memory
from utils.device import peak_memory, reset_peak_memory, synchronize


class PartClock:
    """Times the networks of a model, forward and, through gradient hooks, backward. Waits for the device at each mark.

    What comes between the marks of two networks in the backward pass belongs to the one that was entered last. Beside
    the time it notes the most memory that the process, or the device, held meanwhile.
    """

    def __init__(self, model, device: torch.device):
        self.device = device
        self.clear()
        self._entered: tuple[str, float] | None = None
        backbone = model.segmenter.backbone
        self.time(model, "encode_pair", "fuser")
        self.time(model.text_encoder, "forward", "text")
        self.time(model.fuser, "decode", "fuser")
        self.time(backbone.patch_embed, "forward", "Swin patches")
        for number, stage in enumerate(backbone.layers, start=1):
            self.time(stage, "forward", f"Swin stage {number}")
        self.time(model.segmenter.classifier, "forward", "decoder")

    def clear(self) -> None:
        """Forget what was noted so far."""
        self.seconds = {"forward": {}, "backward": {}}
        self.peak_mb = {"forward": {}, "backward": {}}

    def time(self, owner, method: str, part: str) -> None:
        """Have calls of `owner.method`, and the backward pass through them, count for `part`."""
        inner = getattr(owner, method)

        def call(*inputs, **named):
            start = self._now()
            output = inner(*inputs, **named)
            self._note("forward", part, start)
            for tensor in _tensors(output):
                if tensor.requires_grad:
                    tensor.register_hook(lambda _: self.enter(part))
            return output

        setattr(owner, method, call)

    def _now(self) -> float:
        synchronize(self.device)
        reset_peak_memory(self.device)
        return time.perf_counter()

    def _note(self, kind: str, part: str, start: float) -> None:
        synchronize(self.device)
        seconds, peak_mb = self.seconds[kind], self.peak_mb[kind]
        seconds[part] = seconds.get(part, 0.0) + time.perf_counter() - start
        peak_mb[part] = max(peak_mb.get(part, 0.0), peak_memory(self.device) / 1e6)

    def enter(self, part: str) -> None:
        """Say that the backward pass has come to `part`."""
        if self._entered:
            self._note("backward", *self._entered)
        self._entered = (part, self._now())

    def leave(self) -> None:
        """Say that the backward pass is over."""
        self.enter("")
        self._entered = None


def report_parts(way, clock: PartClock, args) -> dict[str, dict[str, dict[str, float]]]:
    """`milliseconds` of each part in a round, averaged, or, with `--memory`, its `peak_mb`; by pass and part.

    With `--memory` a process on a CPU gives freed memory back, so that it holds what is in use: that takes its time.
    """
    if args.memory:
        return_freed_memory(clock.device)
    way.run()
    clock.clear()
    if args.memory:
        way.run()
        return {"peak_mb": clock.peak_mb}
    for _ in range(args.rounds):
        way.run()
    return {"milliseconds": {kind: {part: 1e3 * seconds / args.rounds for part, seconds in parts.items()}
                             for kind, parts in clock.seconds.items()}}


def print_parts(parts: dict[str, dict]) -> None:
    """What `parts_apart` gave."""
    for what, title in (("milliseconds", "Milliseconds by part"), ("peak_mb", "Most memory during each part, MB")):
        columns = {f"{way}, {kind}": values for way, report in parts.items()
                   for kind, values in report[what].items() if values}
        names = list(dict.fromkeys(name for values in columns.values() for name in values))
        print_table(title, ["", *columns], [[name, *(values.get(name, "") for values in columns.values())]
                                            for name in names])


def _tensors(output):
    if isinstance(output, torch.Tensor):
        return [output]
    values = output.values() if isinstance(output, dict) else output
    return [tensor for value in values for tensor in _tensors(value)] if isinstance(output, (tuple, list, dict)) else []


def parts_apart(script: str, names: list[str], args) -> dict[str, dict]:
    """What the script prints as JSON for `--parts NAME`, without and with `--memory`, each in a new interpreter."""
    results = {name: {} for name in names}
    for name in names:
        for more in ([], ["--memory"]):
            done = subprocess.run([sys.executable, script, "--parts", name, *more, *shared_flags(args)],
                                  stdout=subprocess.PIPE, text=True, check=True)
            results[name] |= json.loads(done.stdout.splitlines()[-1])
    return results


def write_profile(folder: str, ways: dict, parts: dict[str, dict]) -> None:
    """A profiler trace of each function, and a picture of where the milliseconds of `parts_apart` go."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    os.makedirs(folder, exist_ok=True)
    for name, way in ways.items():
        way()
        with torch.profiler.profile() as profile:
            way()
        profile.export_chrome_trace(os.path.join(folder, f"{name}.json"))
    times = {way: {f"{part}, {kind}" if report["milliseconds"]["backward"] and part != "optimizer" else part: value
                   for kind, values in report["milliseconds"].items() for part, value in values.items()}
             for way, report in parts.items()}
    names = list(dict.fromkeys(name for values in times.values() for name in values))
    figure, axes = plt.subplots(figsize=(9, 1 + 0.18 * len(names) * len(parts)), layout="constrained")
    for number, (way, values) in enumerate(times.items()):
        places = [place + number * 0.8 / len(parts) for place in range(len(names))]
        axes.barh(places, [values.get(name, 0.0) for name in names], 0.8 / len(parts),
                  label=f"{way}: {sum(values.values()):,.0f} ms")
    axes.set_yticks([place + 0.2 for place in range(len(names))], names)
    axes.margins(y=0.01)
    axes.invert_yaxis()
    axes.set_xlabel("milliseconds")
    axes.legend()
    figure.savefig(os.path.join(folder, "parts.png"), dpi=120)
    plt.close(figure)
