"""Lightning callbacks: each times or counts one thing and logs it.

They take plain values and use Lightning's public interface only, so that any Lightning script can
use them without Hydra.
"""

from efftrain.callbacks.doctor import Checkup, Doctor
from efftrain.callbacks.finite_loss import FiniteLoss
from efftrain.callbacks.learning_rate import LearningRate
from efftrain.callbacks.parameter_count import ParameterCount
from efftrain.callbacks.progress import progress_bar
from efftrain.callbacks.step_timer import StepTimer
from efftrain.callbacks.throughput import Throughput

__all__ = [
    "Checkup",
    "Doctor",
    "FiniteLoss",
    "LearningRate",
    "ParameterCount",
    "StepTimer",
    "Throughput",
    "progress_bar",
]
