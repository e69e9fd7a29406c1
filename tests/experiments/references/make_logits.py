"""Write logits.json, the logits of transformers for the models of language_models.py.

pip install torch transformers; python -m tests.experiments.references.make_logits
"""

import json
import tempfile
from pathlib import Path

import torch
import transformers

from tests.experiments.language_models import CONFIGS, SEPARATOR, tokens, write_folder


def logits(kind: str) -> list[float]:
    """Compute the last four positions' logits, or all of a BERT's, flattened."""
    with tempfile.TemporaryDirectory() as folder:
        write_folder(Path(folder), kind)
        model = getattr(transformers, CONFIGS[kind]["architectures"][0]).from_pretrained(folder)
    ids = torch.from_numpy(tokens(kind)).long()
    inputs = {"input_ids": ids}
    if kind.startswith("bert"):
        inputs["attention_mask"] = (ids != 0).long()
        before = torch.cumsum(ids == SEPARATOR, 1) - (ids == SEPARATOR).long()
        inputs["token_type_ids"] = torch.clamp(before, max=1) * inputs["attention_mask"]
    with torch.no_grad():
        outputs = model(**inputs)
    if kind == "bert_answers":
        return torch.stack([outputs.start_logits, outputs.end_logits], 1).flatten().tolist()
    return (
        (outputs.logits if outputs.logits.ndim == 2 else outputs.logits[:, -4:]).flatten().tolist()
    )


def main() -> None:
    """Write logits.json to the folder of this script."""
    reference = {kind: [round(x, 5) for x in logits(kind)] for kind in CONFIGS}
    versions = f"transformers {transformers.__version__}, torch {torch.__version__}, float32, CPU"
    path = Path(__file__).with_name("logits.json")
    path.write_text(json.dumps({"made_by": versions, **reference}))


if __name__ == "__main__":
    main()
