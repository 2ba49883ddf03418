"""The source images as the fusion metrics want them: 8-bit luma at the original size."""
import numpy as np
import torch
from PIL import Image


class WithLumas(torch.utils.data.Dataset):
    """A data set whose samples also hold `lumas`: two (h, w) uint8 arrays, the visible and the infrared image.

    Both have the size of the visible image, to which an infrared image of another size is resized bilinearly.

    Args:
        dataset: an `MMRISDataset`.
    """

    def __init__(self, dataset):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, row: int) -> dict:
        sample = self.dataset[row]
        cells = self.dataset._rows.read(row)
        visible, infrared = (self.dataset._decode(cells, column, row).convert("L")
                             for column in ("visible_image", "infrared_image"))
        if infrared.size != visible.size:
            infrared = infrared.resize(visible.size, Image.Resampling.BILINEAR)
        return sample | {"lumas": (np.asarray(visible), np.asarray(infrared))}
