"""The sizes of Swin, and the architecture of a trained model, derived from its tensors."""
import math
import os
import re
from typing import NamedTuple


class SwinSize(NamedTuple):
    embed_dim: int
    depths: tuple[int, int, int, int]
    num_heads: tuple[int, int, int, int]


SWIN_SIZES = {
    "micro": SwinSize(32, (2, 2, 2, 2), (1, 2, 4, 8)),  # not published; for the demo and the tests
    "tiny": SwinSize(96, (2, 2, 6, 2), (3, 6, 12, 24)),
    "small": SwinSize(96, (2, 2, 18, 2), (3, 6, 12, 24)),
    "base": SwinSize(128, (2, 2, 18, 2), (4, 8, 16, 32)),
    "large": SwinSize(192, (2, 2, 18, 2), (6, 12, 24, 48)),
}


def window_size(args) -> int:
    """12 if `args.window12` or the name of the Swin weights says so, else 7."""
    return 12 if args.window12 or "window12" in os.path.basename(args.pretrained_swin_weights) else 7


def read_architecture(segmenter: dict, fuser: dict) -> dict:
    """The arguments of `build_model` that follow from the names and shapes of a checkpoint's tensors.

    Args:
        segmenter: state dict of LAVT (`model` in a checkpoint).
        fuser: state dict of the fuser (`prefusion_model`).
    Returns:
        `swin_type` (str), `window12` (bool), `prefusion_base_ch` (int), `text_dim` (int, hidden size of
        the text encoder).
    Raises:
        KeyError: a tensor that every such checkpoint has is missing.
        ValueError: `build_model` has no such sizes.
    """
    blocks = {tuple(map(int, match.groups())) for key in segmenter
              if (match := re.match(r"backbone\.layers\.(\d+)\.blocks\.(\d+)\.", key))}
    tables = [segmenter[f"backbone.layers.{stage}.blocks.0.attn.relative_position_bias_table"] for stage in range(4)]
    size = SwinSize(
        embed_dim=segmenter["backbone.patch_embed.proj.weight"].shape[0],
        depths=tuple(sum(stage == i for stage, _ in blocks) for i in range(4)),
        num_heads=tuple(table.shape[1] for table in tables))
    window = (math.isqrt(tables[0].shape[0]) + 1) // 2  # the table has (2·window − 1)² rows
    names = [name for name, known in SWIN_SIZES.items() if known == size]
    if not names or window not in (7, 12):
        raise ValueError(f"{size} with window {window} is none of {', '.join(SWIN_SIZES)} with window 7 or 12")
    return {
        "swin_type": names[0],
        "window12": window == 12,
        "prefusion_base_ch": fuser["net.y_inc.block.0.weight"].shape[0],
        "text_dim": fuser["net.txt.proj.weight"].shape[1],
    }
