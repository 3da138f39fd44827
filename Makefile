# `make demo` and `make test` need Python 3.11 or 3.12, make and a package index; they set up .venv themselves.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test test-slow check format bench clean

demo: $(VENV)/.core
	$(BIN)/diptych demo $(ARGS)

# Modules are shared among processes; `make test ARGS="-n 0 tests/flow"` runs some tests in this one.
test: $(VENV)/.dev
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadscope $(ARGS)

test-slow: $(VENV)/.dev
	$(BIN)/python -m pytest -m slow -s --timeout=3600 $(ARGS)

check: $(VENV)/.dev
	$(BIN)/ruff format --check src tests benchmarks
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/test_import_directions.py

format: $(VENV)/.dev
	$(BIN)/ruff format src tests benchmarks
	$(BIN)/ruff check --fix src tests benchmarks

# The other files of benchmarks/ are studies: trainings of up to hours, some on data that are not in the package.
BENCHMARKS := scenes data_stream bundled_model evaluation generation_step blip3o_training blip3o_inference frechet

bench: $(VENV)/.dev
	for name in $(BENCHMARKS); do echo "== $$name"; $(BIN)/python benchmarks/$$name.py || exit 1; done

# torch comes first and by its exact version: what depends on it then installs nothing more.
$(VENV)/.core: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if v in ((3, 11), (3, 12)) else f"diptych needs Python 3.11 or 3.12, but {sys.executable} is {v[0]}.{v[1]}. Run make PYTHON=python3.12 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) $(shell grep '^torch==' constraints.txt)
	$(PIP) -e .
	touch $@

$(VENV)/.dev: $(VENV)/.core
	$(PIP) -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .mypy_cache
