"""The MM-RIS data: reading it, merging its parts, and drawing synthetic scenes in its schema."""
from .mm_ris import MMRISDataset, collate
from .sampler import EpochSampler, share

__all__ = ["EpochSampler", "MMRISDataset", "collate", "share"]
