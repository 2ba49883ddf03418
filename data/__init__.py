"""MM-RIS data: from parquet files to batches, and the scripts that make, merge and check such files."""
from .batches import BadRow, collate
from .loaders import evaluation_loader, training_loader
from .mm_ris import MMRISDataset
from .sampler import EpochSampler, epoch_order, share

__all__ = ["BadRow", "EpochSampler", "MMRISDataset", "collate", "epoch_order", "evaluation_loader", "share",
           "training_loader"]
