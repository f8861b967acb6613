"""What a trained network says: validation loss and accuracy, test predictions, a digest of its weights.

Draws no random number, changes nothing in the network but its train/eval flag. Knows no test label.
"""

from __future__ import annotations

import hashlib
import json
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aim_tune.data.source import Source
from aim_tune.spec.study import Recipe

PIXELS_AT_ONCE = 2**20  # values in one evaluation batch, unless the recipe trains with more
LARGEST_BATCH = 128  # larger ones are slower: activations leave the cache


def evaluation_batch(recipe: Recipe, image_shape: tuple[int, int, int]) -> int:
    """Images per evaluation batch: a function of recipe and data only, as it can change rounding."""
    channels, height, width = image_shape
    return max(recipe.batch_size, min(LARGEST_BATCH, PIXELS_AT_ONCE // (channels * height * width)))


def precision(recipe: Recipe, device: torch.device) -> AbstractContextManager[Any]:
    """The context of a forward pass: bfloat16 autocast where the recipe asks for it."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=recipe.amp)


def memory_format(recipe: Recipe) -> torch.memory_format:
    """Layout of images and weights."""
    return torch.channels_last if recipe.channels_last else torch.contiguous_format


@torch.no_grad()
def validate(
    model: nn.Module, source: Source, positions: Tensor, *, recipe: Recipe, device: torch.device
) -> tuple[float, float]:
    """(mean cross-entropy in nats without label smoothing, accuracy in 0..1) over the positions."""
    model.eval()
    loss = torch.zeros((), dtype=torch.float64, device=device)
    correct = torch.zeros((), dtype=torch.int64, device=device)
    batches = positions.split(evaluation_batch(recipe, source.info.image_shape))
    for images, labels in source.pool_batches(batches, device):
        with precision(recipe, device):
            logits = model(images.contiguous(memory_format=memory_format(recipe)))
        loss += F.cross_entropy(logits.float(), labels, reduction="sum")
        correct += (logits.argmax(1) == labels).sum()
    return loss.item() / len(positions), correct.item() / len(positions)


@torch.no_grad()
def predict_test(
    model: nn.Module, source: Source, *, recipe: Recipe, device: torch.device
) -> Tensor:
    """[n_test] int64 on the CPU: the predicted class of each sealed test example, in fixed order."""
    model.to(device).eval()
    size = evaluation_batch(recipe, source.info.image_shape)
    classes = []
    for images in source.test_batches(size, device):
        with precision(recipe, device):
            logits = model(images.contiguous(memory_format=memory_format(recipe)))
        classes.append(logits.argmax(1).cpu())
    return torch.cat(classes)


def weights_sha256(model: nn.Module) -> str:
    """SHA-256 over names, types, shapes and values of the state_dict, wherever and however it is laid out."""
    sha = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        sha.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        sha.update(flat.view(torch.uint8).numpy().data)
    return sha.hexdigest()
