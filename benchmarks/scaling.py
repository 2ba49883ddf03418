"""Data-parallel training on many GPUs: what communication adds to the step that the roofline model predicts.

Gradients are averaged in buckets, as DistributedDataParallel does: a bucket is sent when the backward pass has computed
all gradients in it, while the pass goes on, one bucket after another. What the pass does not hide is added to the step;
so are the exchanges of synchronised batch norm, one for each layer and pass, which nothing hides.
"""
import math
import os
from dataclasses import dataclass

from measure import print_table
from operators import Operator
from recording import record_training, scaled
from roofline import cost

NODE = 8               # GPUs of one machine
NETWORK = 50e9         # bytes per second each way: one 400 Gb/s link for each GPU
NVLINK_HOP = 2e-6      # seconds from GPU to GPU of a machine, assumed
NETWORK_HOP = 10e-6    # seconds from machine to machine, assumed
FIRST_BUCKET, BUCKET = 2 ** 20, 25 * 2 ** 20  # bytes, DistributedDataParallel's defaults
GPUS = (1, 8, 64, 256)
STATISTICS = 4096      # bytes that a batch norm exchanges in a pass
BATCHES = (1, 2, 4, 8, 16, 32)  # samples for each GPU
RECORDED = (4, 8)      # batch sizes from which the others follow
READ_PER_WORKER = 110  # pairs with masks per second and worker process of 480 px, docs/performance.md
DISK = 1e9             # bytes per second that checkpoints are written with, assumed
SAVE_EVERY = 600       # seconds between two of them


@dataclass(frozen=True)
class Cluster:
    """GPUs and the links between them.

    Attributes:
        gpus: how many.
        link: bytes per second each way between GPUs of one machine.
        network: bytes per second each way and GPU between machines.
    """

    gpus: int
    link: float
    network: float = NETWORK

    def all_reduce(self, size: float) -> float:
        """Seconds to sum `size` bytes of every GPU on all of them.

        A ring within each machine leaves every GPU with an n-th of the sum of its machine; these are summed between
        machines, along a ring too but for short messages along a tree, and spread within each machine again.
        """
        inside = min(self.gpus, NODE)
        machines = math.ceil(self.gpus / NODE)
        seconds = 2 * (inside - 1) / inside * size / self.link + 2 * (inside - 1) * NVLINK_HOP
        if machines > 1:
            hops = 2 * math.ceil(math.log2(machines))
            seconds += 2 * (machines - 1) / machines * size / inside / self.network + hops * NETWORK_HOP
        return seconds


def buckets(gradients: list[tuple[float, int]]) -> list[tuple[float, int]]:
    """Gradients grouped as DistributedDataParallel does from the second step on: in the order of the backward pass.

    Args:
        gradients: (second at which it is complete, bytes) of each parameter's.
    Returns:
        (second at which the last gradient in it is complete, bytes) of each bucket.
    """
    result, size, limit = [], 0, FIRST_BUCKET
    for number, (second, more) in enumerate(gradients):
        size += more
        if size >= limit or number == len(gradients) - 1:
            result.append((second, size))
            size, limit = 0, BUCKET
    return result


def exposed(filled: list[tuple[float, int]], end: float, cluster: Cluster, share: float = 1.0) -> float:
    """Seconds of averaging that the backward pass does not hide.

    Args:
        filled: as `buckets` gives them.
        end: of the backward pass, seconds, on the same clock.
        share: of the bytes that is sent: 0.5 for gradients sent in bfloat16.
    """
    free = 0.0
    for second, size in filled:
        free = max(free, second) + cluster.all_reduce(share * size)
    return max(0.0, free - end)


@dataclass(frozen=True)
class Step:
    """A training step of one GPU.

    Attributes:
        forward, backward, rest: seconds; the rest are losses' share, optimizer and bookkeeping.
        filled: as `buckets` gives them, from the start of the backward pass.
        norms: layers of batch norm.
        bandwidth: of the memory, bytes per second.
    """

    forward: float
    backward: float
    rest: float
    filled: list[tuple[float, int]]
    norms: int
    bandwidth: float

    def on(self, cluster: Cluster, accumulated: int = 1, share: float = 1.0) -> float:
        """Seconds for one batch on many GPUs.

        Args:
            accumulated: batches for one averaging of gradients, and one update of the weights.
            share: as in `exposed`.
        """
        alone = self.forward + self.backward + self.rest / accumulated
        if cluster.gpus == 1:
            return alone
        added = exposed(self.filled, self.backward, cluster, share)
        if share < 1:  # the gradients are cast there and back: float32 read and written, bfloat16 written and read
            added += 3 * sum(size for _, size in self.filled) / self.bandwidth
        return alone + self.statistics(cluster) + added / accumulated

    def statistics(self, cluster: Cluster) -> float:
        """Seconds in which synchronised batch norm exchanges its statistics, forward and backward."""
        return 2 * self.norms * cluster.all_reduce(STATISTICS)


def step_of(operators: list[Operator], gradients: list[tuple[int, int]], device, launch: float, tf32: bool) -> Step:
    """The step that recorded operators make on a `Device`; gradients as `Recorder.gradients`."""
    seconds = [cost(op, device, launch, tf32).seconds for op in operators]
    times = {"forward": 0.0, "backward": 0.0, "rest": 0.0}
    after = [0.0]  # seconds of the backward pass before each operator
    for op, second in zip(operators, seconds, strict=True):
        part = "rest" if op.network in ("optimizer", "bookkeeping") else "backward" if op.backward else "forward"
        times[part] += second
        after.append(times["backward"])
    norms = sum("batch_norm" in op.name and not op.backward for op in operators)
    filled = buckets([(after[position], size) for position, size in gradients])
    return Step(**times, filled=filled, norms=norms, bandwidth=device.bandwidth)


def report_scaling(args, device, dtype) -> dict:
    """Print, and with `args.plot` draw, the scaling efficiency on GPUs of a kind, for several batch sizes."""
    recorded = [record_training(args.shape, size, args.img_size, dtype) for size in RECORDED]
    steps = {size: step_of(scaled(*(r.operators for r in recorded), RECORDED, size), recorded[0].gradients, device,
                           args.launch_us * 1e-6, args.tf32) for size in BATCHES}
    clusters = [Cluster(gpus, device.link) for gpus in GPUS]
    rows, report = [], {}
    for size, step in steps.items():
        alone = step.on(clusters[0])
        spread = [100 * alone / step.on(cluster) for cluster in clusters[1:]]
        largest = clusters[-1]
        changed = {"bf16": 100 * alone / step.on(largest, share=0.5),
                   "accumulated": 100 * step.on(clusters[0], 4) / step.on(largest, 4),
                   "shared link": 100 * alone / step.on(Cluster(GPUS[-1], device.link, NETWORK / NODE)),
                   "shared link, bf16": 100 * alone / step.on(Cluster(GPUS[-1], device.link, NETWORK / NODE), 1, 0.5)}
        workers = math.ceil(size / alone / READ_PER_WORKER)
        report[size] = {"milliseconds": 1e3 * alone, "efficiency": dict(zip(GPUS[1:], spread, strict=True)),
                        "workers": workers, **changed}
        rows.append([str(size), 1e3 * alone, *spread, *changed.values(), workers])
    print_table(f"Efficiency on {device.name}s, percent of the rate of as many single ones, by samples for each GPU",
                ["batch", "ms", *(f"{gpus} GPUs" for gpus in GPUS[1:]), f"{GPUS[-1]}: bf16 gradients",
                 "4 accumulated", "1 link a node", "and bf16", "workers a GPU"], rows)
    gradients = sum(size for _, size in recorded[0].gradients)
    wait = 3 * gradients / DISK
    print(f"Gradients of {gradients / 1e6:.0f} MB in {len(steps[16].filled)} buckets; {steps[16].norms} synchronised "
          f"batch norms, {1e3 * steps[16].statistics(clusters[-1]):.0f} ms on {GPUS[-1]} GPUs.\n"
          f"last.pth, {3 * gradients / 1e9:.1f} GB, takes {wait:.1f} s at {DISK / 1e9:.0f} GB/s: "
          f"{100 * wait / SAVE_EVERY:.1f} % of the time if written every {SAVE_EVERY / 60:.0f} minutes.")
    if args.plot:
        draw(steps, device, os.path.join(args.plot, "scaling.png"))
    return report


def draw(steps: dict[int, Step], device, path: str) -> None:
    """Efficiency against GPUs, a curve for each batch size."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), sharey=True, layout="constrained")
    gpus = [2 ** n for n in range(9)]
    for axis, share, title in ((axes[0], 1, "a 400 Gb/s link for each GPU"), (axes[1], NODE, "one for each 8 GPUs")):
        for size, step in steps.items():
            curve = [100 * step.on(Cluster(1, device.link)) / step.on(Cluster(n, device.link, NETWORK / share))
                     for n in gpus]
            below = next((n for n, value in zip(gpus, curve, strict=True) if value < 90), None)
            axis.plot(gpus, curve, "o-", ms=3, label=f"batch {size}: "
                      + (f"below 90 % at {below}" if below else "stays above 90 %"))
        axis.axhline(90, color="grey", lw=0.8, ls="--")
        axis.set_xscale("log", base=2)
        axis.set_xticks(gpus, [str(n) for n in gpus])
        axis.set_xlabel(f"{device.name}s, {title}")
        axis.legend(fontsize=7)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("predicted efficiency, percent")
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    figure.savefig(path, dpi=100)
    plt.close(figure)
