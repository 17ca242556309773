# Everything from nothing: `make demo`, `make test`. Only python3 (3.11 or newer) is needed first.
PYTHON ?= python3
VENV ?= .venv
JOBS ?= 2
BIN := $(VENV)/bin

.PHONY: demo test lint wheel bench clean

demo: $(VENV)/demo
	@mkdir -p demo
	$(BIN)/superneurons simulate alexnet:batch=200 --machine k40c \
	  --policy baseline,liveness,liveness+offload:release=immediate,liveness+offload,superneurons \
	  --plot demo/alexnet.png --timeline demo/alexnet.json
	@echo "demo/alexnet.png is the memory over the step, demo/alexnet.json a timeline for ui.perfetto.dev"

test: $(VENV)/dev
	$(BIN)/python -m pytest --numprocesses $(JOBS) --dist worksteal

lint: $(VENV)/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

wheel: $(VENV)/dev
	rm -rf dist build
	$(BIN)/python -m build --wheel --outdir dist
	$(BIN)/check-wheel-contents dist

bench: $(VENV)/dev
	$(BIN)/python bench/start.py
	$(BIN)/python bench/speed.py
	$(BIN)/python bench/readers.py
	$(BIN)/python bench/headline.py

clean:
	rm -rf $(VENV) build dist demo *.egg-info

# The demonstration needs no PyTorch, the tests do. On Linux PyPI's build brings gigabytes of CUDA;
# PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu takes the small one.
$(VENV)/demo: EXTRAS = --editable '.[plot]'
$(VENV)/dev: EXTRAS = --editable . --group dev

$(VENV)/demo $(VENV)/dev: pyproject.toml constraints.txt examples/plugin/pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "superneurons needs Python 3.11 or newer; try: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --upgrade pip
	PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet --constraint constraints.txt \
	  --editable examples/plugin $(EXTRAS)
	@touch $@
