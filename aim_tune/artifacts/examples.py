"""A few validation images as PNG files, folder by class: something to try a network on."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from aim_tune.artifacts.files import whole
from aim_tune.data.info import Preparation

FOLDER = "examples"


def write_examples(
    folder: Path, pixels: Tensor, names: list[str], preparation: Preparation
) -> None:
    """One file per image, `examples/CLASS/NUMBER.png`; values beyond black and white are cut."""
    low, high = preparation.black, preparation.white
    bytes_BCHW = ((pixels - low) / (high - low) * 255.0).round().clamp(0, 255).numpy()
    for number, (image, name) in enumerate(zip(bytes_BCHW.astype(np.uint8), names, strict=True)):
        home = re.sub(r"[^\w.-]", "_", name).lstrip(".") or "_"  # of a plug-in it may be anything
        target = folder / FOLDER / home / f"{number}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        with whole(target) as beside:
            picture = Image.fromarray(image[0] if len(image) == 1 else image[:3].transpose(1, 2, 0))
            picture.save(beside, format="PNG")
