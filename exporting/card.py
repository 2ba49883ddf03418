"""The model card: what is known of a model, for those who find its folder."""
import json
import os
from argparse import Namespace
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from utils.checkpoint import stored_args
from utils.errors import InputError
from utils.numeric import is_finite
from utils.text import first_line, printable

NAME = "README.md"
SCORES = ("mIoU", "oIoU", "cIoU", "gIoU", "N-acc", "Precision", "Recall", "F1",
          *(f"precision@0.{i}" for i in range(5, 10)))
DATA = ("train_parquet", "val_parquet")


def read_metrics(path: str) -> dict[str, Any]:
    """What the card shows of a `metrics.json` of `test.py`.

    Raises:
        InputError: it is none.
    """
    try:
        with open(path, encoding="utf-8") as file:
            found = json.load(file)
        settings = found["settings"]
        scores = {name: found[name] for name in SCORES if name in found}
        intervals = found["intervals_95"]
        rows = {name: f"{score:.2f}" + (" [{:.2f}, {:.2f}]".format(*intervals[name]) if name in intervals else "")
                for name, score in scores.items() if is_finite(score)}
        fusion = found.get("fusion_metrics", {}).get("fused", {})
        return {"data": _file_name(settings["test_parquet"]), "samples": int(found["num_samples"]),
                "img_size": int(settings["img_size"]), "rows": rows,
                "fusion": {printable(name): f"{value:.3f}" for name, value in fusion.items()}}
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror})", "metrics") from error
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise InputError(f"{path} is no metrics.json of test.py ({type(error).__name__}: {first_line(error)})",
                         "metrics") from error


def write(folder: str, content: dict, about: dict, args: Namespace, metrics: dict | None, architecture: dict) -> None:
    """Write the card to a folder.

    Args:
        content: the model in the form of a checkpoint.
        about: what the checkpoint says besides.
        args: the command line of `export.py`.
        metrics: of `read_metrics`; None: none were given.
        architecture: sizes of the networks by name.
    """
    stored = stored_args(about)
    flags = [f"--{printable(name)} {printable(json.dumps(value))}" for name, value in sorted(content["args"].items())]
    parameters = sum(tensor.numel() for part in ("model", "prefusion_model", "bert_model")
                     for tensor in content[part].values() if tensor.is_floating_point())
    epoch = content["epoch"] if isinstance(content["epoch"], int) and content["epoch"] >= 0 else None
    text = _template().render(
        license=printable(args.license), format=args.format, dtype=args.dtype, args=content["args"],
        file=f"model.{args.format}", architecture=architecture, bert=content["bert"]["config"],
        millions=f"{parameters / 1e6:.1f}", epoch=epoch, flags="\n".join(flags) if stored else "", metrics=metrics,
        data=[_file_name(stored[name]) for name in DATA if stored.get(name)])
    with open(os.path.join(folder, NAME), "w", encoding="utf-8") as file:
        file.write(text)


def _template():
    loader = FileSystemLoader(os.path.dirname(__file__))
    environment = Environment(loader=loader, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
                              keep_trailing_newline=True)
    return environment.get_template("card.md.jinja")


def _file_name(path: Any) -> str:
    """A path's last part, as folders of one machine mean nothing on another."""
    return printable(os.path.basename(os.path.normpath(str(path))))
