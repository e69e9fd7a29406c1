"""The `sqs` command: compression of checkpoints, and inspection of sqs files."""

import argparse
from collections.abc import Sequence

from sqs_jax import __version__
from sqs_jax.cli.compress import add_compress
from sqs_jax.cli.console import complain, end_cleanly_on_signals, flush, standard_streams
from sqs_jax.cli.decompress import add_decompress
from sqs_jax.cli.inspection import add_diff, add_inspect, add_verify
from sqs_jax.cli.plot import add_plot

__all__ = ["main"]

_EPILOG = """examples:
  sqs compress model.safetensors -o model.sqs --target-ratio 8
  sqs compress Llama-3.2-1B/ -o Llama-3.2-1B-sqs/ --target-bytes 400MB
  sqs inspect model.sqs
  sqs verify model.sqs model.safetensors
  sqs decompress model.sqs -o again.safetensors

exit codes: 0 success; 1 verify or diff found differences or problems, or compress left out files
with tensors; 2 invalid command line; 3 a file cannot be read, written or made small enough, or an
option does not fit the file."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line and return the exit code.

    Args:
        argv: Arguments without the program's name. None for those of the process; signal handlers
            that remove temporary files are then installed.
    """
    if argv is None:
        end_cleanly_on_signals()
    with standard_streams():
        parser = argparse.ArgumentParser(
            prog="sqs",
            description="Compress checkpoints of neural networks, and inspect compressed files.",
            epilog=_EPILOG,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        parser.add_argument("--version", action="version", version=f"sqs {__version__}")
        commands = parser.add_subparsers(required=True, metavar="COMMAND")
        for add in (add_compress, add_decompress, add_inspect, add_verify, add_diff, add_plot):
            add(commands)
        try:
            try:
                args = parser.parse_args(argv)
                return int(args.run(args))
            finally:
                flush()  # here, where an error is still reported; covers the output of --help too
        except OSError as error:
            named = error.filename is not None and error.strerror
            complain(f"{error.filename}: {error.strerror}" if named else str(error))
            return 3
        except (ValueError, TypeError, ImportError) as error:
            complain(str(error))
            return 3
        except MemoryError as error:
            complain(f"out of memory: {error}; choose fewer tensors at a time by --only")
            return 3
        except KeyboardInterrupt:
            complain("interrupted; no output was written")
            return 130
