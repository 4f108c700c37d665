# Two commands matter: `make demo` and `make test`. Each does its own set-up; only tests and benchmarks install container
# engines.
SHELL := /bin/bash
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
HAWSE := $(CURDIR)/$(BIN)/hawse

.PHONY: setup engines bytecode demo test soak mutants fuzz lint bench lab image clean

setup: $(STAMP)

$(STAMP): pyproject.toml requirements.lock scripts/host-packages
	bash scripts/host-packages hawse
	/usr/bin/python3 -m venv $(VENV)
	$(BIN)/pip install --quiet --require-hashes -r requirements.lock
	$(BIN)/pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

engines:
	bash scripts/host-packages tests

# Commands of hawse start by the hundred in tests; byte code is also written where PYTHONDONTWRITEBYTECODE is set.
bytecode: setup
	$(BIN)/python -m compileall -q src tests demo

image: bytecode
	$(HAWSE) image build

demo: image
	$(BIN)/python demo/run $(HAWSE) $(BIN)/python

test: engines image
	$(BIN)/python -m tests $(ARGS)

# The tests that repeat what they do, with many rounds: containers in a row and in one pod, attaching, changes of code.
soak: engines image
	HAWSE_SOAK=1 $(BIN)/python -m tests -m soak --durations=0 -rP

# How many of N random mutations of src/hawse the unit and contract tests notice; SEED repeats a sample.
mutants: engines setup
	nice $(BIN)/python -m tests.mutants $(or $(N),50) $(SEED) --least 0.85

# The parsers of what a guest sends, with hostile inputs: SECONDS for each of TARGETS, or CASES of each.
fuzz: setup
	nice $(BIN)/python -m tests.fuzz $(if $(CASES),--cases $(CASES)) $(if $(SECONDS),--seconds $(SECONDS)) $(TARGETS)

lint: setup
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

bench: engines image
	$(BIN)/python -m bench $(ONLY)

lab: engines image
	$(BIN)/python -m tests.lab.host shell

clean:
	rm -rf $(VENV) build dist evidence
