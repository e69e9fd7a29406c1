"""Every public name has an example in its docstring; `make test` runs the examples."""

import inspect
from types import ModuleType
from typing import Any

import pytest

import sqs_jax
import sqs_jax.checkpoints
import sqs_jax.linen
import sqs_jax.nnx


def public_names() -> dict[str, Any]:
    """Return the public functions and classes by dotted name; a module gives its own."""
    modules = [sqs_jax, sqs_jax.checkpoints, sqs_jax.linen, sqs_jax.nnx]
    names = {}
    while modules:
        module = modules.pop()
        prefix = "sqs_jax.saliency" if module is sqs_jax.saliency else module.__name__
        for name in getattr(module, "__all__", None) or defined_in(module):
            value = getattr(module, name)
            if isinstance(value, ModuleType):
                modules.append(value)
            elif inspect.isroutine(value) or inspect.isclass(value):  # DEFAULT_RULES is neither
                names[f"{prefix}.{name}"] = value
    return names


def defined_in(module: ModuleType) -> list[str]:
    return [
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", None) == module.__name__
    ]


@pytest.mark.parametrize("name", sorted(public_names()))
def test_public_name_has_an_example(name: str) -> None:
    docstring = inspect.getdoc(public_names()[name]) or ""
    assert ">>>" in docstring, f"{name} has no example in its docstring"
