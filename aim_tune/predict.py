"""The verb: what a retrained network says of images in a folder. A smoke test of what retrain wrote.

Reads program.pt2 and model.json alone, from a folder or from MLflow's model registry: no plug-in, no
pickle is executed. Images are prepared as those of a data set read from files.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from aim_tune import options
from aim_tune.errors import EXIT_BAD_INPUT, EXIT_DONE, UserError

if TYPE_CHECKING:
    import torch

    from aim_tune.artifacts.description import Description
    from aim_tune.artifacts.program import Run

AT_ONCE = 32
"""Images per call of the network."""


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What the network says of one image."""

    file: str
    predicted: str
    """Name of the class with the highest score."""
    probability: float
    """Softmax of its score; not calibrated."""


def parser() -> argparse.ArgumentParser:
    """The arguments of the verb."""
    p = argparse.ArgumentParser(
        prog="python -m aim_tune.predict",
        description="Prints the class a retrained network gives to each image. Takes seconds. Executes no "
        "pickle and no plug-in: only the program that retrain wrote is read.",
        epilog="Where images lie in folders named like classes, it also says how many are right. Exit "
        "codes: 0 done, 2 bad input.",
    )
    p.add_argument("model", metavar="MODEL",
                   help="folder that retrain wrote, or models:/NAME/VERSION in MLflow")  # fmt: skip
    p.add_argument("images", type=Path, metavar="IMAGES", help="folder of images, or one image")
    form = p.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="a JSON list instead of a table")
    form.add_argument("--csv", action="store_true", help="CSV instead of a table")
    options.add_tracking_uri(p, "results/mlflow.db")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb; the exit code."""
    args = parser().parse_args(argv)
    try:
        files = image_files(args.images)
        about, run = load(args.model, options.tracking_uri(args))
        found = list(predict(about, run, args.images, files))
    except UserError as error:
        options.complain(error)
        return EXIT_BAD_INPUT
    if args.json:
        print(json.dumps([asdict(row) for row in found], indent=2))
    elif args.csv:
        _csv(found)
    else:
        _table(found, about)
    return EXIT_DONE


def load(model: str, tracking_uri: str | None = None) -> tuple[Description, Run]:
    """The description of a network and what it computes, from a folder or models:/NAME/VERSION.

    Raises UserError where there is none, or where it is anything but what retrain wrote.
    """
    from aim_tune.artifacts.description import read_description
    from aim_tune.artifacts.program import PROGRAM, read_program

    if model.startswith("models:/"):
        from aim_tune.tracking.models import fetch
        from aim_tune.tracking.place import default_uri

        folder = fetch(model, tracking_uri or default_uri(_results()))
        about, program = read_description(folder / "extra_files"), folder / "data" / "model.pt2"
    else:
        about, program = read_description(Path(model)), Path(model) / PROGRAM
    if not program.is_file():
        raise UserError(
            f"{program} is not there; write it with python -m aim_tune.retrain CONFIG "
            "--forms weights,program (the same command as before goes on from the trained weights)"
        )
    return about, read_program(program)


def image_files(images: Path) -> list[Path]:
    """Image files in a folder and below, in order; or the one that was named."""
    from aim_tune.data.image_folder import ENDINGS

    if images.is_file():
        return [images]
    if not images.is_dir():
        raise UserError(f"{images} is not there; give a folder of images, or one image")
    found = sorted(p for p in images.rglob("*") if p.suffix.lower() in ENDINGS and p.is_file())
    if not found:
        raise UserError(f"{images} holds no image ({', '.join(sorted(ENDINGS))})")
    return found


def predict(
    about: Description, run: Run, images: Path, files: Sequence[Path]
) -> Iterator[Prediction]:
    """One prediction per file, in their order. Raises DataError naming the files that cannot be read."""
    home = images if images.is_dir() else images.parent
    for start in range(0, len(files), AT_ONCE):
        batch = files[start : start + AT_ONCE]
        shares = run(pixels_of(about, batch)).softmax(dim=1)
        best = shares.max(dim=1)
        for file, share, label in zip(
            batch, best.values.tolist(), best.indices.tolist(), strict=True
        ):
            yield Prediction(
                file=file.relative_to(home).as_posix(),
                predicted=about.classes[label],
                probability=round(share, 6),
            )


def pixels_of(about: Description, files: Sequence[Path]) -> torch.Tensor:
    """[B, C, H, W] float32: resized to the middle square as image folders are, black and white as the
    network knows them."""
    import numpy as np
    import torch

    from aim_tune.data.files import decode_rectangle, raise_faults
    from aim_tune.errors import DataError

    channels, height, width = about.image_shape
    pixels, faults = np.zeros((len(files), channels, height, width), dtype=np.float32), []
    for number, file in enumerate(files):
        try:
            pixels[number] = decode_rectangle(file, about.image_shape)
        except DataError as error:
            faults.append(str(error))
    raise_faults(faults)
    made = about.preparation
    return torch.from_numpy(pixels / 255.0 * (made.white - made.black) + made.black)


def _results() -> Path:
    """Where the default store lies: results here."""
    return Path("results")


def _csv(found: Sequence[Prediction]) -> None:
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(["file", "class", "probability"])
    writer.writerows([row.file, row.predicted, row.probability] for row in found)


def _table(found: Sequence[Prediction], about: Description) -> None:
    width = max(len("file"), *(len(row.file) for row in found))
    wide = max(len("class"), *(len(row.predicted) for row in found))
    print(f"{'file':<{width}}  {'class':<{wide}}  probability")
    for row in found:
        print(f"{row.file:<{width}}  {row.predicted:<{wide}}  {row.probability:.4f}")
    labelled = [row for row in found if Path(row.file).parent.name in about.classes]
    if labelled:
        right = sum(Path(row.file).parent.name == row.predicted for row in labelled)
        print(f"{right} of {len(labelled)} lie in a folder named like the predicted class.")


if __name__ == "__main__":
    sys.exit(main())
