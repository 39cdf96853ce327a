# `make demo` and `make test` set themselves up; nothing else is needed but Python >= 3.11 with venv (python3-venv in
# Debian), make and git.
PYTHON ?= python3

# Which versions are installed: `tested`, those of constraints.txt; `newest`, of everything; `oldest`, the lower bounds
# of pyproject.toml, which are built for Python 3.11 and 3.12. Each has a virtual environment: make test DEPS=oldest
DEPS ?= tested
VENV_tested := .venv
VENV_newest := .venv-newest
VENV_oldest := .venv-oldest
VENV := $(VENV_$(DEPS))
BIN := $(VENV)/bin
ifeq ($(VENV),)
$(error DEPS=$(DEPS): choose tested, newest or oldest)
endif

CONSTRAINTS_tested := constraints.txt
CONSTRAINTS_oldest := $(VENV_oldest)/constraints.txt
CONSTRAINTS := $(CONSTRAINTS_$(DEPS))

PIP_FLAGS_tested := --constraint $(CONSTRAINTS_tested)
PIP_FLAGS_newest := --upgrade --upgrade-strategy eager
PIP_FLAGS_oldest := --constraint $(CONSTRAINTS_oldest)
PIP_INSTALL := $(BIN)/python -m pip install --quiet $(PIP_FLAGS_$(DEPS))

# Other versions deprecate what is used here: pytest lists that at the end, and nothing fails.
REPORT_DEPRECATIONS := -W default::DeprecationWarning -W default::PendingDeprecationWarning -W default::FutureWarning
PYTEST_FLAGS_newest := $(REPORT_DEPRECATIONS)
PYTEST_FLAGS_oldest := $(REPORT_DEPRECATIONS)
PYTEST := $(BIN)/pytest -q $(PYTEST_FLAGS_$(DEPS))

# Some containers set it: all the processes that tests start would then compile this package anew.
unexport PYTHONDONTWRITEBYTECODE

.DELETE_ON_ERROR:
.PHONY: demo test slow gpu exits lint no-lint bench bench-gpu docs docs-pictures clean system-packages always

demo: $(VENV)/installed
	$(BIN)/redetr demo

# A linter's verdict depends on its own version, and that of types on every package's: the tested ones decide.
LINT_tested := lint
LINT_newest := no-lint
LINT_oldest := no-lint

# Which tests run: `default`, or `long`, those and the long ones: make test TIER=long
TIER ?= default
MARKERS_default :=
MARKERS_long := -m 'not slow and not gpu and not exits'
ifeq ($(filter $(TIER),default long),)
$(error TIER=$(TIER): choose default or long)
endif

# PYTEST_FLAGS=--strict-skips, of continuous integration, takes a skipped test for a failure. Without the limit on restarts,
# a process that crashes leaves pytest-xdist waiting forever; with it, the test is a failure like any other.
test: $(VENV)/installed-dev system-packages $(LINT_$(DEPS))
	$(BIN)/python -m pip check || { echo "A package that redetr no longer needs can do that: rm -r $(VENV), then again"; exit 1; }
	$(BIN)/python tests/versions.py
	$(PYTEST) -n auto --dist loadfile --max-worker-restart=0 $(MARKERS_$(TIER)) $(PYTEST_FLAGS)

slow: $(VENV)/installed-dev
	$(BIN)/python tests/system_packages.py slow
	$(PYTEST) -m 'long or slow'

# With a GPU, with the current Python: a virtual environment would take another PyTorch. It needs pytest,
# pytest-timeout and hypothesis. `make gpu PYTHON=.venv/bin/python` for the virtual environment.
gpu:
	$(PYTHON) -m pytest -q -m gpu tests/test_gpu.py

# Converters that are large, or that contradict redetr: each kind in an environment of its own. litert-torch wants an older
# typing-extensions than redetr's flags do, and works with the newer one, which comes last.
exits: .venv-devices/installed .venv-litert/installed
	.venv-devices/bin/pytest -q -m exits --strict-skips -k "not litert" tests/test_mobile_export.py
	.venv-litert/bin/pytest -q -m exits --strict-skips -k litert tests/test_mobile_export.py

.venv-devices/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-devices
	.venv-devices/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,executorch,coreml]'
	touch $@

.venv-litert/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-litert
	.venv-litert/bin/python -m pip install --quiet $$(grep ^torch== constraints.txt) litert-torch==0.10.0
	.venv-litert/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

lint: $(VENV)/installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

no-lint:
	@echo "DEPS=$(DEPS): format, lint and types are checked with the tested versions only"

# Every question that a CPU can answer; results in benchmarks/results. Hours of learning: benchmarks/convergence.py and
# plain_hour.py; yolo.py needs a package that it does not install.
bench: $(VENV)/installed-dev
	for script in criterion evaluation training_step loader check scaling; do \
		$(BIN)/python benchmarks/$$script.py || exit 1; done
	$(BIN)/python benchmarks/inference.py --exported
	$(BIN)/python benchmarks/learning.py digits --plain --seeds 0 1 2
	$(BIN)/python benchmarks/learning.py crowns
	$(BIN)/python benchmarks/overfit.py

# Tests, proofs, speed and memory on a GPU, with the current Python: for the speed, torch, torchvision, numpy and
# scipy are enough; Transformers, with timm, is measured where it is installed. Results in runs/gpu.
bench-gpu:
	$(PYTHON) benchmarks/gpu.py

docs: $(VENV)/installed-dev
	$(BIN)/mkdocs build

docs-pictures: $(VENV)/installed-dev
	$(BIN)/python docs/pictures.py

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit("redetr needs Python 3.11 or newer: make PYTHON=python3.12") if sys.version_info < (3, 11) else 0'
	$(PYTHON) -m venv $(VENV)

# The lower bounds are read before anything is installed.
$(CONSTRAINTS_oldest): pyproject.toml tests/lower_bounds.py | $(BIN)/python
	$(BIN)/python tests/lower_bounds.py pyproject.toml > $@

# `installed` is newer than the files that list the requirements, so a second call is quick.
$(VENV)/installed: pyproject.toml $(CONSTRAINTS) | $(BIN)/python
	$(PIP_INSTALL) --editable .
	touch $@

$(VENV)/installed-dev: pyproject.toml $(CONSTRAINTS) | $(BIN)/python
	$(PIP_INSTALL) --editable '.[dev]'
	touch $@ $(VENV)/installed

# A newer version changes no file here, so `newest` looks for one every time.
ifeq ($(DEPS),newest)
$(VENV)/installed $(VENV)/installed-dev: always
endif

# A browser for the tests that need one, and the like.
system-packages: $(BIN)/python
	$(BIN)/python tests/system_packages.py

clean:
	rm -rf $(VENV_tested) $(VENV_newest) $(VENV_oldest) .venv-devices .venv-litert build dist *.egg-info \
		.pytest_cache .mypy_cache .ruff_cache .hypothesis
