"""What happened: the single source of truth. Everything else (MLflow, report, Optuna studies, progress) is
rebuilt from it. `records` lists the events, `history` replays them, `file` keeps them on disk."""

from aim_tune.ledger.file import Ledger, holder, read_history
from aim_tune.ledger.history import History
from aim_tune.ledger.packing import pack_bits, pack_ints, unpack_bits, unpack_ints
from aim_tune.ledger.records import EVENTS, FAILED, STATUSES, Measure, Training, TrainingResult

__all__ = [
    "EVENTS", "FAILED", "STATUSES", "History", "Ledger", "Measure", "Training", "TrainingResult",
    "holder", "pack_bits", "pack_ints", "read_history", "unpack_bits", "unpack_ints",
]  # fmt: skip
