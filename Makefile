# `make demo` and `make test` set themselves up; nothing else is needed but Python >= 3.11, make and git.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test slow gpu lint bench bench-gpu docs docs-pictures clean

demo: .venv/installed
	$(BIN)/redetr demo

test: .venv/installed-dev lint
	$(BIN)/pytest -q -n auto --dist loadfile

slow: .venv/installed-dev
	$(BIN)/pytest -q -m slow

# With a GPU, in the Python that is there: a virtual environment would take another PyTorch. `make gpu
# PYTHON=.venv/bin/python` for one's own.
gpu:
	$(PYTHON) -m pytest -q -m gpu tests/test_gpu.py

lint: .venv/installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# Every question that a CPU can answer; results in benchmarks/results. Hours of learning: benchmarks/convergence.py and
# plain_hour.py; yolo.py needs a package that it does not install.
bench: .venv/installed-dev
	for script in criterion evaluation training_step loader check scaling; do \
		$(BIN)/python benchmarks/$$script.py || exit 1; done
	$(BIN)/python benchmarks/inference.py --exported
	$(BIN)/python benchmarks/learning.py digits --plain --seeds 0 1 2
	$(BIN)/python benchmarks/learning.py crowns
	$(BIN)/python benchmarks/overfit.py

# Tests, proofs, speed and memory on a GPU, in the Python that is there: for the speed, torch, torchvision, numpy and
# scipy are enough; Transformers, with timm, is measured where it is installed. Results in runs/gpu.
bench-gpu:
	$(PYTHON) benchmarks/gpu.py

docs: .venv/installed-dev
	$(BIN)/mkdocs build

docs-pictures: .venv/installed-dev
	$(BIN)/python docs/pictures.py

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit("redetr needs Python 3.11 or newer: make PYTHON=python3.12") if sys.version_info < (3, 11) else 0'
	$(PYTHON) -m venv .venv

# `installed` is newer than pyproject.toml if what it asks for is there, so a second call is quick.
.venv/installed: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

.venv/installed-dev: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@ .venv/installed

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
