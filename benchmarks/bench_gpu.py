"""Everything worth knowing about a GPU in nine minutes: whether results are right, how fast it is, where time goes.

    python benchmarks/bench_gpu.py [--parts right training evaluation feeding kernels] [--out DIR] [--tiny]

Needs no data and no weights. Every task is a process of its own with a time limit, so that a failure costs its rows
alone. The most important comes first; what no longer fits the time is listed as left out. Rows are printed and written
to DIR/gpu.json and DIR/gpu.md as they come. Nothing about the device is changed.

Exit code: 0 if every row that was measured is in order, 1 if a row failed or a check does not hold, 130 after Ctrl-C.
"""
import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))  # when run as a script

from gpu.plan import DEVICE, PARTS, Task, tasks
from gpu.report import FAILED, LEFT_OUT, OK, Report

from utils.errors import InputError, run
from utils.files import set_aside
from utils.flags import ArgumentParser, at_least, make_folder

SCRIPT = os.path.abspath(__file__)
OUT, SECONDS = "runs/bench_gpu", 540
LAST_WORDS = 2000  # characters of a process's output that are looked at for a reason


def build_parser() -> ArgumentParser:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS), metavar="PART",
                        help=f"which of: {', '.join(PARTS)} (default: all)")
    parser.add_argument("--out", metavar="DIR",
                        help="folder for gpu.json, gpu.md, the trace and the processes' output "
                             f"(default: {OUT}, with --tiny {OUT}_tiny)")
    parser.add_argument("--seconds", type=at_least(1, float), default=SECONDS,
                        help="for everything together (default: %(default)s)")
    parser.add_argument("-b", "--batch-size", type=at_least(1), help="of training (default: 16; with --tiny 2)")
    parser.add_argument("--device", default="auto", help="auto, cuda, npu or cpu")
    parser.add_argument("--tiny", action="store_true",
                        help="the sizes of make demo, and few rounds: to see that everything runs, on a CPU too")
    parser.add_argument("--task", help=argparse.SUPPRESS)  # in a process of its own: measure this one,
    parser.add_argument("--settings", help=argparse.SUPPRESS)  # with the settings in this file
    return parser


def main() -> None:
    args = build_parser().parse_args()
    if args.task:
        from gpu.child import serve

        with open(args.settings, encoding="utf-8") as file:
            serve(args.task, json.load(file))
        return
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    args.out = args.out or (f"{OUT}_tiny" if args.tiny else OUT)
    make_folder(args.out, "--out")
    set_aside(args.out, r"gpu\.(json|md)|\w+\.txt|\w+\.json\.gz")
    settings = {"device": args.device, "tiny": args.tiny, "batch_size": args.batch_size or (2 if args.tiny else 16),
                "seconds": args.seconds, "parts": " ".join(args.parts)}
    report = Report(args.out, settings)
    try:
        with tempfile.TemporaryDirectory() as scratch:
            measure(args, report, scratch)
        report.finish(f"complete, but for what is {LEFT_OUT}" if report.in_order() else "complete; not all is in order")
    except BaseException as error:
        report.finish(str(error) if isinstance(error, InputError) else "interrupted")
        raise
    print(f"in {args.out}: gpu.json, gpu.md")
    if not report.in_order():
        rows = [row["row"] for row in report.rows if row["state"] not in (OK, LEFT_OUT)]
        raise InputError(f"not in order: {'; '.join(rows)}; {os.path.join(args.out, 'gpu.md')} says why")


def measure(args: argparse.Namespace, report: Report, scratch: str) -> None:
    """Carry out the tasks of the parts that were asked for, one after the other, while there is time.

    Raises:
        InputError: the device cannot be used.
    """
    end = time.monotonic() + args.seconds
    scale = 4 if args.tiny else 1  # tiny sizes need less, and the limits are those of a GPU: for a slow CPU
    for task in tasks(args.tiny):
        if task.part not in (DEVICE, *args.parts):
            continue
        kind = report.figures(DEVICE).get("device", {}).get("kind", "cuda")
        rows = [row.name for row in task.rows if kind == "cuda" or not row.cuda]
        for row in task.rows:
            if row.name not in rows:
                report.add(task.part, row.name, LEFT_OUT, why=row.cuda)
        remaining = end - time.monotonic()
        if rows and remaining < (1 if args.tiny else task.least):
            for row in rows:
                report.add(task.part, row, LEFT_OUT, why=f"{remaining:.0f} of {args.seconds:.0f} s were left, "
                                                         f"it needs {task.least:.0f} or more")
        elif rows:
            measure_task(task, rows, min(task.most * scale, remaining), report, scratch)
        if task.part == DEVICE and not report.in_order():
            raise InputError(f"the device cannot be used: {report.rows[-1]['why']}")


def measure_task(task: Task, rows: list[str], seconds: float, report: Report, scratch: str) -> None:
    """Have a process measure `rows`, which ends after so many seconds at the latest, and report each."""
    earlier = {part: report.figures(part) for part in (DEVICE, *PARTS)}
    settings = report.settings | {"rows": rows, "earlier": earlier, "out": report.folder, "scratch": scratch}
    path = os.path.join(scratch, "settings.json")
    with open(path, "w", encoding="utf-8") as file:
        json.dump(settings, file)
    log, start, missing = os.path.join(report.folder, f"{task.name}.txt"), time.monotonic(), list(rows)
    with open(log, "w", encoding="utf-8") as complaints:
        process = subprocess.Popen(
            [sys.executable, SCRIPT, "--task", task.function, "--settings", path],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=complaints, text=True,
            env=os.environ | task.environment, start_new_session=True)
    clock = threading.Timer(seconds, end_all, [process])
    clock.start()
    try:
        for line in process.stdout:
            if line.endswith("\n"):  # else the process was ended while it wrote
                answer = json.loads(line)
                missing.remove(answer["row"])
                report.add(task.part, answer.pop("row"), answer.pop("state"), answer.pop("seconds"), **answer)
        code = process.wait()
    finally:
        clock.cancel()
        end_all(process)
        process.stdout.close()
    took = time.monotonic() - start
    for row in missing:
        why = (f"not there after {seconds:.0f} s" if took >= seconds else
               f"the process ended with {code}: {last_words(log)}")
        report.add(task.part, row, FAILED, took, why=why)


def end_all(process: subprocess.Popen) -> None:
    """Kill a process and those it has started."""
    with contextlib.suppress(OSError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def last_words(log: str) -> str:
    """The last line that a process wrote."""
    with open(log, encoding="utf-8", errors="replace") as file:
        lines = file.read()[-LAST_WORDS:].strip().splitlines()
    return lines[-1] if lines else "it said nothing"


if __name__ == "__main__":
    run(main)
