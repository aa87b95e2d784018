# Two set-up commands, each complete by itself from a bare clone: `make quickstart` and `make test`.
# On a GPU machine pip installs the ordinary torch; elsewhere the CPU build, without gigabytes of CUDA packages.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
TORCH := $(shell sed -n 's/^torch==//p' constraints.txt)
TORCH_CPU_INDEX ?= https://download.pytorch.org/whl/cpu
OUTPUT_DIR ?= outputs/quickstart

.PHONY: quickstart test test-slow quality style wheel clean

quickstart: $(VENV)/.installed
	$(BIN)/python -m vdmini_diffusers.quickstart --output_dir $(OUTPUT_DIR)

test: $(VENV)/.installed-test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto

test-slow: $(VENV)/.installed-test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto -m slow --timeout 1800

quality: $(VENV)/.installed-quality
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

style: $(VENV)/.installed-quality
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

wheel: $(VENV)/.installed
	$(PIP) wheel --no-deps --wheel-dir dist .

clean:
	rm -rf $(VENV) build dist *.egg-info

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Python 3.11 or newer is needed; this is `$(PYTHON) --version`. Try: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)

# A GPU machine is one whose driver answers. Elsewhere the CPU build is asked for by its local version, first from
# what pip is configured with, then from PyTorch's own index; macOS has one build and no local version.
$(VENV)/.torch: constraints.txt | $(BIN)/python
	@if nvidia-smi >/dev/null 2>&1 || [ "`uname -s`" != Linux ]; then \
	  echo "Installing torch $(TORCH)"; $(PIP) install --quiet "torch==$(TORCH)"; \
	else \
	  echo "No NVIDIA GPU found: installing torch $(TORCH) for the CPU"; \
	  $(PIP) install --quiet "torch==$(TORCH)+cpu" 2>/dev/null \
	  || $(PIP) install --quiet --extra-index-url $(TORCH_CPU_INDEX) "torch==$(TORCH)+cpu"; \
	fi
	@touch $@

$(VENV)/.installed: setup.py $(VENV)/.torch
	$(PIP) install --quiet --constraint constraints.txt --editable '.[teacher]'
	@touch $@

$(VENV)/.installed-test: setup.py $(VENV)/.torch
	$(PIP) install --quiet --constraint constraints.txt --editable '.[test]'
	@touch $@ $(VENV)/.installed

$(VENV)/.installed-quality: setup.py $(VENV)/.torch
	$(PIP) install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@ $(VENV)/.installed $(VENV)/.installed-test
