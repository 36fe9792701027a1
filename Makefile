# Everything a user or a developer runs. The environment is made where it is missing, and again when pyproject.toml changes.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
MINIMUM := $(VENV)/minimum
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo test quick test-minimum gpu bench lint format clean

demo: $(VENV)/.installed
	$(BIN)/nnunet-selma demo -o demo $(if $(DATA),--data "$(DATA)")

# two processes with a compute thread each; the second line rehearses on a CPU what make gpu checks
test: lint
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadgroup
	OMP_NUM_THREADS=1 $(BIN)/pytest tests/gpu --device cpu -n 2

quick: lint
	OMP_NUM_THREADS=1 $(BIN)/pytest -m "not slow" -n 2 --dist loadgroup

# with every package at the lowest version that pyproject.toml allows
test-minimum: $(MINIMUM)/.installed
	OMP_NUM_THREADS=1 $(MINIMUM)/bin/python -m pytest -m "not slow" -n 2 --dist loadgroup

# on a CUDA device; refreshes the table in docs/performance.md
gpu: $(VENV)/.test-installed
	$(BIN)/pytest -m gpu tests/gpu --gpu-page docs/performance.md

# side by side, about an hour and a half on two cores; refreshes docs/performance.md
bench: $(VENV)/.test-installed
	$(BIN)/python -m benchmarks

lint: $(VENV)/.test-installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.test-installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --editable ".[brains]"
	touch $@

$(VENV)/.test-installed: $(VENV)/.installed
	$(BIN)/pip install --editable ".[test]"
	touch $@

$(MINIMUM)/.installed: pyproject.toml
	$(PYTHON) -m venv $(MINIMUM)
	$(MINIMUM)/bin/pip install uv
	$(MINIMUM)/bin/uv pip install --python $(MINIMUM)/bin/python --resolution lowest-direct --compile-bytecode --editable ".[test]"
	touch $@

clean:
	rm -rf $(VENV) build demo *.egg-info
