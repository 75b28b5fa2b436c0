# Two commands do everything on a fresh machine: `make train` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
CHECKED := hf_clidmu recipes tests

# The declared minimum versions, apart from everything else; MIN_VENV may lie on another disk.
MIN_VENV ?= .venv-min
MIN_READY := $(MIN_VENV)/.ready
# The oldest torch, transformers and huggingface_hub that are looked after, with all else as new as it gets.
OLD_VENV ?= .venv-old
OLD_READY := $(OLD_VENV)/.ready

.PHONY: help train test test-all test-min test-old quality style build clean

help:  ## Show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(READY): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip uv
	# torch and torchvision come from one index, in one resolution: builds that do not fit break both
	VIRTUAL_ENV=$(CURDIR)/$(VENV) $(BIN)/uv pip install --quiet -e '.[dev]'
	touch $(READY)

train: $(READY)  ## Train the embedded default: digits with 40 % wrong labels
	$(BIN)/accelerate launch --num_processes 1 --mixed_precision no --dynamo_backend no --num_machines 1 recipes/train.py --overwrite true

test: $(READY)  ## Run the tests
	$(BIN)/python -m pytest

test-all: $(READY)  ## Run the tests, slow ones included
	$(BIN)/python -m pytest -m ''

$(MIN_READY): pyproject.toml | $(READY)
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python $(MIN_VENV)
	VIRTUAL_ENV=$(abspath $(MIN_VENV)) $(BIN)/uv pip install --quiet --resolution lowest-direct -e '.[test]'
	touch $(MIN_READY)

test-min: $(MIN_READY)  ## Run the tests with the declared minimum versions of everything
	$(MIN_VENV)/bin/python -m pytest

$(OLD_READY): pyproject.toml | $(READY)
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python $(OLD_VENV)
	VIRTUAL_ENV=$(abspath $(OLD_VENV)) $(BIN)/uv pip install --quiet \
		'torch==2.11.*' torchvision 'transformers==5.17.*' 'huggingface_hub==1.33.*' -e '.[test]'
	touch $(OLD_READY)

test-old: $(OLD_READY)  ## Run the tests with torch 2.11, transformers 5.17, huggingface_hub 1.33, all else current
	$(OLD_VENV)/bin/python -m pytest

quality: $(READY)  ## Lint, format check, type check
	$(BIN)/ruff check $(CHECKED)
	$(BIN)/ruff format --check $(CHECKED)
	$(BIN)/mypy

style: $(READY)  ## Fix what lint and format can fix
	$(BIN)/ruff check --fix $(CHECKED)
	$(BIN)/ruff format $(CHECKED)

build: $(READY)  ## Build the wheel and the source distribution
	$(BIN)/uv build

clean:  ## Remove what was built
	rm -rf dist build *.egg-info .pytest_cache .mypy_cache .ruff_cache
