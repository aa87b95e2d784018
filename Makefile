# Two set-up commands, each complete by itself from a bare clone: `make quickstart` and `make test`.
# On a GPU machine pip installs the ordinary torch; elsewhere the CPU build, without gigabytes of CUDA packages.
# Everything else is what constraints.txt says, down to the last transitive package and setuptools, which builds.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
CONSTRAINTS := constraints.txt
INSTALL := $(PIP) install --quiet --constraint $(CONSTRAINTS)
INSTALL_HERE := $(INSTALL) --no-build-isolation --editable
TORCH := $(shell sed -n 's/^torch==//p' $(CONSTRAINTS))
TORCH_CPU_INDEX ?= https://download.pytorch.org/whl/cpu
OUTPUT_DIR ?= outputs/quickstart

.PHONY: quickstart docs test test-slow test-newest test-oldest test-wheel quality style lock wheel clean

quickstart: $(VENV)/.installed
	$(BIN)/python -m vdmini_diffusers.quickstart --output_dir $(OUTPUT_DIR)

docs: $(VENV)/.installed-docs
	$(BIN)/python docs/build_reference.py outputs/api

# Stolen work comes in long runs of neighbours, so that few modules' fixtures are made in more than one process.
PYTEST = $(BIN)/python -m pytest -n auto --dist worksteal

test: $(VENV)/.installed-test
	OMP_NUM_THREADS=1 $(PYTEST)

test-slow: $(VENV)/.installed-test
	OMP_NUM_THREADS=1 $(PYTEST) -m slow --timeout 1800

quality: $(VENV)/.installed-quality
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

style: $(VENV)/.installed-quality
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Makes constraints.txt anew for all platforms: what is in it stays as far as setup.py allows. `make lock
# UPGRADE=--upgrade` takes the newest of everything but torch; `make lock TORCH=2.14.0` takes that torch.
COMPILE = echo 'torch==$(TORCH)' > $(VENV)/torch.txt && echo 'setuptools>=77' | $(BIN)/uv pip compile --quiet \
  --constraint $(VENV)/torch.txt --custom-compile-command 'make $@'

lock: $(VENV)/.installed-quality
	$(COMPILE) --universal --python-version 3.11 --all-extras $(UPGRADE) setup.py - --output-file $(CONSTRAINTS)

# The tests with the newest versions that setup.py allows, and with the oldest, each in an environment of its own.
# CI does not run them. torch is the locked one in both, as its other versions are CUDA builds of gigabytes on PyPI:
# `make test-oldest TORCH=2.6.0` tests another where there is room for it, or an index that has it for the CPU.
test-newest: RESOLUTION := highest
test-oldest: RESOLUTION := lowest-direct
test-newest test-oldest: test-%: $(VENV)/.installed-quality
	mkdir -p .venv-$*
	$(COMPILE) --upgrade --resolution $(RESOLUTION) --extra test setup.py - --output-file .venv-$*/constraints.txt
	$(MAKE) test VENV=.venv-$* CONSTRAINTS=.venv-$*/constraints.txt

# The tests against the wheel's files, in a folder that has the tests and nothing else of the checkout; the command
# vdmini first. The path to them is absolute, as tests start processes in other folders, which would else find the
# checkout itself.
test-wheel: $(VENV)/.installed-test wheel
	rm -rf .venv-wheel && mkdir .venv-wheel && cp -r tests pyproject.toml .venv-wheel
	$(PIP) install --quiet --no-deps --target .venv-wheel/site dist/*.whl
	cd .venv-wheel && export PYTHONPATH="$$PWD/site" OMP_NUM_THREADS=1 \
	  && site/bin/vdmini generate --image site/vdmini_diffusers/demo/examples/car.png --out clip.gif \
	  && ../$(PYTEST)

# Into empty folders: setuptools packs what an earlier build has left, and dist/*.whl is to be one file. What is left in
# build/ would be tested as documents.
wheel: $(VENV)/.installed
	rm -rf build dist
	$(PIP) wheel --no-deps --no-build-isolation --wheel-dir dist .
	rm -rf build

clean:
	rm -rf $(VENV) .venv-newest .venv-oldest .venv-wheel build dist *.egg-info

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Python 3.11 or newer is needed; this is `$(PYTHON) --version`. Try: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)

# A GPU machine is one whose driver answers. Elsewhere the CPU build is asked for by its local version, first from
# what pip is configured with, then from PyTorch's own index; macOS has one build and no local version.
$(VENV)/.torch: $(CONSTRAINTS) | $(BIN)/python
	@if nvidia-smi >/dev/null 2>&1 || [ "`uname -s`" != Linux ]; then \
	  echo "Installing torch $(TORCH)"; $(INSTALL) setuptools "torch==$(TORCH)"; \
	else \
	  echo "No NVIDIA GPU found: installing torch $(TORCH) for the CPU"; \
	  $(INSTALL) setuptools "torch==$(TORCH)+cpu" 2>/dev/null \
	  || $(INSTALL) --extra-index-url $(TORCH_CPU_INDEX) setuptools "torch==$(TORCH)+cpu"; \
	fi
	@touch $@

$(VENV)/.installed: setup.py $(VENV)/.torch
	$(INSTALL_HERE) '.[teacher,video]'
	@touch $@

$(VENV)/.installed-test: setup.py $(VENV)/.torch
	$(INSTALL_HERE) '.[test]'
	@touch $@ $(VENV)/.installed

# The reference shows the types of the app as well.
$(VENV)/.installed-docs: setup.py $(VENV)/.torch
	$(INSTALL_HERE) '.[docs,app]'
	@touch $@ $(VENV)/.installed

$(VENV)/.installed-quality: setup.py $(VENV)/.torch
	$(INSTALL_HERE) '.[dev]'
	@touch $@ $(VENV)/.installed $(VENV)/.installed-test
