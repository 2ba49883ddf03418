"""What to expect of a GPU: a roofline model of a training step and of an evaluation. Needs no GPU.

    python benchmarks/roofline.py [--shape readme|demo] [--device H200 …] [--amp] [--eval] [--scaling] [--measure]

Every operator is recorded on fake tensors, with its floating-point operations and bytes, and predicted to take as long
as the slower of the two at the device's peak rates, and a launch. So a prediction is the least that the operators can
take one after another; kernels that fall short of the peak, and a host that cannot keep up, come on top.
"""
import os
import sys
from collections import defaultdict
from dataclasses import replace
from operator import itemgetter

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))  # when run as a script

from utils.errors import run
from utils.flags import ArgumentParser, at_least, image_size

SHAPES = ("readme", "demo")
BATCHES = {"train": 16, "eval": 1}
DEVICES = ("H100", "H200", "A100", "4090", "910B")


class Cost:
    """What an operator, or a sum of them, is predicted to take.

    Attributes:
        compute, memory, launch: seconds for the operations at the peak rate, for the bytes, and for the launches.
        seconds: the larger of the first two, and the third.
        flops: operations.
        limits: of the seconds, those of operators that are bound by `compute`, `memory` and `launches`.
    """

    def __init__(self, compute: float = 0.0, memory: float = 0.0, launch: float = 0.0, flops: int = 0):
        self.compute, self.memory, self.launch, self.flops = compute, memory, launch, flops
        self.seconds = max(compute, memory) + launch
        self.limits = {"compute": 0.0, "memory": 0.0, "launches": 0.0}
        self.limits["launches" if launch > max(compute, memory) else "compute" if compute >= memory else "memory"] = (
            self.seconds)

    def add(self, other: "Cost") -> None:
        """Add another's to all figures."""
        for name in ("compute", "memory", "launch", "flops", "seconds"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for name in self.limits:
            self.limits[name] += other.limits[name]

    @property
    def bound(self) -> str:
        """What most of the time goes by."""
        return max(self.limits, key=self.limits.__getitem__)


def cost(operator, device, launch: float, tf32: bool = False) -> Cost:
    """The cost of an `Operator` on a `Device`.

    Args:
        launch: seconds for each kernel.
        tf32: whether float32 matrix products may use TF32.
    """
    return Cost(operator.flops / device.rate(operator.name, operator.dtype, tf32), operator.bytes / device.bandwidth,
                launch * operator.kernels, operator.flops)


def totals(operators, price, key) -> dict[str, Cost]:
    """The summed costs of operators by `key(operator)`, as `price(operator)` gives each."""
    sums: dict[str, Cost] = defaultdict(Cost)
    for operator in operators:
        sums[key(operator)].add(price(operator))
    return dict(sums)


def fused(operators) -> list:
    """The operators after perfect fusion of elementwise ones: each becomes a part of the operator before, if it reads
    what that one wrote. The intermediate result is not read, and not written if nothing later reads it."""
    last_use = {number: position for position, op in enumerate(operators) for number in op.inputs}
    result: list = []
    before = None  # the operator before, whose results an elementwise operator can take over
    for position, op in enumerate(operators):
        shared = set(op.inputs) & set(before.outputs) if before else set()
        if op.elementwise and shared:
            unread = {n for n in shared if last_use[n] == position and n not in op.outputs}
            start = result[-1]
            result[-1] = replace(start, outputs={n: b for n, b in start.outputs.items() if n not in unread})
            result.append(replace(op, inputs={n: b for n, b in op.inputs.items() if n not in shared}, kernels=0))
        else:
            result.append(op)
        before = op
    return result


def place_pattern(place: str) -> str:
    """A module's path with `*` for the numbers of Swin's and BERT's blocks."""
    return ".".join("*" if part.isdigit() else part for part in place.split("."))


def kind(operator) -> str:
    """`backward` or `forward`."""
    return "backward" if operator.backward else "forward"


def islands(operators, price) -> list[tuple[str, str, float, float, float]]:
    """Operators that run in float32 although autocast is on, dearest first.

    Returns:
        (module and operator, `forward` or `backward`, share of all seconds, of all bytes, of all operations).
    """
    seconds = sum(price(op).seconds for op in operators)
    size, flops = sum(op.bytes for op in operators), sum(op.flops for op in operators) or 1
    sums = defaultdict(lambda: [0.0, 0.0, 0.0])
    for op in operators:
        if op.dtype == "float32" and op.network not in ("losses", "optimizer", "bookkeeping"):
            entry = sums[f"{place_pattern(op.place) or 'the model'}: {op.name}", kind(op)]
            for i, share in enumerate((price(op).seconds / seconds, op.bytes / size, op.flops / flops)):
                entry[i] += share
    return sorted(((*where, *shares) for where, shares in sums.items()), key=itemgetter(2), reverse=True)


def print_devices(operators, devices, args) -> dict:
    """A line for each device: what all operators take there."""
    from measure import print_table

    rows, report = [], {}
    for device in devices:
        def price(op, device=device):
            return cost(op, device, args.launch_us * 1e-6, args.tf32)

        total, = totals(operators, price, lambda _: "").values()
        after, = totals(fused(operators), price, lambda _: "").values()
        report[device.name] = {
            "milliseconds": 1e3 * total.seconds, "compute": 1e3 * total.compute, "memory": 1e3 * total.memory,
            "launches": 1e3 * total.launch, "samples_per_second": args.batch_size / total.seconds,
            "of_peak": total.flops / total.seconds / (device.bf16 if args.amp else device.tf32),
            "fused_milliseconds": 1e3 * after.seconds, "bound": total.bound}
        rows.append([device.name, *report[device.name].values()])
    print_table("Predicted for each device", ["", "ms", "operations", "bytes", "launches", "samples/s", "of peak",
                                              "ms if fused", "bound by"], rows)
    return report


def print_networks(operators, price, device_name: str) -> dict:
    """A line for each network and pass."""
    from measure import print_table

    sums = totals(operators, price, lambda op: (op.network, kind(op)))
    names = list(dict.fromkeys(network for network, _ in sums))
    rows, report = [], {}
    for name in names:
        cells = []
        for which in ("forward", "backward"):
            total = sums.get((name, which))
            cells += [1e3 * total.seconds, total.bound] if total else ["", ""]
            if total:
                report[f"{name}, {which}"] = {"milliseconds": 1e3 * total.seconds, "bound": total.bound}
        rows.append([name, *cells])
    print_table(f"By network on the {device_name}", ["", "forward ms", "bound by", "backward ms", "bound by"], rows)
    return report


def print_losses(operators, price, device_name: str) -> list:
    """The ten operators, by network and pass, that take longest beyond their operations at the peak rate."""
    from measure import print_table

    sums = totals(operators, price, lambda op: f"{op.name} {op.dtype}, {op.network}, {kind(op)}")
    lost = sorted(sums.items(), key=lambda entry: entry[1].seconds - entry[1].compute, reverse=True)[:10]
    rows = [[name, 1e3 * (total.seconds - total.compute), 1e3 * total.seconds, total.bound] for name, total in lost]
    print_table(f"Where most is lost on the {device_name}", ["", "ms lost", "ms", "bound by"], rows)
    return rows


def print_islands(operators, price, device_name: str) -> list:
    """The ten dearest float32 operators under autocast, and the losses."""
    from measure import print_table

    rows = islands(operators, price)
    seconds = sum(price(op).seconds for op in operators)
    apart = totals(operators, price, lambda op: op.network).get("losses", Cost()).seconds / seconds
    print_table(f"In float32 within autocast, percent, on the {device_name}: "
                f"{100 * sum(row[2] for row in rows):.0f} % of the time, and the losses {100 * apart:.1f} %",
                ["", "pass", "of time", "of bytes", "of flops"],
                [[where, which, *(100 * share for share in shares)] for where, which, *shares in rows[:10]])
    return rows


def main() -> None:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, default="readme",
                        help="sizes of the published recipe, or of make demo")
    parser.add_argument("--img_size", type=image_size, help="default: 480 for readme, 96 for demo")
    parser.add_argument("-b", "--batch_size", type=at_least(1), help="default: 16 in training, 1 in evaluation")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--train", dest="what", action="store_const", const="train", default="train",
                      help="a training step (default)")
    what.add_argument("--eval", dest="what", action="store_const", const="eval", help="an evaluation")
    parser.add_argument("--amp", action="store_true", help="bfloat16 autocast, with CUDA's list of operators")
    parser.add_argument("--tf32", action="store_true",
                        help="TF32 in float32 matrix products; convolutions use it anyway")
    parser.add_argument("--device", nargs="+", choices=DEVICES, default=DEVICES, metavar="NAME",
                        help=f"which of {', '.join(DEVICES)}; details are of H200, or of the first")
    parser.add_argument("--launch_us", type=float, default=5.0,
                        help="microseconds to launch a kernel: about what PyTorch's host code takes (default 5)")
    parser.add_argument("--scaling", action="store_true", help="also: training on many GPUs")
    parser.add_argument("--measure", action="store_true", help="also: predicted and measured on this CPU")
    parser.add_argument("--plot", metavar="DIR", help="draw the scaling there")
    parser.add_argument("--out", help="write all figures to this JSON file, too")
    args = parser.parse_args()

    import measure
    from devices import DEVICES as KNOWN
    from recording import record_evaluation, record_training
    from torch import bfloat16

    args.batch_size = args.batch_size or BATCHES[args.what]
    args.img_size = args.img_size or measure.SHAPES[args.shape].img_size
    dtype = bfloat16 if args.amp else None
    record = record_training if args.what == "train" else record_evaluation
    operators = record(args.shape, args.batch_size, args.img_size, dtype).operators
    devices = [KNOWN[name] for name in args.device]
    detailed = next((device for device in devices if device.name == "H200"), devices[0])

    def price(op):
        return cost(op, detailed, args.launch_us * 1e-6, args.tf32)

    flops, size = sum(op.flops for op in operators), sum(op.bytes for op in operators)
    kernels = sum(op.kernels for op in operators)
    step = "A training step" if args.what == "train" else "An evaluation"
    print(f"{step}, {args.shape} sizes, {args.img_size} px, batch {args.batch_size}, "
          f"{'bfloat16' if args.amp else 'TF32' if args.tf32 else 'float32'}: {flops / 1e12:.2f} TFLOP, "
          f"{size / 1e9:.1f} GB, {kernels} kernels. Predictions, not measurements.")
    report = {"flags": vars(args), "flops": flops, "bytes": size, "kernels": kernels,
              "devices": print_devices(operators, devices, args),
              "networks": print_networks(operators, price, detailed.name),
              "lost": print_losses(operators, price, detailed.name)}
    if args.amp:
        report["islands"] = print_islands(operators, price, detailed.name)
    if args.scaling or args.plot:
        from scaling import report_scaling
        report["scaling"] = report_scaling(args, detailed, dtype)
    if args.measure:
        from reality import report_errors
        report["this CPU"] = report_errors(args.shape, args.img_size)
    measure.save(report, args.out)


if __name__ == "__main__":
    run(main)
