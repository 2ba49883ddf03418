"""Data sets by URL: the same samples as from the file, few requests, and one sentence where it cannot be reached."""
import gc
import json
import logging
import multiprocessing
import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import in_process, train
from rows import make_row, same_sample, tiny_tokenizer, write
from torch.utils.data import DataLoader

from data import MMRISDataset, epoch_order, evaluation_loader, training_loader
from data.row_cache import cache_path
from utils.errors import InputError

ROWS = 12
REPO = "datasets/me/night"


class Handler(BaseHTTPRequestHandler):
    """What the hub answers to its file system: that a repository is there, what is in it, and ranges of its files."""

    def do_GET(self):
        hub, path = self.server, self.path.split("?")[0]
        if f"/{REPO}" not in path:
            self.answer(404, b"", **{"X-Error-Code": "RepoNotFound"})
        elif "/resolve/" in path:
            content = hub.files[path.split("/resolve/main/")[1]]
            start, stop = map(int, self.headers["Range"].removeprefix("bytes=").split("-"))
            hub.asked.append((start, stop))
            if hub.asked[hub.answers:]:
                self.send_error(404)
            else:
                self.answer(206, content[start:stop + 1])
        elif "/tree/" in path:
            self.answer(200, json.dumps([{"type": "file", "path": name, "size": len(content), "oid": f"{hash(content)}"}
                                         for name, content in hub.files.items()]).encode())
        else:
            self.answer(200, json.dumps({"id": "me/night", "sha": "0" * 40, "siblings": []}).encode())

    def answer(self, status, content, **headers):
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(monkeypatch):
    """A hub with one repository of the given `files`; `asked` are the ranges read, `answers` how many it grants."""
    from huggingface_hub import constants

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.files, server.asked, server.answers = {}, [], 10**9
    threading.Thread(target=server.serve_forever, daemon=True).start()
    usual, here = constants.ENDPOINT, f"http://127.0.0.1:{server.server_port}"
    for name in ("ENDPOINT", "HUGGINGFACE_CO_URL_TEMPLATE"):
        monkeypatch.setattr(constants, name, getattr(constants, name).replace(usual, here))
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return tiny_tokenizer(tmp_path_factory.mktemp("bert"))


@pytest.fixture
def path(tmp_path):
    (tmp_path / "data").mkdir()
    return write(tmp_path / "data" / "a.parquet", [make_row(i) for i in range(ROWS)], 4)


@pytest.fixture
def no_copies_left():
    """fsspec removes its copies of files whenever it tidies up, which may be in a process that another test forks."""
    yield
    fsspec.get_filesystem_class("simplecache").clear_instance_cache()
    gc.collect()


def opened(path, tokenizer, **options):
    return MMRISDataset(path, tokenizer, 40, **options)


def rows_of(loader):
    return sorted(row for batch in loader for row in batch["row"].tolist())


@pytest.mark.parametrize("name", ["file://{}", "simplecache::file://{}", "memory://a.parquet", "file://{}/.."])
def test_samples_by_url_are_those_of_the_file(name, path, tokenizer, no_copies_left):
    with fsspec.open("memory://a.parquet", "wb") as file:
        file.write(Path(path).read_bytes())
    url = f"file://{os.path.dirname(path)}" if name.endswith("..") else name.format(path)
    by_url, plain = opened(url, tokenizer), opened(path, tokenizer)
    assert by_url.questions == plain.questions and by_url.indices == plain.indices
    for row in (5, 0, ROWS - 1):
        same_sample(by_url[row], plain[row])


def test_the_hub_is_asked_once_for_each_column_of_a_row_group(hub, path, tokenizer):
    hub.files = {"parts/a.parquet": Path(path).read_bytes(), "README.md": b"#"}
    dataset = opened(f"hf://{REPO}/parts/a.parquet", tokenizer)
    hub.asked.clear()
    batches = list(evaluation_loader(dataset, 3))
    assert sum(len(batch["row"]) for batch in batches) == ROWS
    assert len(hub.asked) == len(set(hub.asked)) == 3 * pq.read_metadata(path).num_row_groups
    assert not Path("mm_ris_test.parquet").exists()
    for row in (7, 2):
        same_sample(dataset[row], opened(path, tokenizer)[row])


def test_a_training_epoch_reads_each_row_group_once_and_a_copy_reads_the_hub_no_more(hub, path, tokenizer, tmp_path,
                                                                                     caplog):
    hub.files = {"a.parquet": Path(path).read_bytes()}
    url = f"hf://{REPO}/a.parquet"
    dataset = opened(url, tokenizer, cache_dir="")
    loader = training_loader(dataset, 2)
    assert "read from a URL: rows are shuffled only within parts of 67 MB; name a folder for a copy" in caplog.text
    hub.asked.clear()
    assert rows_of(loader) == list(range(ROWS))
    assert len(hub.asked) == len(set(hub.asked)) == 9

    copied = opened(url, tokenizer, cache_dir=str(tmp_path / "cache"))
    assert os.listdir(tmp_path / "cache") == [os.path.basename(cache_path(url, str(tmp_path / "cache")))]
    assert np.array_equal(epoch_order(copied, 3, 1), np.random.default_rng([3, 1]).permutation(ROWS))
    hub.asked.clear()
    assert rows_of(training_loader(copied, 2)) == list(range(ROWS)) and not hub.asked
    caplog.set_level(logging.INFO)
    opened(url, tokenizer, cache_dir=str(tmp_path / "cache"))
    assert "a copy in small ones is written" not in caplog.text


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_worker_processes_open_the_url_themselves(method, path, tokenizer):
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"this system starts no process by {method}")
    dataset = opened(f"file://{path}", tokenizer)
    dataset[0]
    loader = DataLoader(dataset, 3, num_workers=1, multiprocessing_context=method, collate_fn=rows_in)
    assert [row for rows in loader for row in rows] == list(range(ROWS))


def rows_in(samples):
    return [sample["row"] for sample in samples]


def test_forked_workers_ask_the_hub_themselves(hub, path, tokenizer):
    hub.files = {"a.parquet": Path(path).read_bytes()}
    dataset = opened(f"hf://{REPO}/a.parquet", tokenizer)
    dataset[0]
    assert rows_of(evaluation_loader(dataset, 2, workers=2)) == list(range(ROWS))


def test_a_connection_that_is_lost_is_no_bad_row(hub, path, tokenizer):
    hub.files = {"a.parquet": Path(path).read_bytes()}
    dataset = opened(f"hf://{REPO}/a.parquet", tokenizer, bad_rows="skip")
    hub.answers = len(hub.asked)
    with pytest.raises(InputError, match="a.parquet cannot be read .*is there a connection"):
        dataset[0]


def test_a_file_that_changes_on_the_way_is_noticed(path, tokenizer):
    dataset = opened(f"file://{path}", tokenizer)
    write(path, [make_row(i) for i in range(ROWS + 1)], 4)
    with pytest.raises(InputError, match="has changed or gone since it was first opened"):
        dataset[0]


@pytest.mark.parametrize(("url", "message", "code"), [
    ("hf://datasets/me/night/absent.parquet", "there is no 'hf://datasets/me/night/absent.parquet'", 2),
    ("hf://datasets/me/absent/a.parquet", "there is no 'hf://datasets/me/absent/a.parquet'", 2),
    ("memory://absent.parquet", "there is no 'memory://absent.parquet'", 2),
    ("nothing://a.parquet", "Protocol not known: nothing", 1)])
def test_what_is_not_there_is_one_sentence(url, message, code, hub, trained, tmp_path):
    result = in_process("test.py", "--ckpt", trained / "model_best_lavt.pth", "--test_parquet", url, "--out_dir",
                        tmp_path, "--device", "cpu", ok=False)
    assert (result.returncode, result.stderr.count("\n")) == (code, 1)
    assert result.stderr.startswith(f"error: --test_parquet: {'' if code == 2 else url}") and message in result.stderr


def test_a_scheme_whose_package_is_absent_names_it(monkeypatch, tokenizer):
    from fsspec.registry import known_implementations

    monkeypatch.setitem(known_implementations, "bucket", {"class": "no_such_package.Bucket", "err": "Install bucketfs"})
    with pytest.raises(InputError, match=r"bucket://a.parquet needs a package that is not installed .Install bucketfs"):
        opened("bucket://a.parquet", tokenizer)


@pytest.mark.parametrize("words", [
    ("data/check_parquet.py", "URL"), ("data/merge_parquet.py", "URL", "--out", "OUT"),
    ("data/add_fused.py", "URL", "--fused", ".", "--out", "OUT")])
def test_without_a_connection_one_sentence_says_so(words, monkeypatch, tmp_path):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    known = {"URL": "hf://datasets/ronniejiangC/MM-RIS/mm_ris_test.parquet", "OUT": tmp_path / "out.parquet"}
    result = in_process(*(known.get(word, word) for word in words), ok=False)
    assert result.returncode == 1 and result.stderr.count("\n") == 1 and not os.listdir(tmp_path)
    assert "mm_ris_test.parquet cannot be read (" in result.stderr and "is there a connection?" in result.stderr


def test_the_scripts_take_urls(scenes, trained, hub, tmp_path):
    hub.files = {f"mm_ris_{name}.parquet": (scenes / f"mm_ris_{name}.parquet").read_bytes()
                 for name in ("train", "val", "test")}
    url = f"hf://{REPO}/mm_ris_test.parquet"
    ckpt = trained / "model_best_lavt.pth"
    for source, out in ((url, "by_url"), (scenes / "mm_ris_test.parquet", "by_path")):
        in_process("test.py", "--ckpt", ckpt, "--test_parquet", source, "--out_dir", tmp_path / out, "-j", 0,
                   "--device", "cpu", "--save", "none")
    by_url, by_path = ((tmp_path / out / "per_sample.csv").read_text() for out in ("by_url", "by_path"))
    assert by_url == by_path
    in_process("data/check_parquet.py", url, "--out_dir", tmp_path / "check", "-j", 0)
    in_process("data/merge_parquet.py", url, "--out", tmp_path / "merged.parquet")
    assert pq.read_table(tmp_path / "merged.parquet").equals(pq.read_table(scenes / "mm_ris_test.parquet"))
    train(scenes, tmp_path / "run", "--train_parquet", f"hf://{REPO}/mm_ris_train.parquet", "--val_parquet", url,
          "--epochs", 1)
    assert (tmp_path / "run" / "model_best_lavt.pth").exists()
