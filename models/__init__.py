"""The networks and the losses of RIS-FUSION."""
from .architecture import Architecture
from .build import build_criterion, build_from_checkpoint, build_model
from .losses import LossWeights
from .ris_fusion import INPUTS, Output, inputs_of

__all__ = ["INPUTS", "Architecture", "LossWeights", "Output", "build_criterion", "build_from_checkpoint", "build_model",
           "inputs_of"]
