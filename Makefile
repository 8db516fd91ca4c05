# Two commands for a fresh machine: `make demo` and `make test`. Both set up first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test test-ranges lint docs wheel clean
.DEFAULT_GOAL := help

help:
	@echo "make demo   set up, distil the shipped teacher twice (OPTIMA and plain KD), show the report's path"
	@echo "make test   set up, run all tests"
	@echo "make lint   ruff and import walls;  make docs   build the documentation;  make wheel   build the wheel"
	@echo "make test-ranges   tests with the oldest and the newest transformers and accelerate that are allowed"

# torch comes first: a later package that asks for "torch" would otherwise pull the newest CUDA build. The build backend
# is installed, too, as pip does not hold a build environment of its own to the constraints.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch hatchling editables
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-build-isolation -e ".[dev]"
	touch $(READY)

DEMO_DIR ?= runs/demo-$(shell date +%Y%m%d-%H%M%S)

demo: $(READY)
	$(BIN)/potstill demo --out $(DEMO_DIR)

test: $(READY)
	$(BIN)/python -m pytest -n 2 --dist worksteal tests

# Installs packages in environments of its own, so it is no part of test.
test-ranges: $(READY)
	$(BIN)/python tools/test_ranges.py

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

docs: $(READY)
	$(BIN)/mkdocs build --strict

wheel: $(READY)
	$(BIN)/python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir dist .

clean:
	rm -rf $(VENV) build dist site
