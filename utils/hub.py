"""Models from the Hugging Face hub, downloaded once into its library's cache."""
import os
from pathlib import Path

from .errors import InputError
from .model_folder import CONFIG, VOCABULARY, WEIGHTS
from .text import first_line, printable

CHECKPOINT = "model_best_lavt.pth"  # what the published repository holds
BERT = "google-bert/bert-base-uncased"


def find_model(name: str, revision: str | None = None) -> str:
    """The path of a model, for `utils.checkpoint.read`.

    Args:
        name: a local folder or file, else a repository on the hub, as in `ronniejiangC/RIS-FUSION`.
        revision: branch, tag or commit of the repository; None: its main branch.
    Raises:
        InputError: there is no such model, or it can be neither downloaded nor found in the cache.
    """
    if os.path.isfile(name):
        return name
    folder = name if os.path.isdir(name) else _download(name, (WEIGHTS, CONFIG, VOCABULARY, f"*{CHECKPOINT}"), revision)
    if os.path.isfile(os.path.join(folder, WEIGHTS)):
        return folder
    checkpoints = sorted(Path(folder).rglob(CHECKPOINT))
    if not checkpoints:
        raise InputError(f"{printable(name)} holds neither {WEIGHTS} nor {CHECKPOINT}")
    return str(checkpoints[0])


def fetch_bert(with_weights: bool) -> str:
    """A folder with configuration and vocabulary, and if asked for weights, of bert-base-uncased.

    Raises:
        InputError: it can be neither downloaded nor found in the cache.
    """
    return _download(BERT, (CONFIG, VOCABULARY, *([WEIGHTS] if with_weights else [])))


def _download(repo: str, patterns: tuple[str, ...], revision: str | None = None) -> str:
    """The folder in the cache with a repository's files of these names."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError

    try:
        return snapshot_download(repo, revision=revision, allow_patterns=list(patterns))
    except (HFValidationError, RepositoryNotFoundError) as error:
        raise InputError(f"there is neither a folder nor a repository '{printable(repo)}' on the Hugging Face hub that "
                         "can be read; of a private one, `hf auth login` gives access") from error
    except Exception as error:  # the hub's library raises httpx's or httpx2's errors, by its release, and its own
        raise InputError(f"there is no folder {printable(repo)} here, and it can be neither downloaded from the "
                         f"Hugging Face hub nor found in its cache ({first_line(error)}); where there is a connection, "
                         f"`hf download {printable(repo)} --local-dir DIR` fetches it, and DIR can be given instead of "
                         "the name") from error
