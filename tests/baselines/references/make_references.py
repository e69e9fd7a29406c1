"""Make references.json: what OBC's public code and qwix's GPTQ make of the layers of layers.py.

OBC needs torch, and its checkout, https://github.com/IST-DASLab/OBC, as a folder; qwix jax:

    python -m tests.baselines.references.make_references obc CHECKOUT
    python -m tests.baselines.references.make_references qwix
"""

import importlib.metadata
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from tests.baselines.references import layers

FILE = Path(__file__).with_name("references.json")


def obc(checkout: str) -> dict[str, Any]:
    """Return the layer errors that OBC's code prints: means over inputs of squared errors."""
    import torch

    sys.path.insert(0, checkout)
    import quant
    from trueobs import TrueOBS

    torch.cuda.synchronize = lambda *_: None  # its timing; there is no GPU here
    made: dict[str, Any] = {"made_by": f"OBC 9b7979b, torch {torch.__version__}, CPU"}
    for name, shape in layers.OBC_SHAPES.items():
        weights, inputs = layers.layer(shape)

        def fresh(weights: Any = weights, inputs: Any = inputs) -> tuple[Any, Any]:
            linear = torch.nn.Linear(*weights.shape, bias=False)
            linear.weight.data = torch.from_numpy(weights.T.copy())
            found = TrueOBS(linear, rel_damp=layers.DAMPING)
            found.add_batch(torch.from_numpy(inputs), None)
            return linear, found

        def error(found: Any, linear: Any, weights: Any = weights) -> float:
            """Measure as the code adds up its losses, with its own damped Hessian."""
            hessian = found.H.numpy() / 2
            damped = hessian + layers.DAMPING * np.diag(hessian).mean() * np.eye(len(hessian))
            left = linear.weight.data.numpy().T.astype(np.float64) - weights
            return float(np.sum(left * (damped @ left)))

        errors = {}
        for way, prepare in (("unstructured", "prepare_unstr"), ("blocks", "prepare_blocked")):
            linear, found = fresh()
            getattr(found, prepare)()
            for sparsity, pruned in zip(
                layers.SPARSITIES, found.prune_unstr(layers.SPARSITIES), strict=True
            ):
                linear.weight.data = pruned
                errors[f"{way} {sparsity}"] = error(found, linear)
        linear, found = fresh()
        found.nmprune(2, 4)
        errors["2:4"] = error(found, linear)
        for bits in layers.BITS:
            linear, found = fresh()
            found.quantizer = quant.Quantizer()
            found.quantizer.configure(bits, perchannel=True, sym=False, mse=False)
            found.quantize()
            errors[f"{bits} bits"] = error(found, linear)
        made[name] = errors
    return made


def qwix() -> dict[str, Any]:
    """Return what qwix chooses at 4 bits: GPTQ's numbers, and the outputs' error after its AWQ.

    The numbers, -8 to 7, are a string of 16 digits for each row.
    """
    import jax.numpy as jnp
    from qwix._src.core import qarray
    from qwix.contrib import awq_core, gptq_core

    weights, inputs = layers.symmetric_layer()
    given = jnp.asarray(weights.T)
    how = qarray.HowToQuantize(
        qtype=jnp.int4, channelwise_axes=[0], tiled_axes={}, calibration_method="absmax"
    )
    moments = jnp.asarray(inputs.T @ inputs)
    found, _ = gptq_core.quantize_weight(given, moments, how, percdamp=layers.DAMPING)
    codes = np.asarray(found.qvalue).astype(int).T + 8
    sizes = awq_core.compute_act_scale(jnp.asarray(inputs))
    scaled, scales = awq_core.quantize_weight(given, sizes, how)
    left = np.asarray(qarray.dequantize(scaled) / scales - given, np.float64)
    return {
        "made_by": f"qwix {importlib.metadata.version('qwix')}",
        "codes": ["".join(f"{c:x}" for c in row) for row in codes],
        "awq_error": float(np.mean((inputs @ left.T) ** 2)),
    }


def main() -> None:
    """Replace one part of the file beside this one."""
    made = json.loads(FILE.read_text()) if FILE.is_file() else {}
    made[sys.argv[1]] = obc(sys.argv[2]) if sys.argv[1] == "obc" else qwix()
    FILE.write_text(json.dumps(made, indent=1) + "\n")


if __name__ == "__main__":
    main()
