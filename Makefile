.DEFAULT_GOAL := help
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DEMO ?= build/demo
# Test files on several processes at once, each file on one; JOBS=0 runs all in this one (for a debugger).
JOBS ?= logical
PYTEST := --numprocesses $(JOBS) --maxprocesses 8 --dist loadfile --no-loadscope-reorder

.PHONY: help
help:  ## Show these commands
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

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
	@$(BIN)/python -m pytest $(PYTEST)

.PHONY: test-slow
test-slow: setup  ## Run the tests that take minutes
	@$(BIN)/python -m pytest $(PYTEST) -m slow

SECONDS ?= 60
TARGETS ?=
.PHONY: fuzz
fuzz: setup  ## Fuzz each parser of foreign bytes (SECONDS=60 each; TARGETS="tar zip" for some)
	@$(BIN)/python -c 'import atheris' 2>/dev/null || $(BIN)/pip install --quiet --disable-pip-version-check \
		--only-binary=atheris --editable '.[fuzz]' 2>/dev/null || true
	@if $(BIN)/python -c 'import atheris' 2>/dev/null; then $(BIN)/python -m tests.fuzz $(SECONDS) $(TARGETS); \
		else echo "make: fuzzing is skipped: atheris cannot be had for $$($(BIN)/python --version)"; fi

.PHONY: test-kfp
test-kfp: setup  ## Check a Kubeflow: KFP_HOST=... [NAMESPACE=...] [STORE=gs://...] [CLUSTER=FILE] [KFP_ARGS=...]
	@test -n "$(KFP_HOST)" || { echo "make: say where: make test-kfp KFP_HOST=http://localhost:8080 ..."; exit 2; }
	@$(BIN)/python -m tests.kfp --host "$(KFP_HOST)" $(if $(NAMESPACE),--namespace "$(NAMESPACE)") \
		$(if $(STORE),--store "$(STORE)") $(if $(CLUSTER),--cluster "$(CLUSTER)") $(KFP_ARGS)

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

# -- images (docs/containers.md) ----------------------------------------------------------------------------------------
IMAGES := must-shard must-torch must-train must-launcher
ENGINE ?= $(shell command -v docker || command -v podman)
REGISTRY ?=
TAG ?= $(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' must/__init__.py)
BASE ?= docker.io/library/python:3.11-slim
# must-train has torch from TORCH_INDEX (PyPI's carries CUDA), the other images with torch have it from CPU_INDEX.
TORCH_INDEX ?= https://pypi.org/simple
TORCH_LOCK ?= torch-cuda.txt
CPU_INDEX ?= https://download.pytorch.org/whl/cpu
CPU_LOCK ?= torch.in
PREFIX := $(if $(REGISTRY),$(REGISTRY)/)
REVISION := $(shell git rev-parse HEAD 2>/dev/null)$(shell git diff --quiet HEAD 2>/dev/null || echo -dirty)
SOURCE ?= $(shell git config --get remote.origin.url | sed 's,//[^@/]*@,//,')

.PHONY: images $(IMAGES) must-tools
images: $(IMAGES)  ## Build the images (REGISTRY=..., TAG=..., ENGINE=podman; TORCH_INDEX=... for another CUDA)
must-train: TORCH_ARGS = --build-arg TORCH_INDEX=$(TORCH_INDEX) --build-arg TORCH_LOCK=$(TORCH_LOCK)
must-torch: TORCH_ARGS = --build-arg TORCH_INDEX=$(CPU_INDEX) --build-arg TORCH_LOCK=$(CPU_LOCK)
$(IMAGES) must-tools:
	@test -n "$(ENGINE)" || { echo "make: neither docker nor podman is here; ENGINE=... names one"; exit 2; }
	$(ENGINE) build --file images/Dockerfile --target $@ --tag $(PREFIX)$@:$(TAG) --build-arg BASE=$(BASE) $(TORCH_ARGS) \
		--build-arg VERSION=$(TAG) --build-arg REVISION=$(REVISION) --build-arg SOURCE=$(SOURCE) .

.PHONY: push
push: images  ## Push the images to REGISTRY
	@test -n "$(REGISTRY)" || { echo "make: say where: make push REGISTRY=..."; exit 2; }
	@for image in $(IMAGES); do $(ENGINE) push $(PREFIX)$$image:$(TAG) || exit 1; done

.PHONY: test-containers
test-containers: setup images  ## Build the images and test them, alone and as a pipeline
	@$(BIN)/python -m pytest -m containers tests/containers

.PHONY: sbom
sbom: $(IMAGES) must-tools  ## Write what is in each image to build/sbom (CycloneDX)
	@ENGINE="$(ENGINE)" PREFIX="$(PREFIX)" TAG="$(TAG)" sh images/sbom.sh build/sbom $(IMAGES)

.PHONY: audit
audit: must-tools  ## Look the locked packages up among the known vulnerabilities
	@$(ENGINE) run --rm --interactive --volume "$(CURDIR)/images/locks:/locks:ro" $(PREFIX)must-tools:$(TAG) \
		python - shard kfp torch train torch-cuda launcher < images/audit.py

.PHONY: lock
lock: must-tools  ## Renew the lock files of the images (LOCK_ARGS=... for uv)
	@$(ENGINE) run --rm --user "$$(id -u):0" --env HOME=/tmp --env LOCK_ARGS --volume "$(CURDIR):/src" --workdir /src \
		$(PREFIX)must-tools:$(TAG) sh images/lock.sh

.PHONY: clean
clean:  ## Remove the environment and everything built
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
