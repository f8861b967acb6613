"""The fair comparison: which request comes next, what it will cost, what mattered, what to keep."""

from aim_tune.protocol.gates import Gate
from aim_tune.protocol.machine import DONE, WAIT, Machine, Signal
from aim_tune.protocol.stages import Told

__all__ = ["DONE", "WAIT", "Gate", "Machine", "Signal", "Told"]
