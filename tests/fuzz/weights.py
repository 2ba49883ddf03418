"""Checkpoints, states of training runs, BERT's folder, and models as folders."""
import functools
import io
import json
import random
from argparse import Namespace
from dataclasses import asdict
from pathlib import Path

import torch
from material import SIDE, material, read_files, write_files
from mutations import edited, mutate
from rows import SENTENCES
from safetensors.torch import load, save
from sandbox import Unmakeable, command

from bert import Tokenizer, build_text_encoder, check_vocabulary
from evaluation.inference import open_checkpoint
from models.architecture import Architecture
from models.build import assemble
from training import state
from training.progress import Progress
from utils import checkpoint
from utils.device import grad_scaler

CPU = torch.device("cpu")


@edited.register
def _(value: torch.Tensor, rng: random.Random):
    """A tensor of another shape, type, layout or content."""
    kinds = [value.flatten, lambda: value[None], value.half, value.long,
             lambda: value.to(torch.complex64), value.bool, value.to_sparse, value.t,
             lambda: value * float("nan"), lambda: value + 1e38, lambda: value[:0], lambda: value[:1],
             lambda: torch.cat([value, value]), lambda: value.to("meta"), lambda: torch.nn.Parameter(value),
             lambda: torch.zeros(1).expand(10**6, 10**4), lambda: torch.tensor(3), lambda: value.to(torch.float8_e5m2),
             lambda: torch.nested.nested_tensor([value, value]), value.to_sparse_csr,
             lambda: torch.quantize_per_tensor(value.float(), 0.1, 0, torch.qint8), value.tolist,
             value.conj, lambda: torch.zeros(value.shape).expand(2, *value.shape), lambda: value.numpy().tobytes()]
    try:
        return rng.choice(kinds)()
    except (RuntimeError, IndexError, TypeError, ValueError, NotImplementedError):
        return value.float() if value.is_nested or not value.dim() else value[..., :1]


@edited.register
def _(value: Namespace, rng: random.Random):
    values = mutate(rng, vars(value))
    return Namespace(**{str(key): item for key, item in values.items()}) if isinstance(values, dict) else values


def checkpoint_seeds() -> list[list]:
    """[what it is, content or bytes of the file]."""
    networks()  # once for all children
    content = torch.load(material() / "model.pth", weights_only=True)
    parts = {key: content[key] for key in ("model", "prefusion_model", "bert_model")}
    lavt_one = parts["model"] | {f"text_encoder.{name}": tensor for name, tensor in parts["bert_model"].items()}
    return [["checkpoint", content], ["checkpoint", parts | {"args": Namespace(**content["args"]), "optimizer": {}}],
            ["checkpoint", content | {key: {f"module.{name}": tensor for name, tensor in part.items()}
                                      for key, part in parts.items()}],
            ["checkpoint", (material() / "model.pth").read_bytes()],
            ["swin", {"model": {name.removeprefix("backbone."): tensor for name, tensor in parts["model"].items()}}],
            ["lavt_one", {"model": lavt_one}], ["fuser", parts["prefusion_model"]], ["fuser", content],
            ["fuser", saved_content(parts["prefusion_model"])]]


def saved_content(value) -> bytes:
    if isinstance(value, bytes):
        return value
    buffer = io.BytesIO()
    try:
        torch.save(value, buffer)
    except (RuntimeError, RecursionError, TypeError, AttributeError, ValueError, NotImplementedError,
            UnicodeEncodeError) as error:
        raise Unmakeable from error
    return buffer.getvalue()


def mutate_checkpoint(rng: random.Random, value: list) -> list:
    what, content = value
    if not isinstance(content, dict) or not content or rng.random() < 0.05:
        return [what, mutate(rng, content)]
    key = "args" if "args" in content and rng.random() < 0.3 else rng.choice(list(content))
    return [what, {**content, key: mutate(rng, content[key])}]


def prepare_checkpoint(value: list, folder: Path):
    what, content = value
    path = str(write_files(folder / "in", {"x.pth": saved_content(content)}) / "x.pth")
    bert = str(material() / "bert")
    return {
        "checkpoint": [lambda: opened(path),
                       lambda: opened(path, bert_tokenizer=bert, ck_bert=bert, img_size=SIDE, mha="")],
        "swin": [lambda: checkpoint.load_swin_weights(networks().segmenter.backbone, path)],
        "lavt_one": [lambda: checkpoint.load_lavt_one(networks(), path, with_head=True)],
        "fuser": [lambda: checkpoint.load_fuser(networks().fuser, path)],
    }[what]


def opened(path: str, **options) -> None:
    open_checkpoint(path, CPU, **options)


@functools.cache
def networks():
    return assemble(Architecture("nano", prefusion_base_ch=2), build_text_encoder(str(material() / "bert")))


def bert_seeds() -> list[dict]:
    files = read_files(material() / "bert")
    config = files | {"config.json": json.loads(files["config.json"])}
    pickled = {name: content for name, content in config.items() if name != "tokenizer.json"}
    words = {name: files[name] for name in ("vocab.txt", "config.json", "model.safetensors")}
    return [config, pickled, words | {"vocab.txt": files["vocab.txt"].decode()}, files]


def mutate_bert(rng: random.Random, files):
    if not isinstance(files, dict):
        return files
    names = [name for name in files if name != "model.safetensors"] if rng.random() < 0.9 else list(files)
    if not names or rng.random() < 0.05:
        return mutate(rng, files) if files else files
    name = "config.json" if "config.json" in files and rng.random() < 0.5 else rng.choice(names)
    return {**files, name: mutate(rng, files[name])}


def prepare_bert(files, folder: Path):
    if not isinstance(files, dict):
        raise Unmakeable
    bert = str(write_files(folder / "in/bert", files))
    path = str(material() / "model.pth")

    def alone() -> None:
        tokenizer = Tokenizer(bert)
        encoder = build_text_encoder(bert)
        check_vocabulary(tokenizer, encoder)
        ids, mask = tokenizer(SENTENCES)
        encoder(ids, attention_mask=mask)

    def with_checkpoint() -> None:
        model = open_checkpoint(path, CPU, bert_tokenizer=bert, ck_bert=bert)
        model.model.model.text_encoder(*model.tokenizer(SENTENCES))

    return [alone, with_checkpoint]


# A model as a folder

def folder_seeds() -> list[dict]:
    files = read_files(material() / "model")
    read = files | {"config.json": json.loads(files["config.json"]),
                    "model.safetensors": load(files["model.safetensors"])}
    tokenizer = read_files(material() / "bert", "tokenizer.json", "tokenizer_config.json")
    return [read, files, read | tokenizer, read | {"vocab.txt": files["vocab.txt"].decode()},
            {name: content for name, content in read.items() if name != "vocab.txt"}]


def mutate_folder(rng: random.Random, files: dict) -> dict:
    if not files or rng.random() < 0.05:
        return {name: content for name, content in files.items() if rng.random() < 0.7}
    name = rng.choice(list(files))
    return {**files, name: mutate(rng, files[name])}


def prepare_folder(files: dict, folder: Path):
    tensors = files.get("model.safetensors")
    if isinstance(tensors, dict):
        try:
            files = files | {"model.safetensors": save(tensors)}
        except Exception as error:  # safetensors refuses kinds and keys of many sorts, each in its own way
            raise Unmakeable from error
    model, bert, out = str(write_files(folder / "in/model", files)), str(material() / "bert"), str(folder / "out/model")
    return [lambda: opened(model), lambda: opened(model, bert_tokenizer=bert, ck_bert=bert, img_size=SIDE, mha=""),
            command("export.py", "--ckpt", model, "--to", out)]


# The state of a training run

def state_seeds() -> list[dict]:
    network, optimizer, scaler = trained()
    loss = network(torch.ones(1, 3)).sum()
    loss.backward()
    optimizer.step()
    progress = Progress(epoch=1, step=2, samples=8, sums={"total": 1.0}, rates={"seg": 0.1}, best=3.0, best_epoch=0,
                        history=[{"epoch": 0, "total": 1.5}])
    return [state.pack(asdict(progress), optimizer, scaler, CPU, 6)]


def trained():
    """A small network, its optimizer and its gradient scaler."""
    network = torch.nn.Linear(3, 2)
    return network, torch.optim.AdamW(network.parameters()), grad_scaler(CPU, None)


def prepare_state(value, folder: Path):
    path = str(write_files(folder / "in", {"x.pth": saved_content({"training": value})}) / "x.pth")

    def resume() -> None:
        found = state.unpack(checkpoint.read(path), path)
        if found:
            _, optimizer, scaler = trained()
            state.restore(found, optimizer, scaler, path)
            state.restore_random(found["random"], CPU, path)

    return [resume]
