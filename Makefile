.DEFAULT_GOAL := help
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DEMO ?= build/demo
# Test files on several processes at once, each file on one; JOBS=0 runs all in this one (for a debugger). `auto` is one
# more than there are cores, as a third of a test's time is waiting (pytest_xdist_auto_num_workers in tests/conftest.py).
JOBS ?= auto
PYTEST := --numprocesses $(JOBS) --maxprocesses 8 --dist loadfile --no-loadscope-reorder
# Python keeps what it compiled: without, each process compiles torch anew, which doubles its start.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help
help:  ## Show these commands
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

# One environment for everything, in two steps: what the demo needs, and the rest. Made again when the project's requirements
# change. Python compiles what it imports (the most of it once, at the end here, and not in each of the tests' processes); pip
# would compile all there is, which takes longer than everything else.
PIP := $(BIN)/pip install --quiet --disable-pip-version-check --no-compile --editable
$(VENV)/demo: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15))' \
		|| { echo "make: $(PYTHON) is $$($(PYTHON) --version 2>&1); Python 3.11 to 3.14 is needed (make PYTHON=python3.12 ...)"; exit 2; }
	@echo "setting up $(VENV) (once, a minute or two)"
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) '.[demo,pipeline]'
	@touch $@

$(VENV)/installed: $(VENV)/demo
	@echo "setting up $(VENV): what the tests and the site need besides (once, some minutes)"
	@$(PIP) '.[dev]'
	@$(BIN)/python -c 'import must.evaluation.evaluate, must.method.train.trainer, must.deploy.export.graph, kfp.compiler, kubeflow.trainer'
	@touch $@

.PHONY: setup
setup: $(VENV)/installed  ## Make the environment (the other commands do it when needed)

.PHONY: demo
demo: $(VENV)/demo  ## Run the whole pipeline on the bundled digits
	@$(BIN)/must demo --output $(DEMO)
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python pipeline/run_local.py --parameters $(DEMO)/pipeline.yaml --output $(DEMO)/run

.PHONY: test
test: setup  ## Run the tests (the slow ones: make test-slow)
	@$(BIN)/python -m pytest $(PYTEST)

.PHONY: test-slow
test-slow: setup  ## Run the tests that take minutes
	@$(BIN)/python -m pytest $(PYTEST) -m slow $$(grep -rl 'mark\.slow' tests --include='test_*.py')

build/azurite/node_modules/.bin/azurite-blob:
	@npm install --silent --no-audit --no-fund --prefix build/azurite azurite

.PHONY: test-stores
test-stores: setup build/azurite/node_modules/.bin/azurite-blob  ## Run the tests of buckets on S3 and Azure servers (npm)
	@REQUIRE_STORES=1 $(BIN)/python -m pytest $(PYTEST) --store s3 --store az $$(grep -rl bucket_server tests --include='test_*.py')

# What finds out whether a page can be used by everybody (tests/deploy/review/test_page.py); Chromium is the system's.
build/axe/node_modules/axe-core/axe.min.js:
	@npm install --silent --no-audit --no-fund --prefix build/axe axe-core

# Tests that want a package which `make test` does without have an environment on top of ours: transformers makes every command
# start seconds later (pyproject.toml).
build/transformers/installed: EXTRA = siglip
build/heic/installed: EXTRA = heic
build/transformers/installed build/heic/installed: $(VENV)/installed
	@$(PYTHON) -m venv $(@D)
	@$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
		> $$($(@D)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/ours.pth
	@$(@D)/bin/pip install --quiet --disable-pip-version-check --no-compile --editable '.[$(EXTRA)]'
	@touch $@

.PHONY: test-transformers
test-transformers: build/transformers/installed  ## Run the tests of what transformers loads
	@REQUIRE_TRANSFORMERS=1 build/transformers/bin/python -m pytest -m 'not containers' -k transformers tests/deploy/export tests/method/model/test_transformers_folder.py

.PHONY: test-heic
test-heic: build/heic/installed  ## Run the tests of photographs in HEIC
	@REQUIRE_HEIF=1 build/heic/bin/python -m pytest tests/data/image/test_heic.py

SECONDS ?= 60
TARGETS ?=
.PHONY: fuzz
fuzz: setup  ## Fuzz each parser of foreign bytes (SECONDS=60 each; TARGETS="tar zip" for some)
	@$(BIN)/python -c 'import atheris' 2>/dev/null || $(BIN)/pip install --quiet --disable-pip-version-check \
		--only-binary=atheris --editable '.[fuzz]' 2>/dev/null || true
	@if $(BIN)/python -c 'import atheris' 2>/dev/null; then $(BIN)/python -m tests.fuzz $(SECONDS) $(TARGETS); \
		else echo "make: fuzzing is skipped: atheris cannot be had for $$($(BIN)/python --version)"; fi

.PHONY: fuzz-replay
fuzz-replay: setup  ## Replay the corpus of each parser of foreign bytes, always the same, and count its memory and time
	@$(BIN)/python -m tests.fuzz.replay $(TARGETS)

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

.PHONY: docs
docs: setup  ## Build the site into build/site; a dead link fails it
	@$(BIN)/python docs/site.py
	@$(BIN)/zensical build --strict --clean --config-file build/mkdocs.yml
	@echo "build/site/index.html (make docs-serve shows it at http://localhost:8000)"

.PHONY: docs-serve
docs-serve: setup  ## Show the site while it is being written
	@$(BIN)/zensical serve

.PHONY: reference
reference: setup  ## Write docs/reference anew from the parameters and the docstrings
	@$(BIN)/python docs/reference.py

.PHONY: pictures
pictures: setup  ## Make the pictures in docs/pictures anew from the demo (chromium)
	@test -d $(DEMO)/run/latest || $(MAKE) --no-print-directory demo
	@$(BIN)/python docs/pictures.py --demo $(DEMO) --output docs/pictures

# -- releases (CONTRIBUTING.md) -----------------------------------------------------------------------------------------
VERSION_FILES := must/__init__.py CITATION.cff pipeline/cluster.yaml pipeline/clusters/*.yaml docs/kubeflow.md docs/containers.md docs/gke.md
.PHONY: version
version:  ## Print the version, or set it everywhere (TO=0.2.0)
ifdef TO
	@sed -i 's/$(subst .,\.,$(TAG))/$(TO)/g' $(wildcard $(VERSION_FILES)) && $(MAKE) --no-print-directory compile reference
else
	@echo $(TAG)
endif

# -- images (docs/containers.md) ----------------------------------------------------------------------------------------
IMAGES := must-shard must-torch must-train must-launcher must-serve
ENGINE ?= $(shell command -v docker || command -v podman)
REGISTRY ?=
TAG ?= $(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' must/__init__.py)
BASE ?= docker.io/library/python:3.13-slim
# must-train has torch from TORCH_INDEX (PyPI's carries CUDA), the other images with torch have it from CPU_INDEX.
TORCH_INDEX ?= https://pypi.org/simple
TORCH_LOCK ?= torch-cuda.txt
CPU_INDEX ?= https://download.pytorch.org/whl/cpu
CPU_LOCK ?= torch.in
PREFIX := $(if $(REGISTRY),$(REGISTRY)/)
REVISION := $(shell git rev-parse HEAD 2>/dev/null)$(shell git diff --quiet HEAD 2>/dev/null || echo -dirty)
SOURCE ?= $(shell git config --get remote.origin.url | sed 's,//[^@/]*@,//,')

.PHONY: images $(IMAGES) must-tools
images: $(IMAGES)  ## Build the images (REGISTRY=..., TAG=..., BASE=..., ENGINE=podman; TORCH_INDEX=... for another CUDA)
must-train: TORCH_ARGS = --build-arg TORCH_INDEX=$(TORCH_INDEX) --build-arg TORCH_LOCK=$(TORCH_LOCK)
must-torch: TORCH_ARGS = --build-arg TORCH_INDEX=$(CPU_INDEX) --build-arg TORCH_LOCK=$(CPU_LOCK)
$(IMAGES) must-tools:
	@test -n "$(ENGINE)" || { echo "make: neither docker nor podman is here; ENGINE=... names one"; exit 2; }
	$(ENGINE) build --file images/Dockerfile --target $@ --tag $(PREFIX)$@:$(TAG) --build-arg BASE=$(BASE) $(TORCH_ARGS) $(BUILD_ARGS) \
		--build-arg VERSION=$(TAG) --build-arg REVISION=$(REVISION) --build-arg SOURCE=$(SOURCE) .

.PHONY: push
push: images  ## Push the images to REGISTRY
	@test -n "$(REGISTRY)" || { echo "make: say where: make push REGISTRY=..."; exit 2; }
	@for image in $(IMAGES); do $(ENGINE) push $(PREFIX)$$image:$(TAG) || exit 1; done

.PHONY: test-containers
test-containers: setup images  ## Build the images and test them, alone and as a pipeline
	@$(BIN)/python -m pytest $(PYTEST) -m containers tests/containers

.PHONY: sbom
sbom: images must-tools  ## Write what is in each image to build/sbom (CycloneDX)
	@ENGINE="$(ENGINE)" PREFIX="$(PREFIX)" TAG="$(TAG)" sh images/sbom.sh build/sbom $(IMAGES)

.PHONY: audit
audit: must-tools  ## Look the locked packages up among the known vulnerabilities
	@$(ENGINE) run --rm --interactive --volume "$(CURDIR)/images/locks:/locks:ro" $(PREFIX)must-tools:$(TAG) \
		python - shard kfp torch train torch-cuda launcher serve < images/audit.py

.PHONY: lock
lock: must-tools  ## Renew the lock files of the images (LOCK_ARGS=... for uv)
	@$(ENGINE) run --rm --user "$$(id -u):0" --env HOME=/tmp --env LOCK_ARGS --volume "$(CURDIR):/src" --workdir /src \
		$(PREFIX)must-tools:$(TAG) sh images/lock.sh

.PHONY: clean
clean:  ## Remove the environment and everything built
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
