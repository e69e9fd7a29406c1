"""The commands and programs of the README and of the guides run as printed."""

import importlib.util
import re
import shlex
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sqs_jax
from sqs_jax.checkpoints import open_checkpoint, write_safetensors
from sqs_jax.cli import main

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
GUIDES = ROOT / "docs" / "guides"
PAGES = [README, ROOT / "docs" / "results.md", *sorted(GUIDES.glob("*.md"))]


def fenced(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), flags=re.DOTALL)


def commands(page: Path) -> list[list[str]]:
    """Return the words of each shell command of a page, without comments."""
    lines = "\n".join(fenced(page, "sh")).replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def run(code: str, page: Path) -> dict[str, object]:
    scope: dict[str, object] = {}
    with jax.numpy_dtype_promotion("standard"):  # optax.adam needs it
        exec(compile(code, str(page), "exec"), scope)
    return scope


def test_readme_is_short() -> None:
    lines = README.read_text().splitlines()
    assert len(lines) <= 150
    assert max(map(len, lines)) <= 120


def test_quick_start_runs_as_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (code,) = fenced(README, "python")
    assert len([line for line in code.splitlines() if line.strip()]) <= 12
    scope = run(code, README)

    report = sqs_jax.inspect(tmp_path / "model.sqs")
    assert report.weights == 19_210
    assert 7.9 < report.ratio < 8.2
    assert f"{report.file_bytes} bytes\n" in capsys.readouterr().out
    assert scope["logits"].shape == (1, 10)  # type: ignore[attr-defined]


def test_commands_of_the_quick_start_run_as_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    kernel = np.random.default_rng(0).normal(size=(256, 128)).astype(np.float32)
    write_safetensors("model.safetensors", {"kernel": kernel, "bias": np.zeros(128, np.float32)})
    sqs = [words[1:] for words in commands(README) if words[0] == "sqs"]
    assert [words[0] for words in sqs] == ["compress", "inspect", "verify", "decompress"]
    for words in sqs:
        assert main(words) == 0, words

    again = open_checkpoint("again.safetensors").tree
    assert {name: (array.shape, array.dtype) for name, array in again.items()} == {
        "kernel": ((256, 128), np.float32),
        "bias": ((128,), np.float32),
    }
    ratio = Path("model.safetensors").stat().st_size / Path("model.sqs").stat().st_size
    assert 7.9 < ratio < 8.5


def test_training_loop_of_the_guide_runs_as_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    page = GUIDES / "training_loop.md"
    (code,) = fenced(page, "python")
    scope = run(code, page)

    report = sqs_jax.inspect(tmp_path / "digits.sqs")
    assert report.weights == 19_210 and report.original_bytes == 76_840  # as its comment says
    assert report.original_bytes / report.file_bytes > 20
    assert report.sparsity == pytest.approx(0.8, abs=1e-4)
    net, weights, x, y = (scope[name] for name in ("net", "weights", "x", "y"))
    accuracy = jnp.mean(jnp.argmax(net.apply({"params": weights}, x), -1) == y)  # type: ignore[attr-defined]
    assert accuracy > 0.95
    assert capsys.readouterr().out.startswith(f"{report.file_bytes} bytes of 76,840\n")


def test_program_of_the_checkpoint_guide_runs_as_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    page = GUIDES / "checkpoint.md"
    (code,) = fenced(page, "python")
    weights = run(code, page)["weights"]
    assert {name: array.shape for name, array in weights.items()} == {  # type: ignore[attr-defined]
        "kernel": (256, 128),
        "bias": (128,),
    }
    assert 7.9 < sqs_jax.inspect("model.sqs").ratio < 8.2


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_name_modules_configs_targets_and_options_that_exist(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    for words in commands(page):
        if words[:2] == ["python", "-m"]:
            spec = importlib.util.find_spec(words[2])
            assert spec is not None and spec.origin is not None, words
            source = Path(spec.origin).read_text()
            for word in words[3:]:
                flag, _, value = word.partition("=")
                if flag == "--config":
                    assert (ROOT / value.split(":")[0]).is_file(), words
                elif flag.startswith("--") and not flag.startswith("--config."):
                    assert f'"{flag[2:]}"' in source or f'"{flag}"' in source, words
        elif words[0] == "make":
            assert words[1] in targets, words
        else:
            assert words[0] in ("sqs", "pip"), words


@pytest.mark.parametrize("page", sorted(ROOT.glob("*.md")), ids=lambda page: page.name)
def test_links_of_the_top_pages_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", page.read_text())
    assert all((ROOT / link).exists() for link in links), links
