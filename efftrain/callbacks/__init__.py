"""Lightning callbacks: each times or counts one thing and logs it.

They take plain values and use Lightning's public interface only, so that any Lightning script can
use them without Hydra.
"""

from efftrain.callbacks.activation_memory import ActivationMemory
from efftrain.callbacks.cost_curve import CostCurve
from efftrain.callbacks.doctor import Checkup, Doctor
from efftrain.callbacks.efficiency_summary import EfficiencySummary
from efftrain.callbacks.energy_meter import EnergyMeter
from efftrain.callbacks.finite_loss import FiniteLoss
from efftrain.callbacks.learning_rate import LearningRate
from efftrain.callbacks.model_cost import ModelCost
from efftrain.callbacks.parameter_count import ParameterCount
from efftrain.callbacks.progress import progress_bar
from efftrain.callbacks.step_timer import StepTimer
from efftrain.callbacks.tensorboard_logger import DescribedTensorBoardLogger
from efftrain.callbacks.throughput import Throughput

__all__ = [
    "ActivationMemory",
    "Checkup",
    "CostCurve",
    "DescribedTensorBoardLogger",
    "Doctor",
    "EfficiencySummary",
    "EnergyMeter",
    "FiniteLoss",
    "LearningRate",
    "ModelCost",
    "ParameterCount",
    "StepTimer",
    "Throughput",
    "progress_bar",
]
