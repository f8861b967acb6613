"""model.json: what a trained network takes and gives, as plain numbers. Enough to use it; no torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from aim_tune.artifacts.files import write_whole
from aim_tune.data.info import DataInfo, Preparation
from aim_tune.errors import UserError

FORMAT = "aim_tune.model/1"
FILE = "model.json"


@dataclass(frozen=True, kw_only=True)
class Description:
    """A network for people and programs that did not train it."""

    name: str
    """Such as quickstart-aim."""
    classes: tuple[str, ...]
    """In the order of the scores."""
    image_shape: tuple[int, int, int]
    """Channels, height, width."""
    preparation: Preparation
    """Is part of program.pt2 and model.onnx, which take pixels; weights.pt takes prepared images."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON form."""
        return {"format": FORMAT, **asdict(self)}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Description:
        """Inverse of `to_dict`."""
        made = value["preparation"]
        channels = {key: tuple(made[key]) for key in ("scale", "shift")}
        return cls(
            name=value["name"],
            classes=tuple(value["classes"]),
            image_shape=tuple(value["image_shape"]),
            preparation=Preparation(**{**made, **channels}),
        )


def description_of(name: str, info: DataInfo, preparation: Preparation) -> Description:
    """The description of a network trained on this data."""
    return Description(
        name=name,
        classes=info.class_names,
        image_shape=info.image_shape,
        preparation=preparation,
    )


def write_description(folder: Path, description: Description) -> None:
    """Write model.json."""
    write_whole(folder / FILE, json.dumps(description.to_dict(), indent=2) + "\n")


def read_description(folder: Path) -> Description:
    """What lies in a folder that retrain wrote. Raises UserError where there is nothing of the kind."""
    path = folder / FILE
    if not path.is_file():
        raise UserError(
            f"no network in {folder} ({FILE} is missing); run python -m aim_tune.retrain first, or name "
            "the folder that it wrote"
        )
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        if value.get("format") != FORMAT:
            raise UserError(f"{path} has the format {value.get('format')!r}, expected {FORMAT!r}")
        return Description.from_dict(value)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} cannot be read ({error}); retrain again with --force") from None
