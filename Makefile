.DEFAULT_GOAL := help
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DEMO ?= build/demo

.PHONY: help
help:  ## Show these commands
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

# One environment for everything; made again when the project's requirements change.
$(VENV)/installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' \
		|| { echo "make: $(PYTHON) is $$($(PYTHON) --version 2>&1); Python 3.11 to 3.13 is needed (make PYTHON=python3.12 ...)"; exit 2; }
	@echo "setting up $(VENV) (once)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

.PHONY: setup
setup: $(VENV)/installed  ## Make the environment (the other commands do it when needed)

.PHONY: demo
demo: setup  ## Run the whole pipeline on the bundled digits
	@$(BIN)/must demo --output $(DEMO)
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python pipeline/run_local.py --parameters $(DEMO)/pipeline.yaml --output $(DEMO)/run

.PHONY: test
test: setup  ## Run the tests (the slow ones: make test-slow)
	@$(BIN)/python -m pytest

.PHONY: test-slow
test-slow: setup  ## Run the tests that take minutes
	@$(BIN)/python -m pytest -m slow

.PHONY: lint
lint: setup  ## Check style and types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

.PHONY: format
format: setup  ## Mend what the style check can mend
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

.PHONY: compile
compile: setup  ## Compile the Kubeflow pipeline
	@$(BIN)/python pipeline/compile.py

.PHONY: clean
clean:  ## Remove the environment and everything built
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
