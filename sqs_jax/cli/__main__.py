"""Entry point of `python -m sqs_jax.cli`, which is the `sqs` command."""

import sys

from sqs_jax.cli import main

sys.exit(main())
