"""A network as a file that others can run: program.pt2 (torch.export) and model.onnx.

Both take pixels [B, C, H, W] float32 as the data set has them (0 to 255 for photographs) and give one
score per class: the preparation is part of them. Reading executes no pickle: torch.export.load would
unpickle what an archive calls a pickled weight, so an archive that has any is refused unread.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import json
import logging
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from aim_tune.artifacts.files import whole
from aim_tune.data.info import Preparation
from aim_tune.errors import UserError

Run = Callable[[Tensor], Tensor]
"""Pixels [B, C, H, W] -> scores [B, classes]."""
PROGRAM, ONNX = "program.pt2", "model.onnx"
EXAMPLES = 2
"""Images the network is traced with; more than one, so that the number stays open."""
_NUMBERS = ("weight_", "tensor_")
"""How the names of records begin that torch reads as numbers where they are declared to be; it unpickles
custom_obj_ and opaque_obj_ whatever is declared."""
_HARMLESS = (".json", "/version", "/archive_format", "/byteorder", "/.data/version",
             "/.data/serialization_id", "/archive_version")  # fmt: skip


class Prepared(nn.Module):
    """A network that takes pixels: prepares them as in training, then asks the network."""

    scale: Tensor
    shift: Tensor

    def __init__(self, network: nn.Module, preparation: Preparation) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("scale", torch.tensor(preparation.scale).view(1, -1, 1, 1))
        self.register_buffer("shift", torch.tensor(preparation.shift).view(1, -1, 1, 1))

    def forward(self, pixels: Tensor) -> Tensor:
        """Scores of each class."""
        return self.network(pixels * self.scale + self.shift)


def exported(prepared: Prepared, image_shape: tuple[int, int, int]) -> torch.export.ExportedProgram:
    """The network as a graph for any number of images. Raises what torch.export raises."""
    example = torch.zeros(EXAMPLES, *image_shape)
    batch = torch.export.Dim("batch", min=1)
    with _quiet():
        return torch.export.export(
            prepared.eval(), (example,), dynamic_shapes={"pixels": {0: batch}}
        )


def write_program(path: Path, program: torch.export.ExportedProgram) -> None:
    """Save whole or not at all."""
    with whole(path) as beside, _quiet():
        buffer = io.BytesIO()  # torch.export.save takes a path only where it ends in .pt2
        torch.export.save(program, buffer)
        beside.write_bytes(buffer.getvalue())


def read_program(path: Path) -> Run:
    """What a program.pt2 computes. Raises UserError where it is damaged or holds a pickle."""
    refuse_pickles(path)
    try:
        with _quiet():
            module = torch.export.load(io.BytesIO(path.read_bytes())).module()
    except Exception as error:
        raise UserError(f"{path} cannot be read: {_first_line(error)}") from None

    def run(pixels: Tensor) -> Tensor:
        with torch.no_grad():
            return module(pixels)

    return run


def refuse_pickles(path: Path) -> None:
    """Raise UserError unless every record of a .pt2 archive is plain numbers, JSON, or the sample
    inputs, which torch reads with weights_only."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            records = {name.partition("/")[2]: name for name in names}
            if len(records) != len(names) or len({name.partition("/")[0] for name in names}) != 1:
                raise ValueError("the same record twice, or two archives in one")
            plain = {f"data/sample_inputs/{Path(n).name}" for n in records if "sample_inputs" in n}
            for record, name in records.items():
                if record.endswith("_config.json"):
                    plain |= _plain_records(path, archive, record, name)
    except UserError:
        raise
    except (OSError, zipfile.BadZipFile, ValueError, KeyError, AttributeError) as error:
        raise UserError(f"{path} is no torch.export program: {_first_line(error)}") from None
    for record in records:
        if record not in plain and not f"/{record}".endswith(_HARMLESS):
            raise _may_be_pickle(path, record)


def _may_be_pickle(path: Path, record: str) -> UserError:
    return UserError(
        f"{path} holds {record}, which is or may be a pickle: reading it could run any code. "
        "Only programs that retrain wrote are read"
    )


def _plain_records(path: Path, archive: zipfile.ZipFile, record: str, name: str) -> set[str]:
    """Records that a config of weights or constants names; all have to be declared plain numbers."""
    home = record.rpartition("/")[0]
    entries = json.loads(archive.read(name))["config"].values()
    for entry in entries:
        if entry["use_pickle"] is not False or not entry["path_name"].startswith(_NUMBERS):
            raise _may_be_pickle(path, f"{home}/{entry['path_name']}")
    return {f"{home}/{entry['path_name']}" for entry in entries}


def onnx_missing() -> list[str]:
    """Packages that writing and checking model.onnx lacks."""
    wanted = ("onnx", "onnxscript", "onnxruntime")
    return [name for name in wanted if importlib.util.find_spec(name) is None]


def write_onnx(path: Path, program: torch.export.ExportedProgram) -> None:
    """Save whole or not at all, weights inside."""
    with whole(path) as beside, _quiet():
        torch.onnx.export(
            program, (), str(beside), dynamo=True, verbose=False, external_data=False,
            input_names=["pixels"], output_names=["scores"],
        )  # fmt: skip


def read_onnx(path: Path) -> Run:
    """What a model.onnx computes, on the CPU. Needs onnxruntime. Raises UserError where it is damaged."""
    runtime: Any = importlib.import_module("onnxruntime")
    try:
        session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    except Exception as error:
        raise UserError(f"{path} cannot be read: {_first_line(error)}") from None

    def run(pixels: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {"pixels": pixels.numpy()})[0])

    return run


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporters print and log about themselves."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:300]
