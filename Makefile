# `make help` lists the targets.  All paths are relative, so the folder may lie anywhere, spaces included.
SHELL := /bin/sh
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules

PORT ?= 8000
ARGS ?=
MINUTES ?= 60
# Which torch: auto, cpu, cuda, or a wheel's path or URL.  tools/install_torch.py explains the choice.
TORCH ?= auto
export PYTORCH_INDEX ?= https://download.pytorch.org/whl/cpu
export PYTHON
export PIP_DISABLE_PIP_VERSION_CHECK = 1

python := .venv/bin/python
pip := $(python) -m pip install --quiet
# What each pytest marker means stands in pyproject.toml.
beyond_test := slow or debian or soak or live
# A file's tests share its services, so a file stays with one worker.
pytest := OMP_NUM_THREADS=1 $(python) -m pytest
workers := --numprocesses=auto --maxprocesses=4 --dist=loadfile

.PHONY: help serve test test-all soak check format surface docs lock clean install install-test install-test-all force

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1|\2/p' Makefile | awk -F'|' '{printf "  %-16s %s\n", $$1, $$2}'
	@echo "  settings         PORT=8000 ARGS='...' TORCH=auto|cpu|cuda|WHEEL PYTORCH_INDEX=URL PYTHON=/path/to/python"

serve: .venv/.serve ## install once and serve: PORT=8000 ARGS="[MODEL] [flags]"
	@exec $(python) -m penstock serve --port $(PORT) $(ARGS)

test: .venv/.test ## the tests that need nothing but this machine; some 6 minutes on 2 cores
	@$(pytest) $(workers) -m "not ($(beyond_test))" $(ARGS)

test-all: .venv/.test-all ## also slow ones, Debian's packages, long kills and fuzz; QUICK=1: only what `make test` leaves out and is quick
	@$(pytest) $(if $(QUICK),$(workers) -m "(slow or debian) and not (soak or live)",-m "not live") $(ARGS)

soak: .venv/.test ## random requests at an engine for MINUTES=60: answers right, memory flat; prints it over time
	@SOAK_MINUTES=$(MINUTES) $(pytest) -q -m soak tests/e2e/test_soak.py $(ARGS)

check: .venv/.test ## format, lint, strict types, floors, generated pages
	@$(python) -m ruff format --check --quiet . || { echo "not formatted: make format"; exit 1; }
	@$(python) -m ruff check --quiet .
	@$(python) -m mypy
	@.venv/bin/lint-imports --no-logo
	@$(python) tools/reference.py --check

format: .venv/.test ## format the code and fix what ruff can fix
	@$(python) -m ruff format .
	@$(python) -m ruff check --fix .

docs: .venv/.test ## write docs/reference/ again
	@$(python) tools/reference.py

surface: .venv/.test ## write tests/surface/snapshots/ again, to be reviewed as a diff
	@UPDATE_SURFACE=1 $(pytest) -q tests/surface

lock: .venv/.test ## write locks/ again; UPGRADE=1 takes newer versions
	@$(python) tools/lock.py

clean: ## remove the environment and the caches
	@rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis build dist
	@find src tests tools -name __pycache__ -type d -prune -exec rm -rf {} +

install: .venv/.serve
install-test: .venv/.test
install-test-all: .venv/.test-all

.venv/bin/python:
	@tools/venv.sh

# An explicit choice of torch is looked at every time; `auto` only once.
.venv/.torch: tools/install_torch.py $(if $(filter auto,$(TORCH)),,force) | .venv/bin/python
	@$(python) tools/install_torch.py "$(TORCH)"
	@touch $@

.venv/.serve: locks/serve.txt pyproject.toml .venv/.torch
	@echo "installing what locks/serve.txt lists"
	@$(pip) --require-hashes -r locks/serve.txt
	@$(pip) --no-deps --no-build-isolation -e .
	@touch $@

# Each lock contains the one before it at the same versions.
.venv/.test: locks/test.txt locks/serve.txt pyproject.toml .venv/.torch
	@echo "installing what locks/test.txt lists"
	@$(pip) --require-hashes -r locks/test.txt
	@$(pip) --no-deps --no-build-isolation -e .
	@touch .venv/.serve $@

.venv/.test-all: locks/test-all.txt locks/test.txt locks/serve.txt pyproject.toml .venv/.torch
	@echo "installing what locks/test-all.txt lists"
	@$(pip) --require-hashes -r locks/test-all.txt
	@$(pip) --no-deps --no-build-isolation -e .
	@touch .venv/.serve .venv/.test $@

force:
