"""Fetching data and weights, from a stand-in for the hub on this machine: right place, checksum, going on, offline."""
import hashlib
import json
import os
import resource
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from utils.errors import InputError
from utils.fetch_weights import SOURCES, Part, Remote, choose, verified

SCRIPT = Path(__file__).resolve().parent.parent / "utils" / "fetch_weights.py"
COMMIT = "0123456789abcdef" * 2 + "01234567"


class Handler(BaseHTTPRequestHandler):
    """Answers the two questions that fetching asks: what is in a repository, and the bytes of a file."""

    def do_GET(self):
        hub, path = self.server, self.path.split("?")[0]
        if path.startswith("/api/"):
            siblings = [{"rfilename": name, "size": len(content),
                         "blobId": hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest(),
                         **({"lfs": {"sha256": hub.checksums.get(name) or hashlib.sha256(content).hexdigest(),
                                     "size": len(content), "pointerSize": 130}} if len(content) > 1000 else {})}
                        for name, content in hub.files.items()]
            repo = path.split("/", 3)[3]
            self.answer(json.dumps({"_id": "0" * 24, "id": repo, "sha": COMMIT, "siblings": siblings}).encode())
            return
        content = hub.files[path.split(f"/resolve/{COMMIT}/")[1]]
        hub.asked.append((path, self.headers["Range"]))
        if hub.broken:
            self.send_error(503)
            return
        start = int((self.headers["Range"] or "bytes=0-")[len("bytes="):-1])
        hub.broken = hub.cut_after is not None
        self.answer(content, start, hub.cut_after)

    def answer(self, content, start=0, cut_after=None):
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        self.wfile.write(content[start:][:cut_after])
        self.close_connection = True

    def log_message(self, *_):
        pass


@pytest.fixture
def hub():
    """A hub of any repository, always with the same `files`; `cut_after` breaks the line after so many bytes."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.files, server.checksums, server.asked, server.cut_after, server.broken = {}, {}, [], None, False
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def fetch(folder, port, *arguments):
    """The script as a person starts it in `folder`, with the hub at `port`."""
    environment = {name: value for name, value in os.environ.items()
                   if not name.upper().startswith("HF_") and not name.upper().endswith("_PROXY")}
    environment |= {"HF_ENDPOINT": f"http://127.0.0.1:{port}", "HF_HOME": str(folder / "hf")}
    return subprocess.run([sys.executable, str(SCRIPT), *arguments], cwd=folder, env=environment, check=False,
                          capture_output=True, text=True)


def test_everything_lands_where_the_default_paths_look_and_its_checksum_is_shown(tmp_path, hub):
    hub.files = {"README.md": b"#", "parts/mm_ris_test.parquet": b"PAR1" * 500, "model_best_lavt.pth": b"w" * 5000,
                 "config.json": b"{}", "vocab.txt": b"[PAD]\n", "model.safetensors": b"s" * 2000, "flax.msgpack": b"f"}
    done = fetch(tmp_path, hub.server_port, "--what", "mm-ris", "ris-fusion", "bert")
    assert done.returncode == 0, done.stderr
    bert = "bert/pretrained_weights/bert-base-uncased"
    for path, name in {"data/mm_ris_test.parquet": "parts/mm_ris_test.parquet",
                       "ckpts/risfusion/model_best_lavt.pth": "model_best_lavt.pth",
                       f"{bert}/config.json": "config.json", f"{bert}/vocab.txt": "vocab.txt",
                       f"{bert}/model.safetensors": "model.safetensors"}.items():
        assert (tmp_path / path).read_bytes() == hub.files[name]
        assert f"{path}  sha256 {hashlib.sha256(hub.files[name]).hexdigest()}" in done.stdout
    found = [path for path in tmp_path.rglob("*") if path.is_file() and "hf" not in path.parts]
    assert len(found) == 5 and COMMIT[:8] in done.stdout


def test_a_broken_download_goes_on_where_it_stopped(tmp_path, hub):
    content = os.urandom(1000) * 24_000  # the hub's library hands on 10 MB at a time
    hub.files, hub.cut_after = {"model_best_lavt.pth": content}, 15_000_000
    first = fetch(tmp_path, hub.server_port, "--what", "ris-fusion")
    target = tmp_path / "ckpts" / "risfusion" / "model_best_lavt.pth"
    size = target.with_name("model_best_lavt.pth.part").stat().st_size
    assert first.returncode == 1 and "Traceback" not in first.stderr and not target.exists()
    assert f"{size} of 24000000 bytes are here" in first.stderr and size > 0
    hub.cut_after, hub.broken = None, False
    hub.asked.clear()
    second = fetch(tmp_path, hub.server_port, "--what", "ris-fusion")
    assert second.returncode == 0, second.stderr
    assert [span for _, span in hub.asked] == [f"bytes={size}-"]
    assert target.read_bytes() == content and not list(target.parent.glob("*.part"))

    hub.asked.clear()
    third = fetch(tmp_path, hub.server_port, "--what", "ris-fusion")
    assert third.returncode == 0 and not hub.asked, "what is there is not fetched again"
    assert hashlib.sha256(content).hexdigest() in third.stdout


def test_a_download_with_another_checksum_than_the_listing_is_not_kept(tmp_path, hub):
    hub.files, hub.checksums = {"a.parquet": b"x" * 2000}, {"a.parquet": "0" * 64}
    done = fetch(tmp_path, hub.server_port, "--what", "mm-ris", "--to", "sets")
    assert done.returncode == 1 and "checksum" in done.stderr and "Traceback" not in done.stderr
    assert list((tmp_path / "sets").iterdir()) == []


def test_another_file_of_the_name_is_left_alone(tmp_path, hub):
    hub.files = {"a.parquet": b"x" * 2000}
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.parquet").write_bytes(b"mine")
    done = fetch(tmp_path, hub.server_port, "--what", "mm-ris")
    assert done.returncode == 1 and "data/a.parquet is there, but is not the hub's" in done.stderr
    assert (tmp_path / "data" / "a.parquet").read_bytes() == b"mine"


def test_offline_the_message_says_what_to_do_by_hand(tmp_path, hub):
    port = hub.server_port
    hub.shutdown()
    hub.server_close()  # nobody listens there any more
    done = fetch(tmp_path, port, "--what", "ris-fusion")
    assert done.returncode == 1 and "Traceback" not in done.stderr and not (tmp_path / "ckpts").exists()
    for part in ("ronniejiangC/RIS-FUSION", "hf download", "model_best_lavt.pth into ckpts/risfusion/"):
        assert part in done.stderr


def listing(*names):
    return [Remote(name, 1, None, "") for name in names]


def test_the_only_checkpoint_of_a_repository_is_taken_whatever_its_name():
    chosen = choose(SOURCES["ris-fusion"], listing("README.md", "weights/epoch9.pth"), [])
    assert {name: file.name for name, file in chosen.items()} == {"model_best_lavt.pth": "weights/epoch9.pth"}


def test_of_several_checkpoints_the_one_with_the_usual_name_is_taken_or_a_person_chooses():
    assert choose(SOURCES["ris-fusion"], listing("a.pth", "x/model_best_lavt.pth"), [])["model_best_lavt.pth"].name == \
        "x/model_best_lavt.pth"
    with pytest.raises(InputError, match="--only: a.pth, b.pth"):
        choose(SOURCES["ris-fusion"], listing("a.pth", "b.pth"), [])
    assert choose(SOURCES["ris-fusion"], listing("a.pth", "b.pth"), ["b*"])["model_best_lavt.pth"].name == "b.pth"


def test_a_repository_without_such_files_is_listed():
    with pytest.raises(InputError, match=r"no file like \*.parquet; it has README.md, train.csv"):
        choose(SOURCES["mm-ris"], listing("README.md", "train.csv"), [])


def test_two_files_of_one_name_in_different_folders_both_come():
    assert set(choose(SOURCES["mm-ris"], listing("train/0.parquet", "test/0.parquet"), [])) == {
        "train_0.parquet", "test_0.parquet"}


def test_a_symbolic_link_in_the_place_of_a_download_is_not_followed(tmp_path, hub):
    hub.files = {"a.parquet": b"x" * 2000}
    (tmp_path / "data").mkdir()
    (tmp_path / "mine.txt").write_text("mine")
    (tmp_path / "data" / "a.parquet.part").symlink_to(tmp_path / "mine.txt")
    done = fetch(tmp_path, hub.server_port, "--what", "mm-ris")
    assert done.returncode == 1 and "a.parquet.part is a symbolic link, which is not followed" in done.stderr
    assert (tmp_path / "mine.txt").read_text() == "mine" and not hub.asked


def test_a_symbolic_link_that_appears_after_the_look_for_one_is_not_followed(tmp_path, monkeypatch):
    (tmp_path / "mine.txt").write_text("mine")
    (tmp_path / "a.part").symlink_to("mine.txt")
    monkeypatch.setattr(os.path, "islink", lambda _: False)
    with pytest.raises(InputError, match=r"a\.part: it cannot be written"):
        Part(str(tmp_path / "a.part"))


def test_two_downloads_do_not_write_to_one_file(tmp_path, hub):
    hub.files = {"a.parquet": b"x" * 2000}
    (tmp_path / "data").mkdir()
    with Part(str(tmp_path / "data/a.parquet.part")):
        done = fetch(tmp_path, hub.server_port, "--what", "mm-ris")
    assert done.returncode == 1 and "a.parquet.part: another process is downloading to this file" in done.stderr
    assert not hub.asked and fetch(tmp_path, hub.server_port, "--what", "mm-ris").returncode == 0


def test_a_download_that_cannot_be_written_says_so():
    with Part("/dev/full") as part, pytest.raises(InputError, match=r"^/dev/full: it cannot be written \(No space"):
        part.write(b"x")
    with pytest.raises(InputError, match=r"^/dev/null/x.part: it cannot be written \(Not a directory"):
        Part("/dev/null/x.part")


def test_a_download_is_written_whole_though_the_system_may_take_less_at_a_time(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Part(str(tmp_path / "a.part")) as part:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))  # the system takes 1000 of the bytes, then none
        try:
            with pytest.raises(InputError, match=r"a\.part: it cannot be written \(File too large"):
                part.write(b"x" * 2000)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert part.write(b"y" * 2000) == 2000
    assert (tmp_path / "a.part").read_bytes() == b"x" * 1000 + b"y" * 2000


def test_a_file_that_cannot_be_read_says_so():
    with pytest.raises(InputError, match=r"^/proc/self/mem: it cannot be read \(Input/output error"):
        verified("/proc/self/mem", Remote("mem", 0, None, ""))
