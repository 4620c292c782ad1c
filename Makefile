# One command does everything, set-up included: make bench SUITE=aep
SUITE  ?= aep
RUN    ?= $(SUITE)
CONFIG ?= quick
DEVICE ?= auto
ARGS   ?=
VENV   ?= .venv
PYTHON ?= python3
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
BENCH  := $(BIN)/gradbench

.PHONY: help setup bench plan run plot check train test lint docs perf clean
.DEFAULT_GOAL := help

help: ## these lines
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10
	@echo "knobs: SUITE=$(SUITE) RUN=$(RUN) CONFIG=$(CONFIG) DEVICE=$(DEVICE) ARGS= VENV=$(VENV) PYTHON=$(PYTHON)"

setup: $(READY) ## virtual environment with pinned, tested versions

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "gradbench needs Python 3.11 or later: make PYTHON=python3.12"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

# figures are drawn before the checks, so that they exist when a check fails and the verdict is the last line
bench: $(READY) ## run a suite, draw its figures, check its claims: SUITE= DEVICE=
	@$(BENCH) run $(SUITE) --device $(DEVICE) $(ARGS) || [ $$? -eq 3 ]
	@$(BENCH) plot $(RUN)
	@$(BENCH) check $(RUN)

plan: $(READY) ## what a suite would do: SUITE=
	@$(BENCH) plan $(SUITE) $(ARGS)

run plot check: $(READY) ## one stage of bench
	@$(BENCH) $@ $(if $(filter run,$@),$(SUITE) --device $(DEVICE),$(RUN)) $(ARGS)

train: $(READY) ## train by a rule, or go on with it: CONFIG= DEVICE=
	@$(BENCH) train $(CONFIG) --device $(DEVICE) $(ARGS)

test: $(READY) ## all tests
	$(BIN)/python -m pytest $(ARGS)

lint: $(READY) ## style, types, layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(READY) ## the tables of the docs, written from the code
	$(BIN)/python docs/tables.py

perf: $(READY) ## benchmarks, as ratios: DEVICE=
	GRADBENCH_PERF_DEVICE=$(DEVICE) $(BIN)/python -m pytest tests/perf --benchmark-only -s $(ARGS)

clean: ## remove the environment and caches; results stay
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache *.egg-info
