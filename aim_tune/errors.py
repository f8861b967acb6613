"""The exceptions of aim_tune, and the exit codes the verbs turn them into.

    AimTuneError
      UserError (also ValueError)   something the user gave or asked for; exit 2
        StudyError                  faults in a study file or a --set; carries all of them
        DataError                   a data set that is missing, incomplete or damaged
        AttachError                 an add-on that does not fit the network
        ResumeError                 the folder holds another study, other code or other data
        LedgerError                 a ledger that is damaged in the middle
        LockedError                 another process works in this folder
        ResourceError               GPUs, CPUs or storage that are not there

Every text says what was found, where, what is allowed and what to do next.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches

EXIT_DONE = 0
EXIT_BAD_INPUT = 2
EXIT_TOO_MANY_FAILED = 3
EXIT_NOT_MET = 4
EXIT_INTERRUPTED = 130

MOST_LISTED = 24
"""Names an error text lists; of more it shows the nearest."""


class AimTuneError(Exception):
    """Root of everything this package raises on purpose."""


class UserError(AimTuneError, ValueError):
    """Bad input: the text is meant to be read by the person who gave it."""


class DataError(UserError):
    """A data set is missing, incomplete or damaged; the text names the file."""


class AttachError(UserError):
    """An add-on cannot be latched on to this network as asked."""


class ResumeError(UserError):
    """The results folder belongs to a different study, code or data."""


class LedgerError(UserError):
    """The ledger cannot be read; the text names the line."""


class LockedError(UserError):
    """Another process works in the same results folder."""


class ResourceError(UserError):
    """The machine or cluster does not have what the study asks for."""


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One thing that is wrong in a study file."""

    where: str
    """file:line, or the flag it came from."""
    key: str
    """Dotted key, such as recipe.optimizer."""
    text: str
    """What was found, what is allowed, what to do."""

    def __str__(self) -> str:
        return (
            f"{self.where}: {self.key}: {self.text}" if self.key else f"{self.where}: {self.text}"
        )


class StudyError(UserError):
    """All faults of a study at once."""

    def __init__(self, faults: Sequence[Fault]) -> None:
        self.faults = tuple(faults)
        count = len(self.faults)
        head = f"{count} fault{'s' if count != 1 else ''} in the study:"
        super().__init__("\n  ".join([head, *map(str, self.faults)]))


def unknown(what: str, name: object, known: Sequence[str]) -> str:
    """Text for an unknown name: the nearest known one first, then all of them (of many, the nearest).

    >>> unknown("backbone", "resnet9", ["resnet8", "mlp"])
    "unknown backbone 'resnet9'; did you mean 'resnet8'? known: mlp, resnet8"
    """
    near = get_close_matches(str(name), known, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    if len(known) <= MOST_LISTED:
        return f"unknown {what} {name!r}; {hint}known: {', '.join(sorted(known))}"
    some = get_close_matches(str(name), known, n=8, cutoff=0.0)
    return f"unknown {what} {name!r}; {hint}the nearest of {len(known)} known: {', '.join(some)}"
