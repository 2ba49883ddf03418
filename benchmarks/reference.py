"""The published figures, the weights and inputs they were computed from, and how far a model is from them.

Weights and inputs depend on nothing but tensor names. `tests/figures/golden.json` holds summaries of what the authors'
implementation of RIS-FUSION computed from them in float32 on a CPU.
"""
import json
import zlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

from bert import build_text_encoder
from models import INPUTS, Architecture, build_criterion
from models.build import assemble

GOLDEN = Path(__file__).parent.parent / "tests" / "figures" / "golden.json"
SIZES = ("swin_type", "window12", "mha", "prefusion_base_ch")
FUSION_TERMS = ("ssim_vis", "ssim_ir", "mse_vis", "mse_ir", "sobel_vis", "sobel_ir", "grad")
NETWORKS = {"model": "segmenter", "prefusion_model": "fuser", "bert_model": "text_encoder"}


def golden() -> dict:
    """{configuration: its figures}."""
    return json.loads(GOLDEN.read_text(encoding="utf-8"))


def _values(name: str, shape) -> np.ndarray:
    z = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(tuple(shape))
    if name.endswith("running_var"):
        z = 1.0 + 0.1 * np.abs(z)
    elif name.endswith("running_mean"):
        z = 0.1 * z
    elif name.endswith("relative_position_bias_table"):
        z = 0.2 * z
    elif "embeddings." in name and len(shape) == 2:
        z = 0.05 * z
    elif len(shape) >= 2:
        z = z / np.sqrt(np.prod(shape[1:]))
    elif name.endswith("weight"):
        z = 1.0 + 0.1 * z
    else:
        z = 0.1 * z
    return z.astype(np.float32)


@torch.no_grad()
def fill_(module: torch.nn.Module) -> None:
    """Overwrite all weights and statistics of `module`, except the fuser's standardisation constants."""
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point() and name not in ("mean_vis", "std_vis", "mean_ir", "std_ir"):
            tensor.copy_(torch.from_numpy(_values(name, tensor.shape)))


def inputs(height: int, width: int, batch: int = 2, tokens: int = 20, vocab: int = 1000) -> dict[str, torch.Tensor]:
    """A batch: waves with noise, their crests the object, and a last sentence of only 7 tokens."""
    rng = np.random.default_rng(20250916)
    mean = np.array([0.485, 0.456, 0.406]).reshape(1, 3, 1, 1)
    std = np.array([0.229, 0.224, 0.225]).reshape(1, 3, 1, 1)
    yy, xx = np.mgrid[0:height, 0:width]
    waves = [np.sin(xx / (3.0 + i) + i) * np.cos(yy / (5.0 + 2 * i) - i) for i in range(batch)]
    vis = np.stack([np.stack([0.5 + 0.4 * wave * (0.6 + 0.2 * c) for c in range(3)]) for wave in waves])
    ir = np.stack([np.repeat((0.5 - 0.45 * wave)[None], 3, 0) for wave in waves])
    vis = np.clip(vis + 0.05 * rng.standard_normal(vis.shape), 0, 1)
    ir = np.clip(ir + 0.05 * rng.standard_normal((batch, 1, height, width)), 0, 1)
    target = np.stack([(wave > 0.55) for wave in waves]).astype(np.int64)
    ids = rng.integers(5, vocab, size=(batch, tokens))
    attention = np.ones((batch, tokens), dtype=np.int64)
    attention[-1, 7:] = 0
    return {"vis": torch.from_numpy(((vis - mean) / std).astype(np.float32)),
            "ir": torch.from_numpy(((ir - mean) / std).astype(np.float32)),
            "target": torch.from_numpy(target),
            "input_ids": torch.from_numpy(ids * attention),
            "attention_mask": torch.from_numpy(attention)}


class Case:
    """One published configuration on a device: its figures, its arguments, the filled model and its inputs.

    The methods return deviations by name: of tensors relative to the largest absolute value, of numbers relative.

    Args:
        figures: an entry of `golden()`.
        device: where to compute.
        weights: of the losses, by flag.
    """

    def __init__(self, figures: dict, device: torch.device, weights: dict[str, float]):
        config = figures["config"]
        self.figures = figures
        self.args = SimpleNamespace(fusion_drop=0.0, pretrained_swin_weights="", seg_loss="ce", **weights,
                                    **{name: config[name] for name in SIZES})
        encoder = build_text_encoder(config={"vocab_size": config["bert_vocab"],
                                             "num_hidden_layers": config["bert_layers"]})
        self.model = assemble(Architecture.from_flags(self.args), encoder).eval()
        self.fill(*NETWORKS.values())
        self.model.to(device)
        batch = inputs(config["height"], config["width"], config["batch"])
        self.inputs = {name: tensor.to(device) for name, tensor in batch.items()}

    def fill(self, *networks: str) -> None:
        """Give these networks the reference weights."""
        for name in networks:
            fill_(getattr(self.model, name))

    def outputs(self) -> dict[str, float]:
        """Of what every network computes."""
        features = {}
        hook = self.model.segmenter.backbone.register_forward_hook(
            lambda _, __, output: features.update(enumerate(output)))
        with torch.no_grad():
            output = self._forward()
            text = self._text()
        hook.remove()
        found = {"bert_last_hidden": text, "fused": output.fused, "logits": output.logits,
                 **{f"backbone_stage{stage}": features[stage] for stage in range(4)}}
        return {name: deviation(tensor, self.figures[name]) for name, tensor in found.items()}

    def losses(self) -> dict[str, float]:
        """Of all loss terms."""
        expected, found = self.figures["losses"], {}
        with torch.no_grad():
            output = self._forward()
            for suffix, changes in (("", {}), ("_zero_padded", {"ssim_edges": "zero"})):
                terms = self._terms(output, **changes)
                found |= {f"{name}{suffix}": terms[name] for name in FUSION_TERMS if f"{name}{suffix}" in expected}
                found[f"total{suffix}"] = terms["fusion"]
            for seg_loss in ("ce", "dice", "bce_area"):
                found[f"seg_{seg_loss}"] = self._terms(output, seg_loss=seg_loss)["seg"]
            found["joint_ce"] = self._terms(output)["total"]
        return {name: _relative(value, expected[name]) for name, value in found.items()}

    def gradients(self) -> dict[str, float]:
        """Of the norms of gradients, which are left in the model."""
        self.model.zero_grad()
        loss, _ = build_criterion(self.args).to(self.inputs["vis"].device)(self._forward(), *self._images())
        loss.backward()
        found = {}
        for name, norm in self.figures["grad_norms"].items():
            network, _, parameter = name.partition(":")
            gradient = getattr(self.model, NETWORKS[network]).get_parameter(parameter).grad
            found[name] = _relative(gradient.norm(), norm)
        return found

    def fused_in_training(self) -> float:
        """Of the fused image in training mode, whose running statistics change with every call."""
        self.fill("text_encoder", "fuser")
        self.model.fuser.train()
        with torch.no_grad():
            fused = self.model.fuser(self.inputs["vis"], self.inputs["ir"], self._text(), self.inputs["attention_mask"])
        self.model.eval()
        return deviation(fused, self.figures["fused_train_mode"])

    def _forward(self):
        return self.model(*(self.inputs[name] for name in INPUTS))

    def _text(self) -> torch.Tensor:
        mask = self.inputs["attention_mask"]
        return self.model.text_encoder(self.inputs["input_ids"], attention_mask=mask).last_hidden_state

    def _images(self) -> list[torch.Tensor]:
        return [self.inputs[name] for name in ("vis", "ir", "target")]

    def _terms(self, output, **changes) -> dict[str, torch.Tensor]:
        criterion = build_criterion(SimpleNamespace(**vars(self.args) | changes)).to(output.fused.device)
        return criterion(output, *self._images())[1]


def deviation(tensor: torch.Tensor, figures: dict) -> float:
    """The largest difference of mean, standard deviation, maximum and single values, over the largest absolute value.

    Raises:
        ValueError: the shape differs.
    """
    if list(tensor.shape) != figures["shape"]:
        raise ValueError(f"the shape is {list(tensor.shape)}, not {figures['shape']}")
    flat = tensor.detach().double().flatten()
    pairs = [(flat.mean(), figures["mean"]), (flat.std(unbiased=False), figures["std"]),
             (flat.abs().max(), figures["absmax"]), *((flat[int(index)], value) for index, value in
                                                      figures["at"].items())]
    return max(abs(float(ours) - theirs) for ours, theirs in pairs) / figures["absmax"]


def _relative(ours: torch.Tensor, theirs: float) -> float:
    return abs(float(ours) - theirs) / abs(theirs)
