# The front door. Each target does all its set-up: a fresh machine needs Python 3.11+, make and pip's package index.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

VENV := .venv
BIN := $(VENV)/bin
PIP = $(BIN)/python -m pip install --quiet --disable-pip-version-check -c $(CONSTRAINTS)
STAMP := $(VENV)/.installed
CONSTRAINTS := .ci/constraints.txt
# The oldest supported Python first: what passes there passes on the newer ones. `make venv PYTHON=...` overrides.
PYTHON ?= $(firstword $(foreach name,python3.11 python3.12 python3.13 python3,\
	$(if $(shell $(name) -c 'import sys; print(sys.version_info >= (3, 11) or "")' 2>/dev/null),$(name))))
# Exact, and installed first: `torch==X` is met by a CPU build as well, and then nothing pulls a CUDA one.
TORCH := $(shell sed -n 's/^\(torch==.*\)/\1/p' $(CONSTRAINTS))

.PHONY: help venv demo test coverage check

help:  ## say what can be made
	@sed -n 's/^\([a-z]*\):.*##/make \1\t/p' $(MAKEFILE_LIST) | expand -t 14

venv: $(STAMP)  ## set up .venv with every extra and the tools, in exact versions

$(STAMP): pyproject.toml $(CONSTRAINTS)
	@test -n "$(PYTHON)" || { echo "make: no Python 3.11 or newer found; say make venv PYTHON=/path/to/python" >&2; exit 3; }
	@echo "make: set-up, 1 of 3: an environment of $(PYTHON) in $(VENV)" >&2
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "make: set-up, 2 of 3: pip fetches and unpacks PyTorch (0.8 GB unpacked, a minute or two)" >&2
	@$(PIP) "$(TORCH)"
	@echo "make: set-up, 3 of 3: pip adds the runtimes, converters and tools (1.6 GB, two to five minutes)" >&2
	@$(PIP) -e '.[all,dev]'
	@touch $(STAMP)

demo: venv  ## the whole road on embedded data, about a minute
	$(BIN)/edgeexport demo

test: venv  ## every test that this machine can run; what it lacks is skipped and listed
	$(BIN)/python -m pytest

coverage: venv  ## the same, and the lines that no test reaches (a third slower)
	$(BIN)/python -m pytest --cov --cov-report=term:skip-covered

check: venv  ## style, types, layers, dead code, dependencies
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/vulture
	$(BIN)/deptry .
