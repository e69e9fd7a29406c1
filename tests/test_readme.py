"""The README's training loop runs as printed, and does what it says."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

import sqs_jax

README = Path(__file__).parents[1] / "README.md"


def test_training_loop_runs_as_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
    scope: dict[str, object] = {}
    with jax.numpy_dtype_promotion("standard"):  # optax.adam needs it
        exec(compile(code, str(README), "exec"), scope)

    report = sqs_jax.inspect(tmp_path / "digits.sqs")
    assert report.weights == 19_210 and report.original_bytes == 76_840  # as its comment says
    assert report.original_bytes / report.file_bytes > 20
    assert report.sparsity == pytest.approx(0.8, abs=1e-4)
    net, weights, x, y = (scope[name] for name in ("net", "weights", "x", "y"))
    accuracy = jnp.mean(jnp.argmax(net.apply({"params": weights}, x), -1) == y)  # type: ignore[attr-defined]
    assert accuracy > 0.95
    assert capsys.readouterr().out.startswith(f"{report.file_bytes} bytes of 76,840\n")
