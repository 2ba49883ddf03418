"""The losses of the joint training: the fusion terms on luma, and the segmentation loss."""
import functools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from pytorch_msssim import SSIM, ssim
from torch import Tensor, nn

from utils.color import destandardise, luma

from .focus import focus_term
from .ris_fusion import Output

Average = Callable[[Tensor], Tensor]  # the mean of a tensor over the processes that train together

CLASS_WEIGHTS = (0.9, 1.1)  # background, foreground


# The constants below are copied to each device once: a copy in each step would make the host wait for the device.


@functools.cache
@torch.inference_mode(False)
def sobel_kernels(device: torch.device) -> Tensor:
    """Sobel's kernels along x and along y, (2, 1, 3, 3)."""
    sobel = torch.tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]])
    return torch.stack([sobel, -sobel.t()])[:, None].to(device)


@functools.cache
@torch.inference_mode(False)
def gaussian_window(size: int, sigma: float, device: torch.device) -> Tensor:
    """The window of SSIM along one axis, (1, 1, 1, size), adding up to 1."""
    return SSIM(win_size=size, win_sigma=sigma, channel=1).win.to(device)


@functools.cache
@torch.inference_mode(False)
def class_weights(device: torch.device) -> Tensor:
    """CLASS_WEIGHTS, (2,)."""
    return torch.tensor(CLASS_WEIGHTS).to(device)


def gradients(image: Tensor) -> tuple[Tensor, Tensor]:
    """|Sobel| of (B, 1, H, W) along x and along y, each (B, 1, H, W); the image is padded with zeros."""
    return F.conv2d(image, sobel_kernels(image.device).to(image.dtype), padding=1).abs().split(1, dim=1)


def structural_similarity(one: Tensor, other: Tensor, size: int = 11, sigma: float = 1.5, edges: str = "valid"
                          ) -> Tensor:
    """The mean SSIM (Wang et al., 2004) of two images with values in [0, 1]; a scalar.

    Args:
        one, other: (B, 1, H, W).
        size, sigma: side and standard deviation of the Gaussian window, pixels; `size` is odd.
        edges: `valid` averages over the windows that lie inside the image, as pytorch-msssim does; `zero` over a
            window around each pixel, the image being padded with zeros, as the authors' public scripts do.
    """
    if edges == "zero":
        one, other = (F.pad(image, [size // 2] * 4) for image in (one, other))
    return ssim(one, other, data_range=1.0, win=gaussian_window(size, sigma, one.device))


def fusion_terms(fused: Tensor, vis: Tensor, ir: Tensor,
                 similarity: Callable[[Tensor, Tensor], Tensor] = structural_similarity) -> dict[str, Tensor]:
    """The unweighted fusion terms, each a scalar.

    Args:
        fused, vis, ir: (B, 3, H, W), standardised.
        similarity: gives the SSIM of two luma images, (B, 1, H, W) in [0, 1].
    Returns:
        `ssim_vis`, `ssim_ir` (similarities, 1 is best); `mse_vis`, `mse_ir`, `sobel_vis`, `sobel_ir`, `grad`
        (distances).
    """
    fused, vis, ir = (luma(destandardise(image)) for image in (fused, vis, ir))
    edges, edges_vis, edges_ir = gradients(fused), gradients(vis), gradients(ir)

    def distance(others: Iterable[Tensor]) -> Tensor:
        along_x, along_y = (F.l1_loss(edge, other) for edge, other in zip(edges, others, strict=True))
        return along_x + along_y

    return {
        "ssim_vis": similarity(fused, vis),
        "ssim_ir": similarity(fused, ir),
        "mse_vis": F.mse_loss(fused, vis),
        "mse_ir": F.mse_loss(fused, ir),
        "sobel_vis": distance(edges_vis),
        "sobel_ir": distance(edges_ir),
        "grad": distance([torch.maximum(v, i) for v, i in zip(edges_vis, edges_ir, strict=True)]),
    }


def cross_entropy(logits: Tensor, target: Tensor, average: Average | None = None) -> Tensor:
    """Cross-entropy of logits (B, 2, H, W) and target (B, H, W) with CLASS_WEIGHTS.

    Args:
        average: gives the mean of a tensor over the processes that train together. With it the sum is divided by the
            mean of all their weights, so that averaged gradients are those of one large batch.
    """
    weight = class_weights(logits.device).to(logits.dtype)
    if average is None:
        return F.cross_entropy(logits, target, weight=weight)
    return F.cross_entropy(logits, target, weight=weight, reduction="sum") / average(weight[target].sum())


def dice_loss(logits: Tensor, target: Tensor, _average: Average | None = None) -> Tensor:
    """1 − Dice on the foreground logit, averaged over the classes that a sample has, then over samples."""
    eps = 1e-6
    probability = logits[:, 1].sigmoid().flatten(1)
    foreground = target.flatten(1).to(probability.dtype)
    p = torch.stack([probability, 1 - probability])  # (2 classes, B, N)
    t = torch.stack([foreground, 1 - foreground])
    dice = (2 * (p * t).sum(-1) + eps) / (p.sum(-1) + t.sum(-1) + eps)
    return 1 - _mean_over_present_classes(dice, t.sum(-1))


def bce_area_loss(logits: Tensor, target: Tensor, _average: Average | None = None) -> Tensor:
    """Binary cross-entropy on the foreground logit: object and background have equal weight whatever their areas."""
    foreground = target.flatten(1).to(logits.dtype)
    bce = F.binary_cross_entropy_with_logits(logits[:, 1].flatten(1), foreground, reduction="none")
    t = torch.stack([foreground, 1 - foreground])
    area = t.sum(-1)
    return _mean_over_present_classes((bce * t).sum(-1) / area.clamp(min=1), area)


def _mean_over_present_classes(values: Tensor, areas: Tensor) -> Tensor:
    """values, areas (2 classes, B): mean over the classes whose area is above 0, then over the batch."""
    present = (areas > 0).to(values.dtype)
    return ((values * present).sum(0) / present.sum(0)).mean()


SEG_LOSSES = {"ce": cross_entropy, "dice": dice_loss, "bce_area": bce_area_loss}
SSIM_EDGES = ("valid", "zero")
FUSION_TERMS = ("ssim_vis", "ssim_ir", "mse_vis", "mse_ir", "sobel_vis", "sobel_ir", "grad")


@dataclass(frozen=True)
class LossWeights:
    """What the joint loss adds up, how much each part counts, and which SSIM; the defaults are the published recipe.

    Attributes:
        seg_loss: the segmentation loss, a key of SEG_LOSSES.
        lambda_prefusion: weight of the fusion loss.
        ssim_vis … grad: weights of the fusion terms, by the names of `fusion_terms`; an SSIM enters as 1 − SSIM.
        focus: weight of `focus_term`, a further fusion term, which needs masks; 0, as in the paper, leaves it out.
        ssim_window, ssim_sigma, ssim_edges: as in `structural_similarity`.
    Raises:
        ValueError: an unknown loss, a weight that is negative or not finite, or an SSIM that cannot be computed.
    """

    seg_loss: str = "ce"
    lambda_prefusion: float = 3.0
    ssim_vis: float = 0.5
    ssim_ir: float = 0.0
    mse_vis: float = 0.5
    mse_ir: float = 2.0
    sobel_vis: float = 0.0
    sobel_ir: float = 1.0
    grad: float = 1.0
    focus: float = 0.0
    ssim_window: int = 11
    ssim_sigma: float = 1.5
    ssim_edges: str = "valid"

    def __post_init__(self) -> None:
        if self.seg_loss not in SEG_LOSSES:
            raise ValueError(f"{self.seg_loss!r} is none of the segmentation losses {', '.join(SEG_LOSSES)}")
        for name in ("lambda_prefusion", *FUSION_TERMS, "focus"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"the weight {name} must be a finite number of at least 0, not {getattr(self, name)}")
        if self.ssim_window < 3 or self.ssim_window % 2 == 0:
            raise ValueError(f"ssim_window must be an odd number of at least 3, not {self.ssim_window}")
        if not 0 < self.ssim_sigma < math.inf:
            raise ValueError(f"ssim_sigma must be a finite number above 0, not {self.ssim_sigma}")
        if self.ssim_edges not in SSIM_EDGES:
            raise ValueError(f"ssim_edges must be {' or '.join(SSIM_EDGES)}, not {self.ssim_edges!r}")

    @classmethod
    def from_flags(cls, flags: Any) -> "LossWeights":
        """From anything with the attributes `seg_loss`, `lambda_prefusion` and `w_` with the name of each term.

        `w_focus`, `ssim_window`, `ssim_sigma` and `ssim_edges` may be absent.
        """
        if isinstance(flags, cls):
            return flags
        weights = {name: getattr(flags, f"w_{name}") for name in FUSION_TERMS}
        given = {name: getattr(flags, name) for name in ("ssim_window", "ssim_sigma", "ssim_edges")
                 if hasattr(flags, name)}
        return cls(flags.seg_loss, flags.lambda_prefusion, **weights, focus=getattr(flags, "w_focus", 0.0), **given)


class JointCriterion(nn.Module):
    """segmentation + lambda_prefusion · fusion.

    Args:
        weights: of the parts.
        average: see `cross_entropy`; None in a single process.
    """

    def __init__(self, weights: LossWeights, average: Average | None = None):
        super().__init__()
        self.weights = weights
        self.segmentation = SEG_LOSSES[weights.seg_loss]
        self.similarity = functools.partial(structural_similarity, size=weights.ssim_window, sigma=weights.ssim_sigma,
                                            edges=weights.ssim_edges)
        self.average = average

    def forward(self, output: Output, vis: Tensor, ir: Tensor, target: Tensor | None
                ) -> tuple[Tensor, dict[str, Tensor]]:
        """The joint loss of a batch, in float32 whatever the networks computed in.

        Args:
            output: with `fused` (B, 3, H, W) standardised and `logits` (B, 2, H, W); None for a model without
                segmenter, whose loss is the fusion loss alone.
            vis, ir: (B, 3, H, W), standardised.
            target: (B, H, W) int64, 1 on the referred object; unused without logits and focus.
        Returns:
            The scalar to minimise, and its parts, detached: the terms of `fusion_terms`, `focus` (if its weight is
            above 0), `fusion` (their weighted sum), `seg` (where there are logits) and `total`.
        """
        terms = fusion_terms(output.fused.float(), vis, ir, self.similarity)
        fusion = sum(getattr(self.weights, name) * (1 - terms[name] if name.startswith("ssim") else terms[name])
                     for name in FUSION_TERMS)
        if self.weights.focus > 0:
            assert target is not None
            terms["focus"] = focus_term(output.fused.float(), vis, ir, target)
            fusion = fusion + self.weights.focus * terms["focus"]
        total = self.weights.lambda_prefusion * fusion
        terms["fusion"] = fusion
        if output.logits is not None:
            assert target is not None
            terms["seg"] = self.segmentation(output.logits.float(), target, self.average)
            total = terms["seg"] + total
        terms["total"] = total
        return total, {name: term.detach() for name, term in terms.items()}
