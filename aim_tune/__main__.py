"""`aim-tune VERB ...` and `python -m aim_tune VERB ...`: hands over to the module of the verb."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from aim_tune.errors import EXIT_BAD_INPUT, EXIT_DONE, unknown

VERBS = {
    "search": "tune every arm with the same budget, compare, decide",
    "report": "write verdict.json and report.html of a results folder anew",
    "export": "write the best configuration with its provenance",
    "retrain": "train an exported configuration for real",
    "describe": "show what attaching a memory to a network would do",
    "track": "bring MLflow up to the ledger, or make it anew",
    "doctor": "check this machine and say what to do",
    "cluster": "check a cluster file, see and fetch what runs there",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print("usage: aim-tune VERB ...   (aim-tune VERB --help says more)\n")
        print("\n".join(f"  {verb:<9} {what}" for verb, what in VERBS.items()))
        return EXIT_DONE
    verb = arguments[0]
    if verb not in VERBS:
        print(unknown("verb", verb, list(VERBS)), file=sys.stderr)
        return EXIT_BAD_INPUT
    return importlib.import_module(f"aim_tune.{verb}").main(arguments[1:])


if __name__ == "__main__":
    sys.exit(main())
