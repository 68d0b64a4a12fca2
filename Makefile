# Every target does the set-up it needs: a virtual environment in .venv, torch, rsfast built in place.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PACKAGES = $(wildcard $(VENV)/lib/python3*/site-packages)
SOURCES := $(shell find csrc -type f) setup.py pyproject.toml rsfast/_versions.py
# A worker for each core, at most 8, and one thread in each; a worker whose own tests are done takes some of another's.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -p no:benchmark -n logical --maxprocesses 8 --dist worksteal

.PHONY: audit browser demo docs figures test test-all check check-noise bench build clean

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/torch: $(BIN)/python
	$(BIN)/pip install --quiet torch==2.13.0 torchvision==0.28.0
	touch $@

$(VENV)/kernels: $(BIN)/python $(SOURCES)
	$(BIN)/pip install --quiet --no-deps --editable .
	touch $@

# torchcrepe installs torchaudio. It does not load beside torch's CPU build, and then transformers fails.
$(VENV)/installed: $(VENV)/torch $(VENV)/kernels .github/requirements.txt
	$(BIN)/pip install --quiet "rsfast[dev]" --requirement .github/requirements.txt
	$(BIN)/pip uninstall --quiet --yes torchaudio
	touch $@

demo: $(VENV)/installed  ## decide and certify real images, about a minute
	$(BIN)/rsfast demo --out demo

test: $(VENV)/installed  ## the quick tests of everything and the docstrings' examples, three to five minutes
	$(PYTEST) -m "not slow and not noise"

test-all: $(VENV)/installed  ## also the slow ones, six to twelve minutes
	$(PYTEST) -m "not noise"

check: $(VENV)/installed  ## format, lint, types, import boundaries, forbidden flags, workflows
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/clang-format --dry-run --Werror $(shell find csrc tests -name '*.h' -o -name '*.cpp' -o -name '*.cu')
	$(BIN)/zizmor --offline --quiet .github
	$(BIN)/python -m pytest tests/test_structure.py tests/test_workflows.py

docs: $(VENV)/installed  ## the site, in docs/_build: runs the examples that changed since the last time, each up to a minute
	OMP_NUM_THREADS=1 $(BIN)/sphinx-build -q -W --keep-going -c docs . docs/_build

browser:  ## as root: Chromium, in which tests look at reports and the site (Debian)
	apt-get update -qq
	apt-get install -y -qq --no-install-recommends chromium

check-noise: $(VENV)/installed  ## 10^9 normals and all 2^32 words: the words take some 40 minutes of one core
	$(BIN)/python -m pytest -m noise --durations=0 -s

figures: $(VENV)/installed  ## what the demo proves, measured anew, and its picture; then README and the pages from all results
	$(BIN)/python -m benchmarks.demo
	$(BIN)/python -m benchmarks.figures

BENCH ?= --write-table
bench: $(VENV)/installed  ## the table of ratios, each gated on a check of the result; BENCH="-k perturb --benchmark-compare"
	$(BIN)/python -m pytest benchmarks --benchmark-autosave --benchmark-save-data --benchmark-columns=min,median,iqr,rounds $(BENCH)

build: $(VENV)/installed  ## sdist, and a wheel built from it, in dist; checked, and tried where there is no compiler
	rm -rf dist
	$(BIN)/python -m build
	PATH="$(CURDIR)/$(BIN):$$PATH" sh .github/check_wheels.sh dist
	PYTHON=$(PYTHON) sh tests/bare_wheel.sh dist/*.whl $(PACKAGES)

audit: $(VENV)/installed  ## known vulnerabilities of what is installed in .venv; needs PyPI
	$(BIN)/pip-audit --path $(PACKAGES) --progress-spinner off

clean:
	rm -rf $(VENV) build dist demo docs/_build docs/gallery *.egg-info rsfast/ops/*.so
