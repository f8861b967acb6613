"""The fair comparison: which request comes next, what it will cost, what mattered, what to keep."""

from aim_tune.protocol.machine import DONE, WAIT, Machine, Signal

__all__ = ["DONE", "WAIT", "Machine", "Signal"]
