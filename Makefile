# One command does everything, set-up included: make bench SUITE=aep
SUITE  ?= aep
RUN    ?= $(SUITE)
CONFIG ?= quick
DEVICE ?= auto
ARGS   ?=
VENV   ?= .venv
PYTHON ?= python3
# full: torch as PyPI has it; cpu: torch without CUDA; none: the torch that PYTHON has. A set-up remembers its choice.
TORCH  ?= $(or $(shell cat $(VENV)/.torch 2>/dev/null),full)
WHEELS ?= https://download.pytorch.org/whl/cpu
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
PIP    := $(BIN)/python -m pip install --disable-pip-version-check
BENCH  := $(BIN)/gradbench

.PHONY: help setup bench plan run plot check baseline train test test-all test-fast crashtest lint docs perf clean
.DEFAULT_GOAL := help

help: ## these lines
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 11
	@echo "knobs: SUITE=$(SUITE) RUN=$(RUN) CONFIG=$(CONFIG) DEVICE=$(DEVICE) ARGS= VENV=$(VENV) PYTHON=$(PYTHON) TORCH=$(TORCH)"

setup: $(READY) ## virtual environment with pinned, tested versions: TORCH=full, cpu or none
	@[ "$$(cat $(VENV)/.torch)" = "$(TORCH)" ] || echo "$(VENV) has TORCH=$$(cat $(VENV)/.torch); for TORCH=$(TORCH): make clean first"

SIZE_full := 5.9 GB on disk, most of it CUDA; TORCH=cpu or TORCH=none need less
SIZE_cpu  := 1.6 GB on disk
SIZE_none := 0.6 GB on disk, without torch

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "gradbench needs Python 3.11 or later: make PYTHON=python3.12"; exit 2; }
	@[ -n "$(SIZE_$(TORCH))" ] || { echo "TORCH=$(TORCH): expected full, cpu or none"; exit 2; }
	@[ $(TORCH) != none ] || $(HAS_TORCH) || $(PYTHON) -c 'import torch' 2>/dev/null || { echo "TORCH=none: $(PYTHON) has no torch; name a Python that has one: make setup TORCH=none PYTHON=..."; exit 2; }
	@echo "set-up of $(VENV), TORCH=$(TORCH): $(SIZE_$(TORCH))"
	$(PYTHON) -m venv $(VENV)
	@echo $(TORCH) > $(VENV)/.torch
	@$(SETUP_$(TORCH))
	@touch $@

# the pins of torch are those of PyPI; a wheel of the same version without CUDA counts as newer, and is taken
SETUP_full = $(PIP) --constraint constraints.txt --editable '.[dev,images]'
SETUP_cpu  = $(PIP) --constraint constraints.txt --extra-index-url $(WHEELS) --editable '.[dev,images]'
# the folder of that torch is searched after the environment, whether it is of the system, of conda or of another venv
HAS_TORCH  = $(BIN)/python -c 'import torch' 2>/dev/null
SETUP_none = \
	$(HAS_TORCH) || $(PYTHON) -c 'import pathlib, torch; print(pathlib.Path(torch.__file__).parents[1])' \
		> "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/torch.pth"; \
	grep -v '^torch' constraints.txt > $(VENV)/constraints.txt; \
	$(BIN)/python -c 'from importlib.metadata import version; print("torch", version("torch"), "is there")' && \
	$(PIP) --constraint $(VENV)/constraints.txt --editable '.[dev]'

# figures are drawn and the report is written before the checks, so that they exist when a check fails; the last two lines
# are the path of the report and the verdict
bench: $(READY) ## run a suite, draw its figures, write its report, check its claims: SUITE= DEVICE=
	@$(BENCH) run $(SUITE) --device $(DEVICE) $(ARGS) || [ $$? -eq 3 ]
	@$(BENCH) plot $(RUN)
	@report=$$($(BENCH) report $(RUN)) && { $(BENCH) check $(RUN); code=$$?; echo "report: $$report" >&2; exit $$code; }

plan: $(READY) ## what a suite would do: SUITE=
	@$(BENCH) plan $(SUITE) $(ARGS)

run plot check: $(READY) ## one stage of bench
	@$(BENCH) $@ $(if $(filter run,$@),$(SUITE) --device $(DEVICE),$(RUN)) $(ARGS)

baseline: $(READY) ## make runs the baseline of their suite, for check: RUN=
	@$(BENCH) baseline set $(RUN) $(ARGS)

train: $(READY) ## train by a rule, or go on with it: CONFIG= DEVICE=
	@$(BENCH) train $(CONFIG) --device $(DEVICE) $(ARGS)

# a process that has run out of tests takes half of those that the other one has left
TESTS = $(BIN)/python -m pytest --numprocesses 2 --dist worksteal

test: $(READY) ## the tests, long ones on one system of a kind
	$(TESTS) -m "not long" $(ARGS)

test-all: $(READY) ## all tests
	$(TESTS) $(ARGS)

# two processes at a time; what each prints begins with its campaign, and a failure with the command that repeats it
CRASH = PYTHONPATH=.:tests $(BIN)/python -m crash
crashtest: $(READY) ## kills, failing calls, damage, malformed input, <= 60 min on two cores: ARGS="--kills N"
	@$(CRASH) points $(ARGS) & first=$$!; $(CRASH) kills states damage fuzz $(ARGS); code=$$?; wait $$first && exit $$code

test-fast: $(READY) ## a minute of tests, of every room
	$(TESTS) -m fast $(ARGS)

lint: $(READY) ## style, types, layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(READY) ## the tables and the pages of the shelf in docs/, written from the code
	$(BIN)/python docs/tables.py
	$(BIN)/python docs/shelf.py

perf: $(READY) ## benchmarks, as ratios: DEVICE=
	GRADBENCH_PERF_DEVICE=$(DEVICE) $(BIN)/python -m pytest tests/perf --benchmark-only -s $(ARGS)

clean: ## remove the environment and caches; results stay
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache *.egg-info
