"""Files are written whole or not at all, wherever another program or person has been at work in the folder."""
import errno
import os
import subprocess
import sys

import pytest

from utils import files
from utils.errors import InputError
from utils.files import replacing


@pytest.fixture(autouse=True)
def forget_folders():
    """Leftovers are looked for once in each folder by a process."""
    files.remove_leftovers.cache_clear()


def leftover(folder, process: int, machine: str | None = None):
    """A temporary file as a process leaves it that is killed while it writes."""
    path = folder / f".writing-{machine or files.machine_name()}-{process}-{'0' * 16}.tmp"
    path.write_text("half")
    return path


def test_a_file_is_written_with_the_mode_of_the_umask_and_nothing_else_is_left(tmp_path):
    before = os.umask(0o027)
    try:
        with replacing(str(tmp_path / "a.txt")) as temporary, open(temporary, "w", encoding="utf-8") as file:
            assert os.path.dirname(temporary) == str(tmp_path)
            file.write("whole")
    finally:
        os.umask(before)
    assert (tmp_path / "a.txt").read_text() == "whole" and (tmp_path / "a.txt").stat().st_mode & 0o777 == 0o640
    assert os.listdir(tmp_path) == ["a.txt"]


def test_two_writers_of_one_file_do_not_share_a_temporary_file(tmp_path):
    path = str(tmp_path / "a.txt")
    with replacing(path) as first, replacing(path) as second:
        assert first != second
        for temporary in (first, second):
            with open(temporary, "w", encoding="utf-8") as file:
                file.write("whole")
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_planted_symbolic_link_is_not_followed(tmp_path, monkeypatch):
    """Even under the very name that is drawn."""
    (tmp_path / "mine.txt").write_text("mine")
    (tmp_path / "out").mkdir()
    monkeypatch.setattr(files.secrets, "token_hex", lambda _: "0" * 16)
    link = tmp_path / "out" / f".writing-{files.machine_name()}-{os.getpid()}-{'0' * 16}.tmp"
    link.symlink_to(tmp_path / "mine.txt")
    with pytest.raises(InputError, match=r"a\.txt: it cannot be written \(File exists\)"), \
            replacing(str(tmp_path / "out" / "a.txt")):
        raise AssertionError("the block was entered")
    assert (tmp_path / "mine.txt").read_text() == "mine"


def test_a_name_as_long_as_a_file_system_allows_can_be_written(tmp_path):
    path = tmp_path / ("x" * 255)
    with replacing(str(path)) as temporary, open(temporary, "w", encoding="utf-8") as file:
        file.write("whole")
    assert path.read_text() == "whole"


def test_leftovers_of_killed_processes_are_removed_and_others_are_not(tmp_path):
    killed = subprocess.Popen([sys.executable, "-c", ""])
    killed.wait()
    dead, alive = leftover(tmp_path, killed.pid), leftover(tmp_path, os.getppid())
    elsewhere, old = leftover(tmp_path, killed.pid, "f" * 8), leftover(tmp_path, 2, "f" * 8)
    os.utime(old, (0, 0))
    impossible = leftover(tmp_path, 9_999_999_999)
    other = tmp_path / ".writing-mine.tmp"
    other.write_text("mine")
    with replacing(str(tmp_path / "a.txt")):
        pass
    assert [path.exists() for path in (dead, alive, elsewhere, old, impossible, other)] == [
        False, True, True, False, True, True]


def test_an_error_of_reading_is_not_called_one_of_writing(tmp_path):
    (tmp_path / "out.txt").write_text("before")
    for reading, message in (((tmp_path / "absent.txt").read_text, "absent.txt: No such file"),
                             (lambda: os.read(os.open("/proc/self/mem", os.O_RDONLY), 1), "Input/output error")):
        with pytest.raises(InputError, match=rf"out\.txt: it was not written, because of .*\(.*{message}"), \
                replacing(str(tmp_path / "out.txt")):
            reading()
    assert os.listdir(tmp_path) == ["out.txt"] and (tmp_path / "out.txt").read_text() == "before"


def test_a_reader_of_the_output_that_goes_away_is_no_error_of_the_file(tmp_path):
    (tmp_path / "a.txt").write_text("before")
    with pytest.raises(BrokenPipeError), replacing(str(tmp_path / "a.txt")):
        raise BrokenPipeError
    assert os.listdir(tmp_path) == ["a.txt"] and (tmp_path / "a.txt").read_text() == "before"


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS])
def test_what_no_reading_can_end_with_is_an_error_of_writing(code, tmp_path):
    with pytest.raises(InputError, match=r"a\.txt: it cannot be written"), replacing(str(tmp_path / "a.txt")):
        raise OSError(code, os.strerror(code))


def test_a_full_disk_and_an_absent_folder_are_errors_of_writing(tmp_path):
    with pytest.raises(InputError, match=r"a\.txt: it cannot be written \(No space left on device\)"), \
            replacing(str(tmp_path / "a.txt")), open("/dev/full", "w", encoding="utf-8") as full:
        full.write("x")
    with pytest.raises(InputError, match=r"a\.txt: it cannot be written \(No such file or directory\)"), \
            replacing(str(tmp_path / "absent" / "a.txt")):
        pass
    assert os.listdir(tmp_path) == []
