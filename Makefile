# Two commands matter: `make demo` and `make test`. Each does its own set-up.
SHELL := /bin/bash
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
HAWSE := $(CURDIR)/$(BIN)/hawse

.PHONY: setup demo test soak lint bench lab image clean

setup: $(STAMP)

$(STAMP): pyproject.toml requirements.lock scripts/host-packages
	bash scripts/host-packages
	/usr/bin/python3 -m venv $(VENV)
	$(BIN)/pip install --quiet --require-hashes -r requirements.lock
	$(BIN)/pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

image: setup
	$(HAWSE) image build

demo: image
	$(BIN)/python demo/run $(HAWSE) $(BIN)/python

test: image
	$(BIN)/python -m tests $(ARGS)

# As the tests of an engine do, but a hundred containers in a row, and twenty at once; and a hundred in one pod.
soak: image
	HAWSE_ROUNDS=100 $(BIN)/python -m tests tests/engines/test_podman.py -k in_a_row --durations=0 -rP

lint: setup
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

bench: image
	$(BIN)/python -m bench $(ONLY)

lab: image
	$(BIN)/python -m tests.lab.host shell

clean:
	rm -rf $(VENV) build dist evidence
