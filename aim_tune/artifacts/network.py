"""A trained network in its folder: written in several forms, each read again and compared before it counts.

weights.pt has to be the trained network bit for bit (its digest); program.pt2 and model.onnx have to give
the same class for every image, and the same scores but for rounding.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from aim_tune.arms import build_arm
from aim_tune.artifacts.config import asked, read_config
from aim_tune.artifacts.description import Description, read_description
from aim_tune.artifacts.files import whole
from aim_tune.artifacts.program import (
    ONNX,
    PROGRAM,
    Prepared,
    Run,
    exported,
    onnx_missing,
    read_onnx,
    read_program,
    write_onnx,
    write_program,
)
from aim_tune.data.info import DataInfo
from aim_tune.errors import UserError
from aim_tune.spec import Request, Study
from aim_tune.tables import catalog_of
from aim_tune.training.evaluate import weights_sha256

WEIGHTS = "weights.pt"
CONFIG = "best_config.yaml"
FORMS = ("weights", "program", "onnx")
FILES = {"weights": WEIGHTS, "program": PROGRAM, "onnx": ONNX}
TOLERANCE = 1e-3
"""Largest difference of a score, relative to the largest score: float32 added in another order."""


@dataclass(frozen=True, kw_only=True)
class Written:
    """One form of a network."""

    form: str
    """weights, program or onnx."""
    status: str
    """same (written, read, compared), left_out, or failed (nothing is kept then)."""
    detail: str

    @property
    def file(self) -> str:
        """Its name in the folder."""
        return FILES[self.form]


def save_weights(path: Path, model: nn.Module) -> None:
    """The state_dict on the CPU, whole or not at all."""
    state = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
    with whole(path) as beside:
        try:
            torch.save(state, beside)
        except RuntimeError as error:  # torch raises it on a full disk
            raise UserError(f"cannot write {path}: {error}") from None


def read_network(
    path: Path, study: Study, request: Request, *, info: DataInfo, sha256: str | None
) -> nn.Module:
    """The trained network of a weights file, on the CPU, in eval mode.

    Raises UserError where the file is damaged, of another network, or not what was trained (`sha256`).
    """
    ((arm, point),) = request.arms.items()
    catalog = catalog_of(study.plugins)
    with torch.inference_mode(False):  # people load where they predict; building needs more
        model = build_arm(study, catalog, arm, point, streams=request.streams, info=info)
    try:
        model.load_state_dict(torch.load(path, weights_only=True, map_location="cpu"))
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, AttributeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else "damaged"
        raise UserError(f"{path} cannot be read: {reason}; retrain with --force") from None
    if sha256 is not None and weights_sha256(model) != sha256:
        raise UserError(f"{path} is not the network that was trained; retrain with --force")
    return model.eval()


def load_model(folder: Path | str) -> nn.Module:
    """The network of a folder written by retrain, on the CPU, in eval mode.

    Takes prepared images [B, C, H, W] (`Source.test_batches`, or pixels x scale + shift of model.json);
    program.pt2 takes pixels. Runs the plug-ins that the configuration carries, and no pickle. Raises
    UserError where the folder holds no network.
    """
    folder = Path(folder)
    about = read_description(folder)
    study, request = asked(read_config(folder / CONFIG))
    info = DataInfo(
        name=study.data.name, classes=len(about.classes), class_names=about.classes,
        image_shape=about.image_shape, pool=0, test=0, train=0, val=0, digest="",
    )  # fmt: skip
    return read_network(folder / WEIGHTS, study, request, info=info, sha256=None)


def prepared_of(network: nn.Module, about: Description) -> Prepared:
    """A copy that takes pixels, in eval mode and plain layout."""
    plain = deepcopy(network).to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    return Prepared(plain, about.preparation).eval()


def write_forms(
    folder: Path, prepared: Prepared, about: Description, pixels: Tensor, forms: Sequence[str]
) -> Iterator[Written]:
    """Write program.pt2 and model.onnx as asked; each is read again and compared on `pixels`."""
    wanted = [form for form in FORMS[1:] if form in forms]
    if not wanted:
        return
    try:
        program = exported(prepared, about.image_shape)
    except Exception as error:  # of torch.export: any of its many
        text = f"torch.export cannot trace this network: {_said(error)}"
        yield from (Written(form=form, status="failed", detail=text) for form in wanted)
        return
    with torch.no_grad():
        scores = prepared(pixels)
    for form in wanted:
        yield _written(form, folder / FILES[form], program, pixels, scores)


def _written(form: str, path: Path, program: Any, pixels: Tensor, scores: Tensor) -> Written:
    """One form: written, read, compared; not kept unless it is the same."""
    missing = onnx_missing() if form == "onnx" else []
    if missing:
        text = f"{', '.join(missing)} not installed; pip install 'aim-tune[onnx]' and run again"
        return Written(form=form, status="left_out", detail=text)
    write, read = (write_onnx, read_onnx) if form == "onnx" else (write_program, read_program)
    try:
        write(path, program)
        detail = compare(read(path), pixels, scores)
    except UserError:
        path.unlink(missing_ok=True)
        raise
    except Exception as error:
        path.unlink(missing_ok=True)
        return Written(form=form, status="failed", detail=_said(error))
    return Written(form=form, status="same", detail=detail)


class Differs(Exception):
    """A file does not predict what the trained network predicts."""


def compare(run: Run, pixels: Tensor, scores: Tensor) -> str:
    """In words how near `run` comes to `scores`; raises Differs where it is another function."""
    found = run(pixels)
    scale = float(scores.abs().max().clamp(min=1e-6))
    gap = float((found - scores).abs().max()) / scale
    top = scores.topk(2, dim=1).values if scores.shape[1] > 1 else None
    clear = torch.ones(len(scores), dtype=torch.bool)
    if top is not None:  # a tie may fall either way
        clear = (top[:, 0] - top[:, 1]) > 2 * TOLERANCE * scale
    same = found.argmax(1) == scores.argmax(1)
    if found.shape != scores.shape or not gap <= TOLERANCE or not bool(same[clear].all()):
        raise Differs(
            f"predicts otherwise: {int((~same).sum())} of {len(scores)} classes differ, scores by up "
            f"to {gap:.1e} of the largest"
        )
    near = f"within {gap:.0e} of the largest" if gap else "identical"
    return f"same class for {int(same.sum())} of {len(scores)} test images, scores {near}"


def _said(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    text = lines[0][:300] if lines else "no reason given"
    return text if isinstance(error, Differs) else f"{type(error).__name__}: {text}"
