"""Loading by worker processes: the same batches with little shared memory, and one sentence if a process dies."""
import logging
import multiprocessing
import os
import signal
import warnings

import pytest
import torch
from rows import make_row, tiny_tokenizer, write

from data import MMRISDataset, evaluation_loader, training_loader
from data.batches import Samples
from utils.errors import InputError


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return tiny_tokenizer(tmp_path_factory.mktemp("bert"))


@pytest.fixture
def dataset(tmp_path, tokenizer):
    rows = [make_row(i) for i in range(8)]
    rows[3]["visible_image"] = b"no image"
    return MMRISDataset(write(tmp_path / "a.parquet", rows), tokenizer, 40, originals=True, bad_rows="skip")


def no_room(*_):
    raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)")


@pytest.mark.parametrize("full", [["_new_shared"], ["_share_memory"], ["_new_shared", "_share_memory"]])
def test_batches_go_through_pipes_where_shared_memory_is_full(dataset, monkeypatch, capfd, full):
    expected = list(evaluation_loader(dataset, 4))
    handler = logging.StreamHandler()  # pytest would keep the worker's messages in the worker
    monkeypatch.setattr(logging.getLogger("data.mm_ris"), "handlers", [handler])
    if "_new_shared" in full:
        monkeypatch.setattr(torch.UntypedStorage, "_new_shared", no_room)
    if "_share_memory" in full:
        monkeypatch.setattr(torch.Tensor, "share_memory_", no_room)
    for _ in range(2):
        batches = list(evaluation_loader(dataset, 4, workers=1))
        assert len(batches) == len(expected) == 2
        for batch, wanted in zip(batches, expected, strict=True):
            assert batch.keys() == wanted.keys() and batch["bad"] == wanted["bad"]
            for key in ("vis", "ir", "target", "input_ids", "attention_mask", "row"):
                assert torch.equal(batch[key], wanted[key]) and not batch[key].is_shared()
                batch[key][...] = 0  # writable
    assert capfd.readouterr().err.count("too little shared memory") == ("_new_shared" in full)


def test_a_data_set_opens_where_shared_memory_is_full(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setattr(torch.Tensor, "share_memory_", no_room)
    assert len(MMRISDataset(write(tmp_path / "a.parquet", [make_row(0)]), tokenizer, 40)) == 1


class Dying(torch.utils.data.Dataset):
    """The process that reads row 5 dies."""

    def __init__(self, code):
        self.code = code

    def __len__(self):
        return 8

    def windows(self):
        return None

    def __getitems__(self, rows):
        if 5 in rows:
            os.kill(os.getpid(), signal.SIGKILL) if self.code == "SIGKILL" else os._exit(self.code)
        samples = Samples({"row": row} for row in rows)
        samples.tensors = {}
        return samples


@pytest.mark.parametrize("code, named", [("SIGKILL", "signal SIGKILL"), (3, "exit code 3")])
@pytest.mark.parametrize("open_loader", [training_loader, evaluation_loader])
def test_a_worker_process_that_dies_is_one_sentence(code, named, open_loader):
    with pytest.raises(InputError, match=f"a worker process .* was ended by {named}.*memory") as caught:
        for _ in open_loader(Dying(code), 2, workers=1):
            pass
    assert "\n" not in str(caught.value)


def test_a_worker_process_that_dies_while_the_program_computes_is_reported_with_the_next_batch():
    before = multiprocessing.active_children()
    rows = []
    with pytest.raises(InputError, match="a worker process"):
        for batch in evaluation_loader(Dying("SIGKILL"), 1, workers=1):
            rows += batch["row"].tolist()
            if rows[-1] == 3:  # two batches are loaded ahead
                for worker in set(multiprocessing.active_children()) - set(before):
                    os.waitid(os.P_PID, worker.pid, os.WEXITED | os.WNOWAIT)
                rows.append("computed")
    assert "computed" in rows


def test_an_error_in_the_data_is_not_taken_for_a_dead_process(tmp_path, tokenizer):
    rows = [make_row(0), make_row(1) | {"visible_image": b"no image"}]
    dataset = MMRISDataset(write(tmp_path / "a.parquet", rows), tokenizer, 40)
    with pytest.raises(InputError, match=r"a\.parquet: row 1: visible_image"):
        list(evaluation_loader(dataset, 1, workers=1))


def test_more_workers_than_cores_are_not_warned_of(dataset):
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        list(evaluation_loader(dataset, 4, workers=2 * os.cpu_count() + 1))
    assert not warned
