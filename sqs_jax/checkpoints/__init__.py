"""Checkpoints of other tools: read and written tensor by tensor."""

from sqs_jax.checkpoints.detect import open_checkpoint
from sqs_jax.checkpoints.huggingface_folder import copy_other_files, write_safetensors_folder
from sqs_jax.checkpoints.lazy import Checkpoint, CheckpointError, LazyArray
from sqs_jax.checkpoints.names import flat_names
from sqs_jax.checkpoints.safetensors_file import write_safetensors

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "LazyArray",
    "copy_other_files",
    "flat_names",
    "open_checkpoint",
    "write_safetensors",
    "write_safetensors_folder",
]
