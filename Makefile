# `make demo` and `make test` work on a fresh machine: each creates .venv by itself when it is missing.
#   make test PYTHON=python3.12
#   make test PIP_FLAGS="--extra-index-url https://download.pytorch.org/whl/cpu"    # torch without CUDA, 2 GB less

PYTHON ?= python3
PIP_FLAGS ?=

.PHONY: demo test

demo: .venv/installed
	.venv/bin/llmc run quickstart -o demo-out --force

test: .venv/installed
	.venv/bin/pytest

.venv/installed: pyproject.toml constraints.txt CMakeLists.txt $(shell find src/llmc -name __init__.py) $(wildcard src/llmc/native/*)
	@$(PYTHON) -c 'import sys; sys.exit("llmc needs Python 3.11 or newer: make PYTHON=python3.12" if sys.version_info < (3, 11) else 0)'
	@echo "creating .venv: a few minutes the first time"
	$(PYTHON) -m venv .venv
	.venv/bin/pip install -qq $(PIP_FLAGS) -c constraints.txt -e '.[dev]'
	@touch $@
