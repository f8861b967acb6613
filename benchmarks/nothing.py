"""A plug-in for real_nulls.py: an add-on that adds nothing. Its arm is the backbone, drawn anew.

Torch's own initialization again, from the add-on's stream: the same law as the baseline's, other numbers.
Everything else (points, split, data order) is shared within a twin, as for every arm.
"""

import torch
from torch import nn


class Nothing:
    """The backbone itself."""

    arms = {"nothing": "the backbone with other random weights"}  # noqa: RUF012
    primary = "nothing"

    @staticmethod
    def build(backbone: nn.Module, *, arm: str, image_shape: tuple[int, ...], seed: int):
        """`backbone` with its dense layers drawn from `seed`; the global generator stays as it was."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            for layer in backbone.modules():
                if isinstance(layer, nn.Linear):
                    layer.reset_parameters()
        return backbone


ADDONS = {"nothing": Nothing}
