# Everything a person runs. Needs Python 3.11 or newer and make; the rest goes into .venv.

SHELL := /bin/bash
.DEFAULT_GOAL := help

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.rushes-setup
EXTRAS := app,torchcodec,test

SEED ?= 0
WORKERS ?= 2
ROUNDS ?= 5000
VIDEOS ?= ../shared/videos

# One thread a test process: WORKERS of them share the cores.
PYTEST := OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python -m pytest

.PHONY: help commands setup demo demo-full results test test-fast test-slow lint bench clean

help: ## list these targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: $(STAMP) ## create .venv with everything pinned by constraints.txt

# PyTorch goes first and alone: asked for by another package, an unpinned newer build may come.
$(STAMP): pyproject.toml constraints.txt
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	    || { echo "rushes needs Python 3.11 or newer, found $$("$(PYTHON)" --version 2>&1) as $(PYTHON); set PYTHON=" >&2; exit 1; }
	test -x $(BIN)/python || "$(PYTHON)" -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt setuptools wheel
	$(BIN)/python -m pip install --quiet "$$(grep -E '^torch==' constraints.txt)"
	$(BIN)/python -m pip install --quiet --no-build-isolation -c constraints.txt -e ".[$(EXTRAS)]"
	@touch $@

demo: $(STAMP) ## the whole road on a rendered corpus: about 15 minutes on two cores
	$(BIN)/rushes demo

demo-full: $(STAMP) ## the same at full size: make demo-full SEED=n
	$(BIN)/rushes demo --full --seed $(SEED)

commands: $(STAMP) ## every published command of docs/commands.md on small data, and its dry run
	$(PYTEST) -m "" tests/test_published_commands.py $(ARGS)

results: $(STAMP) ## merge docs/results/demo-full-*.json into docs/results.md
	$(BIN)/rushes results

test: $(STAMP) ## every test that CI runs
	$(PYTEST) -n $(WORKERS) --dist loadgroup -m "not soak and not full" $(ARGS)

test-fast: $(STAMP) ## the same without those marked slow
	$(PYTEST) -n $(WORKERS) --dist loadgroup -m "not slow and not soak and not full" $(ARGS)

test-slow: $(STAMP) ## soak, fuzz with ROUNDS mutated inputs, full sizes: hours
	RUSHES_ROUNDS=$(ROUNDS) $(PYTEST) -o timeout=0 -m "soak or fuzz or full" $(ARGS)

lint: $(STAMP) ## ruff, mypy strict, import contract
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(STAMP) ## every benchmark, JSON under runs/bench: make bench VIDEOS=folder of raw files
	@mkdir -p runs/bench
	@set -e; for file in benchmarks/*.py; do \
	    case "$$file" in */_*) continue;; esac; \
	    name=$$(basename "$$file" .py); echo "== $$name"; more=; \
	    case "$$name" in decode|plan) more="--videos $(VIDEOS)";; esac; \
	    $(BIN)/python "$$file" --json "runs/bench/$$name.json" $$more; \
	done

clean: ## remove what builds and tools leave behind, not .venv and not runs
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +
