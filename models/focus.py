"""A fusion term of this project, which the paper does not have: it makes the referred object stand out when fused."""
import torch
from torch import Tensor

from utils.color import destandardise, luma
from utils.contrast import contrast, mean_over, ring

MARGIN = 0.1  # of luma in [0, 1], by which the object's contrast is to exceed that in the better source


def focus_term(fused: Tensor, vis: Tensor, ir: Tensor, target: Tensor) -> Tensor:
    """How much contrast the referred object lacks in the fused image, a scalar.

    A source shows the object with a contrast c: its mean luma inside minus that of the ring around it. The source with
    the larger |c| counts. The fused object is to have a contrast of the same sign and of at least |c| + MARGIN. The
    term is what is missing, in luma from 0 to 1, averaged over the samples. It is 0 for samples without object or ring.

    The ring of the fused image enters as a constant, so that the term asks for changes inside the object alone.

    Args:
        fused, vis, ir: (B, 3, H, W), standardised.
        target: (B, H, W) int64, 1 on the object.
    """
    inside = target == 1
    around = ring(inside)
    fused, vis, ir = (luma(destandardise(image))[:, 0] for image in (fused, vis, ir))
    of_vis, of_ir = contrast(vis, inside, around), contrast(ir, inside, around)
    better = torch.where(of_ir.abs() > of_vis.abs(), of_ir, of_vis)
    found = better.sign() * (mean_over(fused, inside) - mean_over(fused, around).detach())
    measurable = inside.flatten(1).any(1) & around.flatten(1).any(1)
    return ((better.abs() + MARGIN - found).clamp(min=0) * measurable).mean()
