"""The most memory that a training step holds, and what it is made of."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class StepPeak:
    """Memory of a step, in bytes.

    Attributes:
        step_peak_bytes: The most that is held at any moment: parameters, buffers, the batch,
            optimizer state, and what the step makes (activations, gradients, temporaries) while it
            is alive, with what kernels need inside. Gradients are freed before each step
            (`zero_grad`'s default).
        scratch_bytes: How much of that kernels need inside: the peak would be lower by so much if
            only tensors counted. Known for kernels of the CPU (`scratch.py`); 0 on other devices.
        parameter_bytes: Of all parameters.
        buffer_bytes: Of the buffers.
        batch_bytes: Of the model's input.
        gradient_bytes: Of the gradients after backward.
        optimizer_bytes: Of the optimizer's state, which is there from the second step on.
        working_peak_bytes: The most that the step makes and holds besides parameters' gradients.
    """

    step_peak_bytes: int
    scratch_bytes: int
    parameter_bytes: int
    buffer_bytes: int
    batch_bytes: int
    gradient_bytes: int
    optimizer_bytes: int
    working_peak_bytes: int

    def to_dict(self) -> dict[str, int]:
        """The figures by name."""
        return {
            "step_peak_bytes": self.step_peak_bytes,
            "scratch_bytes": self.scratch_bytes,
            "parameter_bytes": self.parameter_bytes,
            "buffer_bytes": self.buffer_bytes,
            "batch_bytes": self.batch_bytes,
            "gradient_bytes": self.gradient_bytes,
            "optimizer_bytes": self.optimizer_bytes,
            "working_peak_bytes": self.working_peak_bytes,
        }
