"""Readers and writers of other tools' checkpoints, tensor by tensor."""

from sqs_jax.checkpoints.detect import open_checkpoint
from sqs_jax.checkpoints.folder_writer import write_safetensors_folder
from sqs_jax.checkpoints.lazy_array import Checkpoint, CheckpointError, LazyArray
from sqs_jax.checkpoints.msgpack_file import write_msgpack
from sqs_jax.checkpoints.npz_file import write_npz
from sqs_jax.checkpoints.other_files import copy_other_files
from sqs_jax.checkpoints.safetensors_file import write_safetensors
from sqs_jax.checkpoints.tensor_names import flat_names, unwrapped

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "LazyArray",
    "copy_other_files",
    "flat_names",
    "open_checkpoint",
    "unwrapped",
    "write_msgpack",
    "write_npz",
    "write_safetensors",
    "write_safetensors_folder",
]
