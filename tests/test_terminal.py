"""Odd terminals, environments and command lines: one sentence or the plain result, never a traceback."""
import argparse
import os
import subprocess
import sys
from functools import reduce

import pytest
from conftest import ROOT, in_process

from utils import distributed, errors, workers
from utils.errors import InputError, UsageError
from utils.flags import RANDOM_IF_EMPTY, ArgumentParser, at_least, heads_by_stage, image_size, require_existing, seed
from utils.text import printable, printable_value


def help_of(name: str, stdout=subprocess.PIPE, **environment) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, name, "--help"], cwd=ROOT, env=os.environ | environment, check=False,
                          stdout=stdout, stderr=subprocess.PIPE)


SCRIPTS = ("train_with_lavt.py", "test.py", "predict.py", "app.py", "compare.py", "utils/fetch_weights.py",
           "utils/plot_log.py",
           *(f"data/{name}.py" for name in ("add_fused", "build_parquet", "check_parquet", "merge_parquet",
                                            "synthetic")))


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_can_be_shown_in_a_terminal_that_only_has_ascii(script):
    shown = help_of(script, LC_ALL="C", PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert (shown.returncode, shown.stderr) == (0, b"") and b"options:" in shown.stdout


def test_a_pipe_that_is_closed_ends_help_quietly():
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as closed:
        shown = help_of("test.py", stdout=closed)
    assert (shown.returncode, shown.stderr) == (0, b"")


def test_a_full_disk_under_standard_output_is_one_sentence_and_exit_code_1():
    with open("/dev/full", "wb") as full:
        shown = help_of("test.py", stdout=full)
    assert shown.returncode == 1
    assert shown.stderr == b"error: standard output cannot be written (No space left on device)\n"


def run_main(main) -> int:
    with pytest.raises(SystemExit) as end:
        errors.run(main)
    return end.value.code


def test_escape_sequences_in_an_error_are_not_sent_to_the_terminal(capsys):
    def main():
        raise InputError("key \x1b]0;title\x07 \ud800 is absent", "resume")

    assert run_main(main) == 1
    assert capsys.readouterr().err == "error: --resume: key \\x1b]0;title\\x07 \\ud800 is absent\n"


def test_escape_sequences_in_names_of_files_are_not_sent_to_the_terminal(scenes, tmp_path):
    name = tmp_path / "\x1b[31mred\u202e"
    result = in_process("data/merge_parquet.py", scenes / "mm_ris_val.parquet", "--out", f"{name}.parquet")
    assert result.stdout.startswith(f"wrote {tmp_path}/\\x1b[31mred\\u202e.parquet: 6 rows")


def test_text_from_files_is_printed_on_one_line_and_cut():
    assert printable("a\x1b[31m\nb\t左\ud800") == "a\\x1b[31m\\nb\\t左\\ud800"
    assert printable("x" * 10 ** 6) == "x" * 200 + "…" and printable("x" * 200) == "x" * 200
    assert printable_value("a\n") == "'a\\n'" and "very large int" in printable_value(10 ** 5000)
    assert printable_value(reduce(lambda inner, _: [inner], range(10000), [])) == "a very large list"


@pytest.mark.parametrize(("kind", "text"), [
    (at_least(0), "-1"), (at_least(0), "٣"), (at_least(0), "9" * 400), (at_least(0), "9" * 5000), (at_least(0), "1e3"),
    (at_least(0, float), "nan"), (at_least(0, float), "inf"), (at_least(0, float), "1e39"), (at_least(0, most=3), "4"),
    (seed, str(2 ** 63)), (seed, "-1"), (image_size, "32"), (image_size, "9999999"), (image_size, "٩٦"),
    (heads_by_stage, "٤-4-4-4"), (heads_by_stage, "9" * 5000 + "-4-4-4"), (heads_by_stage, "4-4-4-4\n"),
])
def test_numbers_that_cannot_be_used_are_refused_in_a_short_sentence(kind, text):
    with pytest.raises(argparse.ArgumentTypeError) as refused:
        kind(text)
    assert len(str(refused.value)) < 200


def test_numbers_at_the_bounds_are_taken():
    assert seed(str(2 ** 63 - 1)) == 2 ** 63 - 1 and at_least(0, most=3)("3") == 3 and at_least(0, float)("0") == 0
    assert image_size("33") == 33 and image_size("16384") == 16384 and heads_by_stage("4-4-4-4") == "4-4-4-4"


def test_an_empty_path_is_refused_with_its_flag():
    with pytest.raises(UsageError, match="^--ckpt: the path is empty"):
        require_existing(argparse.Namespace(ckpt=""), "ckpt")
    require_existing(argparse.Namespace(**dict.fromkeys(RANDOM_IF_EMPTY, "")), *RANDOM_IF_EMPTY)


def test_an_unknown_flag_is_printed_without_escape_sequences(capsys):
    with pytest.raises(SystemExit):
        ArgumentParser().parse_args(["--x\x1b[31m"])
    assert capsys.readouterr().err == "error: unrecognized arguments: --x\\x1b[31m; see --help\n"


def test_what_follows_two_dashes_is_no_flag():
    parser = ArgumentParser(elsewhere={"--lr": "use --lr_seg"})
    parser.add_argument("--out-dir")
    parser.add_argument("name")
    for word in ("--lr", "--out_dir"):
        assert parser.parse_args(["--", word]).name == word


@pytest.mark.parametrize("number", ["x", "", "-1", "1.5", "٣", "9" * 5000])
def test_a_local_rank_that_is_no_number_is_refused(number, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("LOCAL_RANK", number)
    with pytest.raises(UsageError, match="^the environment variable LOCAL_RANK is "):
        distributed.local_rank()


def test_signals_that_a_system_lacks_are_not_needed(monkeypatch):
    for name in ("SIGUSR1", "SIGCHLD"):
        monkeypatch.delattr(workers.signal, name)
    monkeypatch.setattr(workers.signal, "signal", lambda *_: None)
    namespace = {}
    exec(compile((ROOT / "utils" / "workers.py").read_text(), "workers.py", "exec"), namespace)
    assert [number.name for number in namespace["STOPPING"]] == ["SIGTERM", "SIGINT"]
    namespace["end_workers"]()
