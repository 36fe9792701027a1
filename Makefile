# Everything a user or a developer runs. The environment is made where it is missing, and again when pyproject.toml changes.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo test quick bench lint format clean

demo: $(VENV)/.installed
	$(BIN)/nnunet-selma demo -o demo $(if $(DATA),--data "$(DATA)")

test: lint
	$(BIN)/pytest

quick: lint
	$(BIN)/pytest -m "not slow"

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

clean:
	rm -rf $(VENV) build demo *.egg-info
