"""The networks and the losses of RIS-FUSION."""
from .build import build_criterion, build_from_checkpoint, build_model
from .ris_fusion import Output

__all__ = ["Output", "build_criterion", "build_from_checkpoint", "build_model"]
