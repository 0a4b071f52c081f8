"""Kernels in C++ for CPU and fp32: each .cpp with its calls in the .py beside it.

A call has the signature of the function of `efftrain.memory.kernels` that bears its name, and returns
None where the kernel is not made for the tensors. torch's operators then do the work.
"""
