"""The MM-RIS data: reading it, the order of reading, merging its parts, and drawing synthetic scenes in its schema."""
from .mm_ris import BadRow, MMRISDataset, collate
from .order import epoch_order
from .sampler import EpochSampler, share

__all__ = ["BadRow", "EpochSampler", "MMRISDataset", "collate", "epoch_order", "share"]
