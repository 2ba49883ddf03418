"""The MM-RIS data: reading it, the order of reading, merging its parts, and drawing synthetic scenes in its schema."""
from .mm_ris import BadRow, MMRISDataset, collate
from .sampler import EpochSampler, epoch_order, share

__all__ = ["BadRow", "EpochSampler", "MMRISDataset", "collate", "epoch_order", "share"]
