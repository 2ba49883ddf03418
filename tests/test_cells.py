"""Parquet as other programs write it: column types, encodings, encryption; read alike by everything that reads it."""
import base64

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rows import error_of, make_row, npy, same_sample, tiny_tokenizer, write

from data import BadRow, MMRISDataset
from data.parquet_rows import ReadLimits
from data.prepare.checking import Checker
from data.prepare.merging import merge

COUNT = 6
ROWS = [make_row(i, 12, 9) for i in range(COUNT)]
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return tiny_tokenizer(tmp_path_factory.mktemp("bert"))


def as_struct(cells):
    return pa.array([{"bytes": cell, "path": "a.png"} for cell in cells], IMAGE)


def fixed_size(cells):
    longest = max(map(len, cells))
    return pa.array([cell.ljust(longest, b"\0") for cell in cells], pa.binary(longest))


BYTES = {
    "large_binary": lambda cells: pa.array(cells, pa.large_binary()),
    "binary_view": lambda cells: pa.array(cells, pa.binary_view()),
    "fixed_size_binary": fixed_size,
    "dictionary": lambda cells: pa.array(cells).dictionary_encode(),
    "struct": as_struct,
    "list<uint8>": lambda cells: pa.array([list(cell) for cell in cells], pa.list_(pa.uint8())),
    "large_list<uint8>": lambda cells: pa.array([list(cell) for cell in cells], pa.large_list(pa.uint8())),
    "list<int64>": lambda cells: pa.array([list(cell) for cell in cells]),
    "struct of list<uint8>": lambda cells: pa.array([{"bytes": list(cell)} for cell in cells],
                                                    pa.struct([("bytes", pa.list_(pa.uint8()))])),
}
TEXTS = {
    "large_string": lambda texts: pa.array(texts, pa.large_string()),
    "string_view": lambda texts: pa.array(texts, pa.string_view()),
    "dictionary": lambda texts: pa.array(texts).dictionary_encode(),
}


def column(name):
    return [row[name] for row in ROWS]


@pytest.fixture(params=[("visible_image", kind) for kind in BYTES] + [("segmentation", kind) for kind in BYTES]
                + [(name, kind) for name in ("question", "image_name") for kind in TEXTS], ids="-".join)
def converted(request, tmp_path):
    """A file in which one column has another type."""
    name, kind = request.param
    convert = (TEXTS if name in ("question", "image_name") else BYTES)[kind]
    return write(tmp_path / "converted.parquet", ROWS, **{name: convert(column(name))})


def test_every_type_gives_the_same_samples(converted, tmp_path, tokenizer):
    plain = MMRISDataset(write(tmp_path / "plain.parquet", ROWS), tokenizer, 40)
    dataset = MMRISDataset(converted, tokenizer, 40)
    assert list(dataset.names) == list(plain.names) and list(dataset.questions) == list(plain.questions)
    for row in range(COUNT):
        same_sample(dataset[row], plain[row])


def test_every_type_can_be_checked_and_merged_and_split(converted, tmp_path, tokenizer):
    checker = Checker([converted], 0, 0, 0)
    checker.run()
    assert not checker.findings and checker.sets[0].rows == COUNT
    outs = [str(tmp_path / f"{part}.parquet") for part in ("train", "val", "test")]
    merge([converted], outs, [0.5, 0.5, 0], 0)
    parts = [MMRISDataset(out, tokenizer, 40) for out in outs[:2]]
    assert sorted(name for part in parts for name in part.names) == sorted(column("image_name"))
    assert min(map(len, parts)) > 0
    for part in parts:
        for sample in part:
            assert sample["vis"].isfinite().all()


def test_a_path_without_the_bytes_of_the_file_is_refused_with_the_reason(tmp_path, tokenizer):
    cells = pa.array([{"bytes": cell, "path": None} for cell in column("visible_image")[:3]]
                     + [{"bytes": None, "path": "far/away.png"}, None, {"bytes": None, "path": None}], IMAGE)
    path = write(tmp_path / "a.parquet", ROWS, visible_image=cells)
    message = error_of(path, tokenizer, 3)
    assert "a.parquet: row 3: visible_image holds the path 'far/away.png' but not the bytes" in message
    dataset = MMRISDataset(path, tokenizer, 40, bad_rows="skip")
    assert [isinstance(dataset[row], BadRow) for row in range(COUNT)] == [False] * 3 + [True] * 3
    assert "is empty (null)" in dataset[4].message and "is empty (null)" in dataset[5].message
    checker = Checker([path], 0, 0, 0)
    checker.run()
    assert [(found.row, "the path" in found.problem.reason) for found in checker.findings] == [
        (3, True), (4, False), (5, False)]
    merge([path], [str(tmp_path / f"{part}.parquet") for part in range(2)], [0.5, 0.5], 0)


@pytest.mark.parametrize("kind", [pa.struct([("path", pa.string())]), pa.string()])
def test_columns_of_paths_are_refused(tmp_path, tokenizer, kind):
    cells = pa.array(["a.png"] * COUNT if kind == pa.string() else [{"path": "a.png"}] * COUNT, kind)
    message = error_of(write(tmp_path / "a.parquet", ROWS, visible_image=cells), tokenizer)
    assert "column visible_image must hold bytes, not" in message
    assert ("not the paths" in message) == (kind != pa.string())


@pytest.mark.parametrize("numbers", [[256, 1], [-1], [None]])
def test_numbers_that_are_no_bytes_are_a_fault_of_their_row(tmp_path, tokenizer, numbers):
    cells = pa.array([list(cell) for cell in column("visible_image")[:-1]] + [numbers])
    message = error_of(write(tmp_path / "a.parquet", ROWS, visible_image=cells), tokenizer, COUNT - 1)
    assert f"row {COUNT - 1}: visible_image is a list with something else than numbers from 0 to 255" in message


def of_bytes(texts, kind):
    """A text column out of bytes, unchecked, as careless writers leave it."""
    stored = pa.array([text if isinstance(text, bytes) else text.encode() for text in texts])
    plain = pa.Array.from_buffers(pa.string(), len(stored), stored.buffers())
    return plain.dictionary_encode() if kind == "dictionary" else plain


@pytest.mark.parametrize("wrong", [b"caf\xe9", b"a \xed\xa0\x80 man"])  # Latin-1; a lone surrogate
@pytest.mark.parametrize("kind", ["string", "dictionary"])
@pytest.mark.parametrize("name", ["question", "image_name"])
def test_text_that_is_not_utf8_is_a_fault_of_its_row(tmp_path, tokenizer, wrong, kind, name):
    texts = column(name)
    texts[4] = wrong
    path = write(tmp_path / "a.parquet", ROWS, **{name: of_bytes(texts, kind)})
    assert f"a.parquet: row 4: {name} is not valid UTF-8 text" in error_of(path, tokenizer)
    dataset = MMRISDataset(path, tokenizer, 40, bad_rows="skip")
    assert [row for row in range(COUNT) if isinstance(dataset[row], BadRow)] == [4]
    assert list(dataset.questions)[3] == column("question")[3]
    checker = Checker([path], 0, 0, 0)
    checker.run()
    assert [(found.row, found.problem.column) for found in checker.findings] == [(4, name)]
    merge([path], [str(tmp_path / f"{part}.parquet") for part in range(2)], [0.5, 0.5], 0)


def test_a_column_name_of_odd_bytes_is_a_sentence(tmp_path, tokenizer):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.Table.from_pylist(ROWS).append_column("odd_name", [[1] * COUNT]), path, store_schema=False)
    path.write_bytes(path.read_bytes().replace(b"odd_name", b"odd\xffname"))
    message = error_of(path, tokenizer)
    assert "a.parquet: the name of a column is not valid UTF-8" in message


@pytest.mark.parametrize("what", ["file", "among others"])
def test_a_named_pipe_is_refused_instead_of_waited_for(tmp_path, tokenizer, what, named_pipe):
    write(tmp_path / "a.parquet", ROWS)
    named_pipe(tmp_path / "b.parquet")
    message = error_of(tmp_path / "b.parquet" if what == "file" else tmp_path, tokenizer)
    assert "b.parquet: this is not a regular file" in message


@pytest.mark.parametrize("encrypted", ["visible_image", "question"])
@pytest.mark.parametrize("plaintext_footer", [True, False])
def test_an_encrypted_file_is_a_sentence(tmp_path, tokenizer, encrypted, plaintext_footer):
    encryption = pytest.importorskip("pyarrow.parquet.encryption")

    class Keys(encryption.KmsClient):
        def __init__(self, _):
            super().__init__()

        def wrap_key(self, key, _):
            return base64.b64encode(key)

        def unwrap_key(self, key, _):
            return base64.b64decode(key)

    properties = encryption.CryptoFactory(Keys).file_encryption_properties(
        encryption.KmsConnectionConfig(), encryption.EncryptionConfiguration(
            footer_key="footer", column_keys={"column": [encrypted]}, plaintext_footer=plaintext_footer))
    table, path = pa.Table.from_pylist(ROWS), str(tmp_path / "a.parquet")
    with pq.ParquetWriter(path, table.schema, encryption_properties=properties) as writer:
        writer.write_table(table)
    message = error_of(path, tokenizer)
    assert "a.parquet" in message and "encrypt" in message
    checker = Checker([path], 0, 0, 0)
    checker.run()
    assert checker.findings and "crypt" in str(checker.findings[0])


def test_images_in_one_large_row_group_of_structs_are_streamed(tmp_path, tokenizer):
    path = write(tmp_path / "a.parquet", ROWS, 1000, visible_image=as_struct(column("visible_image")))
    plain = MMRISDataset(write(tmp_path / "b.parquet", ROWS), tokenizer, 40)
    streamed = MMRISDataset(path, tokenizer, 40, limits=ReadLimits(2, 1, 1000))
    assert len(streamed.windows()[0]) == 3
    for row in range(COUNT):
        same_sample(streamed[row], plain[row])


def test_sentences_that_are_cut_are_counted_and_reported_once(tmp_path, tokenizer, caplog):
    long = "the hot red disc on the left " * 5
    just_fits = " ".join(["man"] * 18)  # with [CLS] and [SEP], 20 tokens
    rows = [row | {"question": text} for row, text in
            zip(ROWS, ("a man", long, just_fits, just_fits + " man", "a man", long), strict=True)]
    path = write(tmp_path / "a.parquet", rows)
    assert MMRISDataset(path, tokenizer, 40).cut == 3
    assert [record.getMessage() for record in caplog.records] == [
        f"{path}: 3 of 6 sentences are longer than 20 word pieces and are cut"]
    caplog.clear()
    assert MMRISDataset(write(tmp_path / "b.parquet", ROWS), tokenizer, 40).cut == 0 and not caplog.records


def test_what_a_mask_leaves_out_is_reported_once(tmp_path, tokenizer, caplog):
    labels = np.zeros((9, 12), np.uint8)
    labels[2:6, 2:6] = 255
    labels[3:5, 3:5] = 1
    path = write(tmp_path / "a.parquet", [row | {"segmentation": npy(labels)} for row in ROWS])
    dataset = MMRISDataset(path, tokenizer, 40, originals=True)
    for sample in dataset:
        assert np.array_equal(sample["mask"], labels == 1)
    assert len(caplog.records) == 1 and "a.parquet: row 0: segmentation has the value 255" in caplog.text
