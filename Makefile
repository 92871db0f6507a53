# make demo   rank the heads of SmolLM2-135M and write a report
# make test   every test, fast and slow
# make check  format, lint, types, architecture and the fast tests
# make bench  the engine beside plain SDPA and three other tools
# make load   twenty users of the application at once, for two minutes
# make docs   regenerate the pages that are made from the code

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
CONFIG := pyproject.toml constraints.txt

PYTEST := HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q
# Threads that wait sleep rather than spin: CI machines have neighbours.
PYTEST_SLOW := HF_HUB_OFFLINE=1 OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest -q
JOBS ?= 2

# Sized to end within a quarter of an hour on two cores, installation included. Leave them out for a full run.
DEMO ?= --n 24 --lengths 256,512 --length 256 --k 10 --trials 4

.PHONY: help demo test check bench load docs clean browser weights

help:
	@sed -n 's/^# make/make/p' Makefile

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "headscope needs Python 3.11 or newer: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.core: $(CONFIG) | $(BIN)/python
	$(PIP) install -q -c constraints.txt -e .
	touch $@

$(VENV)/.test: $(CONFIG) | $(BIN)/python
	$(PIP) install -q -c constraints.txt -e '.[test]'
	touch $@ $(VENV)/.core

# The tests of the report and of the application look at them in a real browser.
browser:
	@if ! command -v chromium chromium-browser google-chrome >/dev/null; then \
		if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
			apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium; \
		else \
			echo "No Chromium found; the tests of pages need one: sudo apt-get install chromium" >&2; exit 1; \
		fi; \
	fi

weights: $(VENV)/.core
	$(BIN)/headscope models fetch smollm2-135m

demo: weights
	$(BIN)/headscope rank retrieval sinks induction --model smollm2-135m --out runs/demo $(DEMO)

test: $(VENV)/.test browser weights
	$(PYTEST) -n $(JOBS) -m "not slow"
	TRITON_INTERPRET=1 $(PYTEST) -n $(JOBS) tests/kernels/test_triton.py
	$(PYTEST_SLOW) -m slow

check: $(VENV)/.test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(PYTEST) -n $(JOBS) -m "not slow"

bench: $(VENV)/.test weights
	$(BIN)/headscope bench capture --lengths 512,2048,8192

load: $(VENV)/.test weights
	HF_HUB_OFFLINE=1 $(BIN)/python -m tests.app.load --seconds 120 --users 20

docs: $(VENV)/.test
	$(BIN)/python scripts/families_table.py

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find headscope tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
