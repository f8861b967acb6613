"""One retraining, from a configuration to a folder with a network that was read again and compared.

`task` is what was asked, `folder` where it lies and what happened, `run` the steps. The verb `retrain`
calls it once or several times.
"""

from aim_tune.artifacts.network import CONFIG, WEIGHTS
from aim_tune.artifacts.program import ONNX, PROGRAM
from aim_tune.retraining.folder import CARD, METRICS, check_free, write_metrics
from aim_tune.retraining.run import Retrained, about, network_of, retrain, test_pixels
from aim_tune.retraining.task import Task, Wish, prepare

__all__ = [
    "CARD", "CONFIG", "METRICS", "ONNX", "PROGRAM", "WEIGHTS", "Retrained", "Task", "Wish", "about",
    "check_free", "network_of", "prepare", "retrain", "test_pixels", "write_metrics",
]  # fmt: skip
