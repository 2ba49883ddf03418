"""The sizes of the networks: named Swin sizes, and the choices that `build_model` is made from."""
import math
import os
import re
from dataclasses import dataclass
from typing import Any, NamedTuple

from utils.checkpoint import stored_args
from utils.flags import FUSION_METHODS

WINDOWS = (7, 12)
WIDEST_FUSER = 1024  # of a wider one the weights alone take more than 50 GB


class SwinSize(NamedTuple):
    """Width of the first stage, and blocks and attention heads of the four stages."""

    embed_dim: int
    depths: tuple[int, ...]
    num_heads: tuple[int, ...]


SWIN_SIZES = {
    "micro": SwinSize(32, (2, 2, 2, 2), (1, 2, 4, 8)),  # not published; for the demo and the tests
    "tiny": SwinSize(96, (2, 2, 6, 2), (3, 6, 12, 24)),
    "small": SwinSize(96, (2, 2, 18, 2), (3, 6, 12, 24)),
    "base": SwinSize(128, (2, 2, 18, 2), (4, 8, 16, 32)),
    "large": SwinSize(192, (2, 2, 18, 2), (6, 12, 24, 48)),
}


@dataclass(frozen=True)
class Architecture:
    """What the shapes of fuser and LAVT follow from, besides the width of the text encoder.

    Attributes:
        swin_type: a key of SWIN_SIZES.
        window: side of Swin's attention windows, 7 or 12.
        pwam_heads: attention heads of PWAM in each of the four stages; they divide the stage's width.
        fusion_drop: dropout rate in PWAM, in [0, 1).
        prefusion_base_ch: the fuser's width c, from 1 to WIDEST_FUSER.
        prefusion_model: one of `utils.flags.FUSION_METHODS`.
    Raises:
        ValueError: a value is none of these, or heads do not divide a stage's width.
    """

    swin_type: str = "base"
    window: int = 7
    pwam_heads: tuple[int, ...] = (1, 1, 1, 1)
    fusion_drop: float = 0.0
    prefusion_base_ch: int = 32
    prefusion_model: str = "unet_fuser"

    def __post_init__(self) -> None:
        if self.swin_type not in SWIN_SIZES:
            raise ValueError(f"{self.swin_type!r} is none of the Swin sizes {', '.join(SWIN_SIZES)}")
        if self.window not in WINDOWS:
            raise ValueError(f"attention windows have a side of {' or '.join(map(str, WINDOWS))}, not {self.window}")
        if self.prefusion_model not in FUSION_METHODS:
            raise ValueError(f"{self.prefusion_model!r} is none of the fusion methods {', '.join(FUSION_METHODS)}")
        if not 0 <= self.fusion_drop < 1:
            raise ValueError(f"fusion_drop must be at least 0 and below 1, not {self.fusion_drop!r}")
        if not isinstance(self.prefusion_base_ch, int) or not 1 <= self.prefusion_base_ch <= WIDEST_FUSER:
            raise ValueError(f"prefusion_base_ch must be a whole number from 1 to {WIDEST_FUSER}, not "
                             f"{self.prefusion_base_ch!r}")
        for stage, heads in enumerate(self.pwam_heads):
            width = self.size.embed_dim * 2 ** stage
            if width % heads:
                raise ValueError(f"{heads} heads do not divide the {width} channels of stage {stage + 1} of Swin "
                                 f"{self.swin_type}")

    @property
    def size(self) -> SwinSize:
        """Widths, depths and heads of the Swin Transformer."""
        return SWIN_SIZES[self.swin_type]

    @classmethod
    def from_flags(cls, flags: Any) -> "Architecture":
        """From anything that has the attributes of the training flags.

        Args:
            flags: has `swin_type`, `window12` (bool), `pretrained_swin_weights` (`window12` in the file's name
                means windows of 12), `mha` (as in `parse_heads`), `fusion_drop`, `prefusion_base_ch` and, unless it is
                the default, `prefusion_model`; or is an Architecture.
        Raises:
            ValueError: as for the class.
        """
        if isinstance(flags, cls):
            return flags
        window12 = flags.window12 or "window12" in os.path.basename(flags.pretrained_swin_weights)
        return cls(flags.swin_type, 12 if window12 else 7, parse_heads(flags.mha), flags.fusion_drop,
                   flags.prefusion_base_ch, getattr(flags, "prefusion_model", cls.prefusion_model))

    @classmethod
    def from_checkpoint(cls, content: dict, pwam_heads: tuple[int, ...] = (1, 1, 1, 1)) -> "Architecture":
        """From the names and shapes of the tensors of a checkpoint, and from the fusion method that it names.

        Args:
            content: as `utils.checkpoint.read` gives it, with `model` and `prefusion_model`.
            pwam_heads: which no tensor shows.
        Raises:
            KeyError: a tensor that every such checkpoint has is absent.
            ValueError: the sizes are none that can be built.
        """
        segmenter, fuser, method = content["model"], content["prefusion_model"], fusion_method(content)
        blocks = {tuple(map(int, match.groups())) for key in segmenter
                  if (match := re.match(r"backbone\.layers\.(\d+)\.blocks\.(\d+)\.", key))}
        tables = [segmenter[f"backbone.layers.{stage}.blocks.0.attn.relative_position_bias_table"]
                  for stage in range(4)]
        size = SwinSize(
            embed_dim=segmenter["backbone.patch_embed.proj.weight"].shape[0],
            depths=tuple(sum(stage == i for stage, _ in blocks) for i in range(4)),
            num_heads=tuple(table.shape[1] for table in tables))
        window = (math.isqrt(tables[0].shape[0]) + 1) // 2  # the table has (2·window − 1)² rows
        names = [name for name, known in SWIN_SIZES.items() if known == size]
        if not names or window not in WINDOWS:
            raise ValueError(f"{size} with window {window} is none of {', '.join(SWIN_SIZES)} with window 7 or 12")
        width = fuser["net.y_inc.block.0.weight"].shape[0] if method == "unet_fuser" else cls.prefusion_base_ch
        return cls(names[0], window, pwam_heads, prefusion_base_ch=width, prefusion_model=method)


def fusion_method(content: dict) -> str:
    """Which of `utils.flags.FUSION_METHODS` a checkpoint was trained with.

    It is `unet_fuser` if there are weights of a fuser; else what `args` in the checkpoint says.
    """
    stored = stored_args(content).get("prefusion_model")
    return str(stored) if stored in FUSION_METHODS and not content.get("prefusion_model") else "unet_fuser"


def parse_heads(text: str) -> tuple[int, ...]:
    """PWAM's attention heads by stage from the form `4-4-4-4`; an empty string means one head each.

    Raises:
        ValueError: not four whole numbers above 0.
    """
    if not text:
        return (1, 1, 1, 1)
    if not isinstance(text, str) or not re.fullmatch(r"[1-9]\d*(-[1-9]\d*){3}", text):
        raise ValueError(f"{text!r} is not four numbers of heads, as in 4-4-4-4")
    return tuple(int(number) for number in text.split("-"))
