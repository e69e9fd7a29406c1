"""Benchmarks of size and speed: python -m benchmarks [NAME ...]."""

import os

# An accelerator's memory is also for the processes that `memory` starts, and for PyTorch.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
