"""The study: does the sentence steer the fusion, what does joint training bring, how do other fusion methods compare?

    python benchmarks/study.py [--seeds 3] [--variants joint,visible] [--epochs 3] [--out runs/study]

Trains every variant with every seed at the sizes of `make demo`, by train_with_lavt.py, and evaluates it by test.py.
Writes table.md, study.json and study.png. May be stopped at any time: the same command goes on where it was.
"""
import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))  # when run as a script

from utils.errors import InputError, UsageError, run
from utils.files import replacing
from utils.flags import ArgumentParser, at_least, make_folder
from utils.progress import progress_bar, say
from utils.text import counted

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
VARIANTS = {  # and the flags of train_with_lavt.py that make each
    "joint": [],
    "fuser_text_none": ["--fuser_text", "none"],
    "detach_fused": ["--detach_fused"],
    "average": ["--prefusion_model", "average"],
    "maximum": ["--prefusion_model", "maximum"],
    "visible": ["--prefusion_model", "visible"],
    "infrared": ["--prefusion_model", "infrared"],
    "w_focus": ["--w_focus", "0.3"],
}
SCENES = ["--train", "1600", "--val", "96", "--test", "160", "--size", "96", "--seed", "1"]
RECIPE = ["--img_size", "96", "-b", "8", "-j", "1", "--channels-last", "--swin_type", "micro", "--prefusion_base_ch",
          "8", "--lr_seg", "1e-3", "--lr_pf", "1e-3", "--pretrained_swin_weights", "", "--init_from_lavt_one", "",
          "--eval_vis_dir", ""]
LAST_LINES = 5  # of the output of a command that failed


@dataclass(frozen=True)
class Trial:
    """A variant trained with a seed, in a folder of its own."""

    variant: str
    seed: int
    folder: str

    @property
    def finished(self) -> str:
        """The empty file that says that training and evaluation are complete."""
        return os.path.join(self.folder, "finished")

    def epochs_done(self) -> int:
        """Epochs that training has finished."""
        with contextlib.suppress(FileNotFoundError), open(os.path.join(self.folder, "log.jsonl"), "rb") as log:
            return len(log.readlines())
        return 0


class Stopped(Exception):
    """The study was asked to stop, or another trial failed."""


class Commands:
    """Runs commands, each with its output in a file, and stops all of them when asked.

    Args:
        threads: of PyTorch in each.
    """

    def __init__(self, threads: int):
        self.environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
        self.running: set[subprocess.Popen] = set()
        self.stopped = False
        self.lock = threading.Lock()

    def run(self, log: str, script: str, *arguments: str) -> None:
        """Run a script of the project to its end.

        Raises:
            Stopped: the commands were stopped.
            InputError: it failed; the last lines of its output say why.
        """
        with open(log, "a", encoding="utf-8") as output:
            with self.lock:
                if self.stopped:
                    raise Stopped
                # In a session of its own, so that Ctrl-C reaches it once, from `stop`.
                process = subprocess.Popen([sys.executable, script, *arguments], cwd=ROOT, env=self.environment,
                                           stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
                self.running.add(process)
            code = process.wait()
        with self.lock:
            self.running.remove(process)
        if self.stopped:
            raise Stopped
        if code:
            with open(log, encoding="utf-8", errors="replace") as file:
                last = "\n".join(file.read().splitlines()[-LAST_LINES:])
            raise InputError(f"{script} ended with exit code {code}; the end of {log}:\n{last}")

    def stop(self) -> None:
        """Ask all commands to end; a training saves where it is."""
        with self.lock:
            self.stopped = True
            for process in self.running:
                process.terminate()


def variants(text: str) -> list[str]:
    """An argparse type: names of VARIANTS, separated by commas."""
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in VARIANTS:
            raise argparse.ArgumentTypeError(f"there is no variant {name!r}; there are {', '.join(VARIANTS)}")
    return list(dict.fromkeys(names))


def build_parser() -> ArgumentParser:
    parser = ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False,
                            formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--variants", type=variants, default=",".join(VARIANTS), help="which, separated by commas")
    parser.add_argument("--seeds", type=at_least(1, most=1000), default=3, help="how many: 0, 1, …")
    parser.add_argument("--epochs", type=at_least(1), default=3, help="of each training")
    parser.add_argument("--out", default="runs/study", metavar="DIR", help="folder for everything that is written")
    parser.add_argument("--device", default="cpu", help="as in train_with_lavt.py")
    parser.add_argument("--jobs", type=at_least(1, most=256), default=os.cpu_count(), metavar="N",
                        help="trials that run at the same time; they share the cores")
    return parser


def main() -> None:
    args = build_parser().parse_args()
    args.out = os.path.abspath(args.out)
    make_folder(args.out, "--out")
    check_settings(args)
    commands = Commands(threads=max(1, os.cpu_count() // args.jobs))
    make_scenes(args, commands)
    trials = [Trial(variant, seed, os.path.join(args.out, f"{variant}_{seed}"))
              for seed in range(args.seeds) for variant in args.variants]  # so that a study cut short is a fair one
    run_trials(trials, args, commands)

    from study_report import write_report  # only now: pandas and matplotlib take a second

    results = {(trial.variant, trial.seed): os.path.join(trial.folder, "test") for trial in trials}
    table = write_report(results, args.out)
    print(f"{table}\nin {os.path.relpath(args.out)}: table.md, study.json, study.png")


def check_settings(args: argparse.Namespace) -> None:
    """Refuse to continue a study that was begun in this folder with other settings; note those of a new one."""
    path = os.path.join(args.out, "settings.json")
    settings = {"epochs": args.epochs, "device": args.device, "scenes": SCENES, "recipe": RECIPE}
    flags = {name: VARIANTS[name] for name in args.variants}
    known = {}
    if os.path.exists(path):
        with open(path, encoding="utf-8") as file:
            known = json.load(file)
        changed = [name for name, value in settings.items() if known[name] != value]
        changed += [name for name in flags if known["variants"].get(name, flags[name]) != flags[name]]
        if changed:
            raise UsageError(f"{args.out} holds a study with other settings ({', '.join(changed)}); name another "
                             "folder, or delete that one", "out")
    with replacing(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        json.dump(settings | {"variants": known.get("variants", {}) | flags}, file, indent=1)


def make_scenes(args: argparse.Namespace, commands: Commands) -> None:
    """Write the data set, unless it is there."""
    folder = os.path.join(args.out, "data")
    if not os.path.exists(folder):
        say("writing the scenes")
        commands.run(os.path.join(args.out, "data.log"), "data/synthetic.py", "--out", f"{folder}.part", *SCENES)
        os.rename(f"{folder}.part", folder)


def run_trials(trials: list[Trial], args: argparse.Namespace, commands: Commands) -> None:
    """Train and evaluate all trials that are not finished, `--jobs` at a time, with a bar.

    Raises:
        InputError: one failed. The others have been stopped; what is finished stays.
        KeyboardInterrupt: Ctrl-C or SIGTERM; likewise.
    """
    todo = [trial for trial in trials if not os.path.exists(trial.finished)]
    if len(todo) < len(trials):
        say(f"{len(trials) - len(todo)} of {counted(len(trials), 'trial')} are finished already")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    parts = args.epochs + 1  # the last is the evaluation
    before = sum(min(trial.epochs_done(), args.epochs) for trial in todo)
    with ThreadPoolExecutor(args.jobs) as pool, progress_bar(total=len(todo) * parts, initial=before, unit="epoch",
                                                             desc="study", smoothing=0) as bar:
        futures = [pool.submit(run_trial, trial, args, commands) for trial in todo]
        try:
            while any(not future.done() for future in futures):
                time.sleep(1)
                bar.n = sum(parts if os.path.exists(trial.finished) else min(trial.epochs_done(), args.epochs)
                            for trial in todo)
                bar.update(0)
        except KeyboardInterrupt:
            say("stopping; the same command goes on from here")
            raise
        finally:  # nothing is left to stop unless this was cut short
            commands.stop()
    errors = [error for future in futures if (error := future.exception()) and not isinstance(error, Stopped)]
    if errors:
        raise errors[0]


def run_trial(trial: Trial, args: argparse.Namespace, commands: Commands) -> None:
    """Train, from where an earlier run was stopped, and evaluate; if that fails, stop the others."""
    try:
        train_and_test(trial, args, commands)
    except BaseException:
        commands.stop()
        raise


def train_and_test(trial: Trial, args: argparse.Namespace, commands: Commands) -> None:
    os.makedirs(trial.folder, exist_ok=True)
    data = os.path.join(args.out, "data")
    if trial.epochs_done() < args.epochs:
        commands.run(
            os.path.join(trial.folder, "train.log"), "train_with_lavt.py", *RECIPE, *VARIANTS[trial.variant],
            "--train_parquet", f"{data}/mm_ris_train.parquet", "--val_parquet", f"{data}/mm_ris_val.parquet",
            "--bert_tokenizer", f"{data}/bert", "--ck_bert", f"{data}/bert", "--epochs", str(args.epochs),
            "--seed", str(trial.seed), "--device", args.device, "--output-dir", trial.folder, "--resume", "auto")
    commands.run(
        os.path.join(trial.folder, "test.log"), "test.py", "--ckpt", f"{trial.folder}/model_best_lavt.pth",
        "--test_parquet", f"{data}/mm_ris_test.parquet", "--out_dir", f"{trial.folder}/test", "-j", "1",
        "--device", args.device, "--text_ablation", "--fusion_metrics")
    open(trial.finished, "wb").close()


if __name__ == "__main__":
    run(main)
