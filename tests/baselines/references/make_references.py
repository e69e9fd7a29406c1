"""Write references.json from OBC's public code and qwix, for the layers of layers.py.

"obc" needs torch and a checkout of https://github.com/IST-DASLab/OBC; "qwix" needs qwix:

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

    torch.cuda.synchronize = lambda *_: None  # the code calls it for timing; this runs on a CPU
    references: dict[str, Any] = {"made_by": f"OBC 9b7979b, torch {torch.__version__}, CPU"}
    for name, shape in layers.OBC_SHAPES.items():
        weights, inputs = layers.layer(shape)

        def fresh(weights: Any = weights, inputs: Any = inputs) -> tuple[Any, Any]:
            linear = torch.nn.Linear(*weights.shape, bias=False)
            linear.weight.data = torch.from_numpy(weights.T.copy())
            pruner = TrueOBS(linear, rel_damp=layers.DAMPING)
            pruner.add_batch(torch.from_numpy(inputs), None)
            return linear, pruner

        def error(pruner: Any, linear: Any, weights: Any = weights) -> float:
            """Sum the losses like the public code, with its damped Hessian."""
            hessian = pruner.H.numpy() / 2
            damped = hessian + layers.DAMPING * np.diag(hessian).mean() * np.eye(len(hessian))
            left = linear.weight.data.numpy().T.astype(np.float64) - weights
            return float(np.sum(left * (damped @ left)))

        errors = {}
        for setting, prepare in (("unstructured", "prepare_unstr"), ("blocks", "prepare_blocked")):
            linear, pruner = fresh()
            getattr(pruner, prepare)()
            for sparsity, pruned in zip(
                layers.SPARSITIES, pruner.prune_unstr(layers.SPARSITIES), strict=True
            ):
                linear.weight.data = pruned
                errors[f"{setting} {sparsity}"] = error(pruner, linear)
        linear, pruner = fresh()
        pruner.nmprune(2, 4)
        errors["2:4"] = error(pruner, linear)
        for bits in layers.BITS:
            linear, pruner = fresh()
            pruner.quantizer = quant.Quantizer()
            pruner.quantizer.configure(bits, perchannel=True, sym=False, mse=False)
            pruner.quantize()
            errors[f"{bits} bits"] = error(pruner, linear)
        references[name] = errors
    return references


def qwix() -> dict[str, Any]:
    """Return the codes of qwix's GPTQ and the output error of its AWQ, at 4 bits.

    The codes of a row, -8 to 7, are a string of hexadecimal digits of code + 8.
    """
    import jax.numpy as jnp
    from qwix._src.core import qarray
    from qwix.contrib import awq_core, gptq_core

    weights, inputs = layers.symmetric_layer()
    kernel = jnp.asarray(weights.T)
    how = qarray.HowToQuantize(
        qtype=jnp.int4, channelwise_axes=[0], tiled_axes={}, calibration_method="absmax"
    )
    moments = jnp.asarray(inputs.T @ inputs)
    quantized, _ = gptq_core.quantize_weight(kernel, moments, how, percdamp=layers.DAMPING)
    codes = np.asarray(quantized.qvalue).astype(int).T + 8
    sizes = awq_core.compute_act_scale(jnp.asarray(inputs))
    scaled, scales = awq_core.quantize_weight(kernel, sizes, how)
    left = np.asarray(qarray.dequantize(scaled) / scales - kernel, np.float64)
    return {
        "made_by": f"qwix {importlib.metadata.version('qwix')}",
        "codes": ["".join(f"{c:x}" for c in row) for row in codes],
        "awq_error": float(np.mean((inputs @ left.T) ** 2)),
    }


def main() -> None:
    """Replace the references of a program, "obc" or "qwix", in references.json."""
    references = json.loads(FILE.read_text()) if FILE.is_file() else {}
    references[sys.argv[1]] = obc(sys.argv[2]) if sys.argv[1] == "obc" else qwix()
    FILE.write_text(json.dumps(references, indent=1) + "\n")


if __name__ == "__main__":
    main()
