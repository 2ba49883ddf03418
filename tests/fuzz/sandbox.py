"""Tries inputs in child processes, and sees whether each ends as it should: done, or refused in one sentence.

A child is a fork of this process, so that a crash, a hang or a growing memory ends the child alone. What is not right:
a traceback, an exit code other than 0, 1 or 2, more than a sentence on stderr, control characters on the terminal, a
program that is started, a file written outside the output folder, a temporary or incomplete file left behind, more
of memory, or of time on the processor, than the target's `megabytes` and `seconds`.
"""
import contextlib
import faulthandler
import io
import json
import logging
import math
import os
import re
import resource
import shutil
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

from checks import ROOT, about_files, about_output, about_sentence, listing, place

from utils.errors import run

BATCH = 500            # inputs of a child
MISTAKE = "the fuzzer itself failed"
PROGRAMS = {"git"}     # that may be started: training records the commit


class Unmakeable(Exception):
    """An edit has led to something that cannot be written down, such as a file name with a slash."""


class Target(NamedTuple):
    """A part of the program that reads what others wrote.

    Attributes:
        seeds: makes inputs that are right, from which others are made by `mutate`.
        mutate: (rng, value) to a value with one edit.
        prepare: (value, folder) writes files to `folder`/in and returns the calls to try; they may write to
            `folder`/out.
        tried: how many inputs the test suite tries.
        seconds: on the processor, that an input may take.
        megabytes: of memory, likewise; the largest image that is read takes half of the default.
        allowed: what a call may raise, with one sentence; if empty, it may end as `utils.errors.run` lets scripts end.
        anywhere: the input itself may name the place to write to.
    """

    name: str
    seeds: Callable[[], list]
    mutate: Callable[..., Any]
    prepare: Callable[[Any, Path], list[Callable[[], Any]]]
    tried: int
    seconds: float = 10
    megabytes: int = 2048
    allowed: tuple[type[Exception], ...] = ()
    anywhere: bool = False


class Outcome(NamedTuple):
    """How an input ended: `kind` is done, refused, unmakeable, or else names a failure and its place."""

    number: int
    kind: str
    detail: str = ""

    @property
    def failed(self) -> bool:
        return self.kind not in ("done", "refused", "unmakeable")


def outcomes(target: Target, make: Callable[[int], Any], numbers: list[int]) -> Iterator[Outcome]:
    """Try the inputs `make(number)`, one after the other."""
    numbers = list(numbers)
    while numbers:
        with tempfile.TemporaryDirectory(prefix="fuzz.") as folder:
            reader, writer = os.pipe()
            child, ended = os.fork(), False
            if not child:
                os.close(reader)
                _serve(target, make, numbers[:BATCH], Path(folder), writer)
            os.close(writer)
            try:
                with open(reader, encoding="utf-8") as lines:
                    for said in map(json.loads, lines):
                        if ended := said is None:
                            break
                        yield Outcome(numbers.pop(0), *said)
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)
                _, status = os.waitpid(child, 0)
            if not ended:
                dump = Path(folder, "stderr").read_text("utf-8", "replace")
                yield Outcome(numbers.pop(0), _ending(status, dump), dump[-5000:])


def _ending(status: int, dump: str) -> str:
    """What has ended a child, and where, from the stack that faulthandler wrote."""
    places = re.findall(rf'File "{ROOT}/([^"]+)", line \d+ in (\S+)', dump)
    where = next((f"{file} {function}" for file, function in places if not file.startswith(("tests/", ".venv/"))), "?")
    number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else signal.SIGXCPU
    return f"{'hang' if number == signal.SIGXCPU else signal.Signals(number).name} at {where}"


def _serve(target: Target, make, numbers: list[int], folder: Path, writer: int) -> None:
    """The child: try the inputs, write a line about each, and null at the end; never returns."""
    try:
        watch = _enter(folder, target)
        start = _memory()
        resource.setrlimit(resource.RLIMIT_AS, (_virtual() + 3 * target.megabytes * 2**20, resource.RLIM_INFINITY))
        for number in numbers:
            _clear(folder)
            _limit_time(target.seconds)
            kind, detail = _try(target, make(number), folder, watch)
            grown = _memory() - start
            if grown > target.megabytes and kind in ("done", "refused"):
                kind, detail = f"memory beyond {target.megabytes} MB", f"{grown} MB"
            os.write(writer, f"{json.dumps([kind, detail])}\n".encode())
            if grown > target.megabytes / 2:  # the peak never falls; the next child starts anew
                break
    except BaseException:
        os.write(writer, f"{json.dumps([MISTAKE, traceback.format_exc()])}\n".encode())
    os.write(writer, b"null\n")
    os._exit(0)


def _limit_time(seconds: float) -> None:
    """End this process after so many seconds on the processor, or ten times as many by the clock, if it waits."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    limit = math.ceil(used.ru_utime + used.ru_stime + seconds)
    resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.RLIM_INFINITY))  # then SIGXCPU
    faulthandler.dump_traceback_later(10 * seconds, file=2, exit=True)


def _enter(folder: Path, target: Target) -> "_Watch":
    """Give the child its own output, temporary folder and limits."""
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(folder / name, os.O_RDWR | os.O_CREAT | os.O_APPEND), descriptor)
    sys.stdin, sys.stdout, sys.stderr = io.StringIO(), _stream(1), _stream(2)
    sys.dont_write_bytecode = True
    faulthandler.enable(file=2)
    faulthandler.register(signal.SIGXCPU, file=2, chain=True)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**29, 2**29))
    tempfile.tempdir = os.environ["TMPDIR"] = str(folder / "tmp")
    logging.getLogger().handlers = [logging.NullHandler()]  # for calls; scripts set up their own
    watch = _Watch(folder, target.anywhere)
    sys.addaudithook(watch)
    return watch


def _stream(descriptor: int) -> io.TextIOWrapper:
    """Standard output or error, as Python opens it."""
    return io.TextIOWrapper(io.FileIO(descriptor, "w", closefd=False), "utf-8",
                            "strict" if descriptor == 1 else "backslashreplace", write_through=True)


class _Watch:
    """An audit hook that notes programs being started, and notes and forbids writing outside of `folder`."""

    def __init__(self, folder: Path, anywhere: bool):
        self.folder = os.path.realpath(folder)
        self.inside = (os.path.join(self.folder, "out"), os.path.join(self.folder, "tmp"))
        self.anywhere = anywhere
        self.active, self.found = False, []

    def __call__(self, event: str, args: tuple) -> None:
        if not self.active:
            return
        if event in ("subprocess.Popen", "os.posix_spawn", "os.exec"):
            if os.path.basename(os.fsdecode(args[0])) not in PROGRAMS:
                self.found.append(f"starts the program {args[0]}")
        elif event in ("os.system", "socket.connect", "socket.getaddrinfo"):
            self.found.append(f"{event} {args}")
        elif event == "open":
            if isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC):
                self._write(args[0])
        elif event in ("os.mkdir", "os.remove", "os.rmdir", "os.truncate"):
            self._write(args[0])
        elif event in ("os.rename", "os.link", "os.symlink"):
            self._write(args[1])

    def _write(self, path) -> None:
        if isinstance(path, int) or (place := os.path.realpath(os.fsdecode(path))).startswith("/dev/"):
            return
        if not any(place == folder or place.startswith(folder + os.sep) for folder in self.inside):
            if not self.anywhere:
                self.found.append(f"writes to {os.path.relpath(place, self.folder)}")
            raise PermissionError(13, "Permission denied", os.fsdecode(path))


def _clear(folder: Path) -> None:
    """Make the folders of an input anew, and go to one within the output folder, so that ../../x is there too."""
    for name in ("in", "out", "tmp"):
        shutil.rmtree(folder / name, ignore_errors=True)
        os.mkdir(folder / name)
    os.makedirs(folder / "out/a/b")
    os.chdir(folder / "out/a/b")


def _try(target: Target, value, folder: Path, watch: _Watch) -> tuple[str, str]:
    """Kind and detail of the outcome of one input."""
    try:
        calls = target.prepare(value, folder)
    except Unmakeable:
        return "unmakeable", ""
    before, kind = listing(folder), "done"
    for call in calls:
        watch.found, watch.active = [], True
        try:
            ending = _call(call, target.allowed)
        finally:
            watch.active = False
        if watch.found:
            return re.sub(r"\d+", "N", watch.found[0]), watch.found[0]
        if found := about_output(folder) or about_files(folder, before):
            return found
        if ending[0] not in ("done", "refused"):
            return ending
        kind = max(kind, ending[0])  # refused, if any of the calls is
    return kind, ""


def _call(call: Callable[[], Any], allowed: tuple[type[Exception], ...]) -> tuple[str, str]:
    """Kind and detail of how a call ends."""
    for descriptor in (1, 2):
        os.ftruncate(descriptor, 0)
    try:
        with mock.patch.object(sys, "stdout", _stream(1)), mock.patch.object(sys, "stderr", _stream(2)):
            call() if allowed else run(call)
    except SystemExit as end:
        return ("done" if not end.code else "refused" if end.code in (1, 2) else f"exit code {end.code}"), ""
    except allowed as error:
        if complaint := about_sentence(str(error)):
            return f"{complaint} in a {type(error).__name__} {place(error)}", str(error)[:5000]
        return "refused", ""
    except BaseException as error:
        return f"{type(error).__name__} {place(error)}", traceback.format_exc()[-5000:]
    return "done", ""


def command(script: str, *words: str) -> Callable[[], None]:
    """A call that runs a script of the project, as `python script words…` does."""
    path = ROOT / script
    code = compile(path.read_text("utf-8"), path, "exec")

    def call() -> None:
        with contextlib.ExitStack() as stack:
            for owner, name, value in ((sys, "argv", [script, *words]), (sys, "path", [str(path.parent), *sys.path]),
                                       (logging.getLogger(), "handlers", []), (signal, "signal", lambda *_: None)):
                stack.enter_context(mock.patch.object(owner, name, value))
            exec(code, {"__name__": "__main__", "__package__": None, "__file__": str(path)})
    return call


def _memory() -> int:
    """The most that this process has had in memory so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def _virtual() -> int:
    """Address space of this process, bytes."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
