"""The installed package `ris_fusion`, in a program that has a `utils`, a `data` and a `models` of its own."""
import ast
import os
import runpy
import subprocess
import sys
import zipfile
from pathlib import Path
from unittest import mock

import pytest
from conftest import ROOT

from bert.tiny import write_tiny_bert

pytest.importorskip("setuptools", minversion="77", reason="building the package takes setuptools 77 or later")

PROGRAM = """
from types import SimpleNamespace

import numpy as np
import torch

import data, models, utils
from ris_fusion import Prediction, Predictor, build_criterion, build_model

assert data.OWNER == models.OWNER == utils.OWNER == "the program"
torch.manual_seed(0)
model = build_model(SimpleNamespace(swin_type="micro", window12=False, mha="", fusion_drop=0.0, prefusion_base_ch=4,
                                    ck_bert="bert", pretrained_swin_weights=""))
build_criterion(SimpleNamespace(seg_loss="ce", lambda_prefusion=1.0, w_ssim_vis=1, w_ssim_ir=1, w_mse_vis=1, w_mse_ir=1,
                                w_sobel_vis=1, w_sobel_ir=1, w_grad=1))
torch.save({"model": model.segmenter.state_dict(), "prefusion_model": model.fuser.state_dict(),
            "bert_model": model.text_encoder.state_dict()}, "checkpoint.pth")

predictor = Predictor.from_checkpoint("checkpoint.pth", "cpu", bert_tokenizer="bert", ck_bert="bert", img_size=64)
pixels = np.random.default_rng(0).integers(0, 256, (2, 48, 60, 3), dtype=np.uint8)
prediction = predictor(*pixels, "the red car")
assert isinstance(prediction, Prediction)
print(prediction.fused.shape, prediction.mask.shape, prediction.probability.dtype)
"""


def setup(*words) -> subprocess.CompletedProcess:
    """Run setup.py with these commands."""
    return subprocess.run([sys.executable, "setup.py", "--quiet", *words], cwd=ROOT, capture_output=True, text=True,
                          check=False)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel's content, in a folder."""
    work = tmp_path_factory.mktemp("wheel")
    result = setup("egg_info", "--egg-base", work, "build", "--build-base", work / "build",
                   "bdist_wheel", "--dist-dir", work)
    assert result.returncode == 0, result.stderr
    with zipfile.ZipFile(next(work.glob("*.whl"))) as archive:
        archive.extractall(work / "installed")
    return work / "installed"


@pytest.fixture(scope="module")
def with_prefix():
    """The function of setup.py that rewrites a module's imports."""
    with mock.patch("setuptools.setup"):
        return runpy.run_path(str(ROOT / "setup.py"))["with_prefix"]


def test_a_program_with_modules_of_the_same_names_builds_loads_and_predicts(wheel, tmp_path):
    write_tiny_bert(str(tmp_path / "bert"), ["the red car"])
    for name in ("data", "models", "utils"):
        (tmp_path / f"{name}.py").write_text('OWNER = "the program"\n')
    (tmp_path / "program.py").write_text(PROGRAM)
    result = subprocess.run([sys.executable, "program.py"], cwd=tmp_path, capture_output=True, text=True, check=False,
                            env=os.environ | {"PYTHONPATH": str(wheel)})
    assert result.returncode == 0, result.stderr
    assert result.stdout == "(48, 60, 3) (48, 60) float32\n"


def test_the_wheel_holds_one_package_without_tests_and_scripts(wheel):
    assert {path.name for path in wheel.iterdir() if path.suffix != ".dist-info"} == {"ris_fusion"}
    content = {path.relative_to(wheel / "ris_fusion").as_posix() for path in (wheel / "ris_fusion").rglob("*.*")}
    assert {"__init__.py", "engine.py", "predictor.py", "evaluation/report.html.jinja"} <= content
    left_out = ["benchmarks", "tests", "docs", "data/prepare", "compare.py", "predict.py", "test.py",
                "train_with_lavt.py", *(f"data/{name}.py" for name in ("add_fused", "build_parquet", "check_parquet",
                                                                       "merge_parquet", "synthetic"))]
    for name in left_out:
        assert (ROOT / name).exists()
        assert not (wheel / "ris_fusion" / name).exists()


def test_each_import_of_the_package_is_of_a_module_in_it(wheel):
    """Also the imports within functions, which loading the modules does not carry out."""
    imported = set()
    for path in wheel.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and not node.level:
                imported.add(node.module)
            elif isinstance(node, ast.Import):
                imported.update(alias.name for alias in node.names)
    rooms = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"ris_fusion"}
    assert not {name for name in imported if name.split(".")[0] in rooms | {"engine", "predictor"}}
    own = {name for name in imported if name.startswith("ris_fusion.")}
    assert own
    for name in own:
        module = wheel / name.replace(".", "/")
        assert module.with_suffix(".py").exists() or (module / "__init__.py").exists(), name


@pytest.mark.parametrize(("line", "rewritten"), [
    ("from utils.errors import InputError", "from ris_fusion.utils.errors import InputError"),
    ("def f():\n    from models import build_model", "def f():\n    from ris_fusion.models import build_model"),
    ("import models.swin as swin", "import ris_fusion.models.swin as swin"),
    ("found = importlib.util.find_spec('models.fast')", "found = importlib.util.find_spec('ris_fusion.models.fast')"),
    ("from torch.utils.data import DataLoader", "from torch.utils.data import DataLoader"),
    ("from .errors import InputError", "from .errors import InputError"),
    ("print('from utils import text')", "print('from utils import text')"),
])
def test_imports_of_the_rooms_get_the_prefix(with_prefix, tmp_path, line, rewritten):
    (tmp_path / "module.py").write_text(line)
    assert with_prefix(str(tmp_path / "module.py")).decode() == rewritten


@pytest.mark.parametrize("line", [
    "import utils.errors",
    "import os, models as networks",
    "from \\\n  utils import text",
    "import_module(name='models.fast')",
    "__import__('utils')",
])
def test_an_import_that_cannot_get_the_prefix_stops_the_build(with_prefix, tmp_path, line):
    (tmp_path / "module.py").write_text(line)
    with pytest.raises(Exception, match="module.py, line 1: the package cannot be built with"):
        with_prefix(str(tmp_path / "module.py"))


def test_an_editable_install_is_refused_in_one_sentence():
    result = setup("editable_wheel")
    assert result.returncode == 1
    assert result.stderr.startswith("error: ris_fusion cannot be installed with -e, because ")
    assert result.stderr.count("\n") == 1
