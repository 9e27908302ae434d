.DEFAULT_GOAL := help
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DEMO ?= build/demo
# PyTorch's own index of builds without CUDA, for machines without a GPU and for the images.
CPU_INDEX ?= https://download.pytorch.org/whl/cpu
# Test processes; each test file runs in one of them. JOBS=0: no extra process, for a debugger. `auto`: the number of cores
# plus one, because a third of a test's time is waiting (pytest_xdist_auto_num_workers in tests/conftest.py).
JOBS ?= auto
PYTEST := --numprocesses $(JOBS) --maxprocesses 8 --dist loadfile --no-loadscope-reorder
# Python may write .pyc files. Without them each process compiles torch's modules again, which doubles its start time.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help
help:  ## Show these commands
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

# One virtual environment, installed in three steps: what the quickstart needs (torch, open_clip, ONNX), kfp for the pipeline, and
# the tools of the tests and the site. It is updated when pyproject.toml changes. pip does not compile the packages, because that
# takes longer than the rest of the installation. Python compiles modules at their first import; the last step imports most of
# them once, so that the test processes need not compile them.
# checkout.pth: beside a clone named must, `import must` would take that folder for a namespace package before pip's finder.
# Without an NVIDIA GPU, torch is first installed from CPU_INDEX: PyPI's build includes CUDA, 4 GB more.
PIP := $(BIN)/pip install --quiet --disable-pip-version-check --no-compile
REACH := import sys, urllib.request as r; r.urlopen(sys.argv[1], timeout=10)
$(VENV)/demo: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15))' \
		|| { echo "make: $(PYTHON) is $$($(PYTHON) --version 2>&1); Python 3.11 to 3.14 is needed (make PYTHON=python3.12 ...)"; exit 2; }
	@echo "setting up $(VENV) (once, a minute or two)"
	@$(PYTHON) -m venv $(VENV)
	@command -v nvidia-smi >/dev/null || if $(PYTHON) -c '$(REACH)' $(CPU_INDEX)/torch/ 2>/dev/null; \
		then $(PIP) torch torchvision --index-url $(CPU_INDEX); \
		else echo "$(CPU_INDEX) cannot be reached: torch comes from PyPI, with CUDA (4 GB more)"; fi
	@$(PIP) --editable '.[demo]'
	@printf '%s\n' "$(CURDIR)" "$(CURDIR)/components" "$(CURDIR)/pipeline" \
		> $$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/checkout.pth
	@touch $@

$(VENV)/pipeline: $(VENV)/demo
	@echo "setting up $(VENV): kfp, for the pipeline (once)"
	@$(PIP) --editable '.[pipeline]'
	@touch $@

$(VENV)/installed: $(VENV)/pipeline
	@echo "setting up $(VENV): what the tests and the site need besides (once, some minutes)"
	@$(PIP) --editable '.[dev]'
	@$(BIN)/python -c 'import must.evaluation.evaluate, must.training.trainer, must.exporting.graph, kfp.compiler, kubernetes.client, kubeflow_trainer_api.models'
	@touch $@

.PHONY: setup
setup: $(VENV)/installed  ## Create the virtual environment (other commands do it when needed)

.PHONY: quickstart
quickstart: $(VENV)/demo  ## Set up, and open the page with the bundled digits in the browser (Ctrl-C ends it)
	@$(BIN)/must quickstart

.PHONY: demo
demo: $(VENV)/demo  ## Adapt the bundled model to the bundled digits
	@$(BIN)/must demo --output $(DEMO)
	@$(BIN)/must adapt $(DEMO)/images/unlabeled --classes $(DEMO)/classes.yaml --model $(DEMO)/model \
		--test-images $(DEMO)/images/test --output $(DEMO)/work --train yes
	@echo "the command must is in this environment: . $(VENV)/bin/activate"

.PHONY: pipeline
pipeline: $(VENV)/pipeline  ## Run the whole Kubeflow pipeline on the bundled digits, on this machine
	@$(BIN)/must demo --output $(DEMO)
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/must-pipeline run --pipeline pipeline/must_pipeline.yaml --parameters $(DEMO)/pipeline.yaml --output $(DEMO)/run

.PHONY: test
test: setup  ## Run the tests (the slow ones: make test-slow)
	@$(BIN)/python -m pytest $(PYTEST)

PACKAGES := $(patsubst %/,%,$(filter-out %__pycache__/,$(wildcard must/*/))) components pipeline
.PHONY: coverage
coverage: export COVERAGE_FILE = $(CURDIR)/build/.coverage
coverage: setup  ## Run the tests and print the lines that they run, in % of each package (takes twice the time)
	@$(BIN)/python -m pytest $(PYTEST) --cov --cov-report= || true
	@for package in $(PACKAGES); do printf '%-16s %3s%%\n' $$package "$$($(BIN)/coverage report --format=total --include="$$package/*")"; done

.PHONY: test-slow
test-slow: setup  ## Run the tests that take minutes
	@$(BIN)/python -m pytest $(PYTEST) -m slow $$(grep -rl 'mark\.slow' tests --include='test_*.py')

# The last digits of a result depend on the processor. These are the variables of PyTorch, oneDNN and MKL for a processor
# without AVX2, with MKL's code for processors of other makers than Intel: the furthest from those of today.
NUMBERS := tests/memory tests/training/test_golden.py tests/training/test_step.py tests/training/test_propagated.py \
	tests/model/test_towers.py tests/model/test_vectors.py tests/evaluation tests/prediction/test_bundle.py \
	tests/exporting/test_export_memory.py tests/data/augment
.PHONY: test-numbers
test-numbers: setup  ## Run the tests of numbers with the arithmetic of an old processor
	@ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41 MKL_CBWR=COMPATIBLE \
		$(BIN)/python -m pytest $(PYTEST) $(NUMBERS)

build/azurite/node_modules/.bin/azurite-blob:
	@npm install --silent --no-audit --no-fund --prefix build/azurite azurite

.PHONY: test-stores
test-stores: setup build/azurite/node_modules/.bin/azurite-blob  ## Run the bucket tests on S3 and Azure test servers (needs npm)
	@REQUIRE_STORES=1 $(BIN)/python -m pytest $(PYTEST) --store s3 --store az $$(grep -rl bucket_server tests --include='test_*.py')

# axe-core checks the accessibility of the review page (tests/reviewing/test_page.py), in the system's Chromium.
build/axe/node_modules/axe-core/axe.min.js:
	@npm install --silent --no-audit --no-fund --prefix build/axe axe-core

# Some tests need a package that is not in the main environment: triton makes every command start seconds later. They run
# in an environment with that package, which also uses the packages of the main one (ours.pth).
build/heic/installed: PACKAGES_THERE = --editable '.[heic]'
build/labels/installed: PACKAGES_THERE = label-studio-sdk openai
build/triton/installed: PACKAGES_THERE = triton
build/heic/installed build/labels/installed build/triton/installed: $(VENV)/installed
	@$(PYTHON) -m venv $(@D)
	@$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
		> $$($(@D)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/ours.pth
	@$(@D)/bin/pip install --quiet --disable-pip-version-check --no-compile $(PACKAGES_THERE)
	@touch $@

.PHONY: test-heic
test-heic: build/heic/installed  ## Run the tests of HEIC images
	@REQUIRE_HEIF=1 build/heic/bin/python -m pytest tests/data/image/test_heic.py

.PHONY: test-labels
test-labels: build/labels/installed  ## Run the recipes for labelling tools with the tools' packages
	@PYTHONPATH=$(CURDIR) build/labels/bin/python -m pytest -m "slow or not slow" tests/docs/test_recipes.py

.PHONY: test-triton
test-triton: build/triton/installed  ## Run the tests of what is printed beside triton, which torch for CUDA brings
	@PYTHONPATH=$(CURDIR) REQUIRE_TRITON=1 build/triton/bin/python -m pytest -m "slow or not slow" tests/release/test_beside_triton.py

# An environment of its own with the lowest version of each dependency that pyproject.toml allows; the test tools, and what the
# dependencies need themselves, are the newest. On Python 3.11: the oldest versions have no wheels for newer ones.
build/lowest/installed: pyproject.toml
	@$(PYTHON) -m venv $(@D)
	@$(@D)/bin/pip install --quiet --disable-pip-version-check uv
	@$(@D)/bin/uv pip compile --quiet --no-deps --no-header --no-annotate --resolution lowest-direct \
		--python $(@D)/bin/python --extra all --extra pipeline --extra heic --extra pretrain --output-file $(@D)/lowest.txt pyproject.toml
	@$(@D)/bin/uv pip install --quiet --python $(@D)/bin/python --constraint $(@D)/lowest.txt --editable '.[dev,heic,pretrain]'
	@touch $@

.PHONY: test-lowest
test-lowest: build/lowest/installed  ## Run the tests with the lowest versions that pyproject.toml allows (Python 3.11)
	@build/lowest/bin/python -m pytest $(PYTEST)

.PHONY: test-kfp
test-kfp: setup  ## Test a Kubeflow installation: KFP_HOST=... [STORE=gs://...] [CLUSTER=FILE] [KFP_ARGS=...]
	@test -n "$(KFP_HOST)" || { echo "make: say where: make test-kfp KFP_HOST=http://localhost:8080 ..."; exit 2; }
	@$(BIN)/python -m tests.kfp --host "$(KFP_HOST)" \
		$(if $(STORE),--store "$(STORE)") $(if $(CLUSTER),--cluster "$(CLUSTER)") $(KFP_ARGS)

.PHONY: lint
lint: setup  ## Check style and types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

.PHONY: format
format: setup  ## Format the code, and fix style errors that can be fixed automatically
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

.PHONY: compile
compile: setup  ## Compile the Kubeflow pipeline
	@$(BIN)/python pipeline/compile.py

.PHONY: docs
docs: setup  ## Build the documentation site in build/site; fails on dead links
	@$(BIN)/python docs/site.py
	@$(BIN)/zensical build --strict --clean --config-file build/mkdocs.yml
	@echo "build/site/index.html (make docs-serve shows it at http://localhost:8000)"

.PHONY: docs-serve
docs-serve: setup  ## Serve the documentation site locally, with live reload
	@$(BIN)/zensical serve

.PHONY: reference
reference: setup  ## Generate docs/reference from parameters and docstrings
	@$(BIN)/python docs/reference.py

.PHONY: pictures
pictures: setup  ## Generate docs/pictures from the demo (needs Chromium)
	@test -d $(DEMO)/work/report || $(MAKE) --no-print-directory demo
	@$(BIN)/python docs/pictures.py --demo $(DEMO) --output docs/pictures
	@$(BIN)/python docs/pictures_quickstart.py docs/pictures/quickstart.webp

# -- releases (CONTRIBUTING.md) -----------------------------------------------------------------------------------------
VERSION_FILES := must/__init__.py CITATION.cff pipeline/cluster.yaml pipeline/clusters/*.yaml docs/kubeflow.md docs/containers.md \
	deploy/inference-service.yaml tests/kfp/README.md
.PHONY: version
version:  ## Print the version, or set it everywhere (TO=0.2.0)
ifdef TO
	@sed -i 's/$(subst .,\.,$(TAG))/$(TO)/g' $(wildcard $(VERSION_FILES)) && $(MAKE) --no-print-directory compile reference
else
	@echo $(TAG)
endif

# -- images (docs/containers.md) ----------------------------------------------------------------------------------------
IMAGES := must-shard must-torch must-train must-serve
ENGINE ?= $(shell command -v docker || command -v podman)
REGISTRY ?=
TAG ?= $(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' must/__init__.py)
BASE ?= docker.io/library/python:3.13-slim
# must-train installs torch from TORCH_INDEX (on PyPI torch includes CUDA); must-torch installs it from CPU_INDEX.
TORCH_INDEX ?= https://pypi.org/simple
TORCH_LOCK ?= torch-cuda.txt
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
test-containers: setup images  ## Build the images and test them
	@$(BIN)/python -m pytest $(PYTEST) -m containers tests/containers

.PHONY: sbom
sbom: images must-tools  ## Write a bill of materials of each image to build/sbom (CycloneDX)
	@ENGINE="$(ENGINE)" PREFIX="$(PREFIX)" TAG="$(TAG)" sh images/sbom.sh build/sbom $(IMAGES)

.PHONY: audit
audit: must-tools  ## Check the locked packages for known vulnerabilities
	@$(ENGINE) run --rm --volume "$(CURDIR)/images/locks:/locks:ro" $(PREFIX)must-tools:$(TAG) pip-audit --strict \
		--disable-pip $(foreach lock,shard torch train torch-cuda serve,--requirement /locks/$(lock).txt)

.PHONY: lock
lock: must-tools  ## Update the lock files of the images (LOCK_ARGS=... for uv)
	@$(ENGINE) run --rm --user "$$(id -u):0" --env HOME=/tmp --env LOCK_ARGS --volume "$(CURDIR):/src" --workdir /src \
		$(PREFIX)must-tools:$(TAG) sh images/lock.sh

.PHONY: clean
clean:  ## Remove the virtual environment and all build outputs
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
