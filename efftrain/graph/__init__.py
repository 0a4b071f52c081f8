"""A model as operations, seen by running it on tensors that have shapes but no values."""
