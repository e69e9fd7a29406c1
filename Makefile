# Everything runs from a virtual environment in .venv, made on first use from requirements.txt.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PACKAGES := $(wildcard sqs_jax experiments benchmarks)

.DEFAULT_GOAL := help
.PHONY: help demo test test-scale lint docs dist format clean

help: ## list the targets
	@echo "usage: make TARGET [PYTHON=python3.12]"
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(STAMP) ## train a small digit classifier towards 8,000 bytes, and report; a second run resumes
	@echo "Training a digit classifier towards 8,000 bytes: a minute and a half on two cores."
	@$(BIN)/python -m experiments.train --config=experiments/configs/digits.py \
	  --config.sqs.target_bytes=8000 --workdir=runs/digits
	@echo "The report and the compressed model are in runs/digits."

test: $(STAMP) ## run the tests and the examples of the docstrings
	@echo "Running the tests: ten to thirty-five minutes on two cores; then the examples: one minute."
	@$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder tests
	@JAX_PLATFORMS=cpu $(BIN)/python -m pytest -n 2 --dist loadfile --doctest-modules sqs_jax

test-scale: $(STAMP) ## run the tests of several processes and eight devices
	@echo "Training in several processes, killing some, and a ResNet from weights to file: many minutes."
	@$(BIN)/python -m pytest -m scale tests

lint: $(STAMP) ## check style, formatting and types
	@echo "Checking style, formatting and types: up to a minute, later runs a few seconds."
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy $(PACKAGES)

docs: $(VENV)/.installed-docs ## build the documentation site; warnings are errors
	@echo "Building the site, which runs the tutorial: one minute."
	@$(BIN)/python -m sphinx -q -b html -n -W --keep-going docs docs/_build/html
	@echo "Open docs/_build/html/index.html."

dist: $(VENV)/.installed-dist ## build sdist and wheel, and try the wheel in an empty environment
	@echo "Building the archives and installing the wheel: one to three minutes."
	@.ci/dist $(BIN)/python

format: $(STAMP) ## format the code and apply the safe fixes
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

clean: ## remove the environment, caches and build outputs; runs/ stays
	@rm -rf $(VENV) build dist docs/_build *.egg-info .mypy_cache .pytest_cache .ruff_cache
	@find . -type d -name __pycache__ -prune -exec rm -rf {} +

# A broken environment (an interrupted install, a removed Python) is made anew, any other is updated.
$(STAMP): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "Python 3.11 or newer is needed; $(PYTHON) is $$($(PYTHON) --version 2>/dev/null || echo missing)." \
	    "Name another: make PYTHON=python3.12 ..." >&2; exit 1; }
	@echo "Installing the pinned packages into $(VENV): one to three minutes."
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -r requirements.txt
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

# What only one target needs, so that the others install less.
$(VENV)/.installed-%: requirements-%.txt $(STAMP)
	@echo "Installing what \`make $*\` needs into $(VENV)."
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -r $<
	@touch $@
