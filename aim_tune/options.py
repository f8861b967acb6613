"""What several verbs share on the command line: options, each worded once, and how they complain.

Of the top layer; imports nothing heavy.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import textwrap

VERDICTS = ("better", "worse", "equivalent", "no_evidence", "withheld", "not_asked")


def add_set(p: argparse.ArgumentParser, example: str) -> None:
    """--set KEY=VALUE, as `args.overrides`."""
    p.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="overrides",
        help=f"change one value of the study, such as {example}; may be repeated",
    )


def add_fail_unless(p: argparse.ArgumentParser) -> None:
    """--fail-unless VERDICT."""
    p.add_argument(
        "--fail-unless",
        choices=VERDICTS,
        metavar="VERDICT",
        help=f"exit with 4 unless the verdict is this one: {', '.join(VERDICTS)}",
    )


def add_tracking(p: argparse.ArgumentParser, default_store: str) -> None:
    """--tracking and --tracking-uri."""
    p.add_argument(
        "--tracking",
        choices=("on", "optional", "off"),
        default="on",
        help="MLflow: on (fail early where it cannot be reached), optional, off",
    )
    add_tracking_uri(p, default_store)


def add_tracking_uri(p: argparse.ArgumentParser, default_store: str) -> None:
    """--tracking-uri; read it with `tracking_uri`."""
    p.add_argument(
        "--tracking-uri",
        metavar="URI",
        help=f"MLflow store ({default_store}; also MLFLOW_TRACKING_URI)",
    )


def count(text: str) -> int:
    """A count, as the type of an option."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text}: give 1 or more")
    return number


def complain(text: object) -> None:
    """Print to standard error; on a terminal, lines break between words."""
    shown = str(text)
    if sys.stderr.isatty():
        shown = wrapped(shown, shutil.get_terminal_size().columns)
    print(shown, file=sys.stderr)


def wrapped(text: str, width: int) -> str:
    """`text` in lines of at most `width`, as far as its words are that short; what a line begins with
    indents the lines that follow from it."""
    lines = []
    for line in text.splitlines():
        indent = line[: len(line) - len(line.lstrip())]
        lines += textwrap.wrap(
            line, max(20, width), subsequent_indent=indent and indent + "  ",
            break_long_words=False, break_on_hyphens=False,
        ) or [""]  # fmt: skip
    return "\n".join(lines)


def tracking_uri(args: argparse.Namespace) -> str | None:
    """The store that was named; None: the default one."""
    return args.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or None
