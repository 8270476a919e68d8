VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed
DEMO := $(VENV)/.demo
BENCH := $(VENV)/.bench

.PHONY: demo demo-database test lint types layers check bench bench-database support clean

$(PY):
	python3 -m venv $(VENV)

# The demo needs no test tools.
$(DEMO): pyproject.toml | $(PY)
	$(PY) -m pip install --quiet --editable '.[local]'
	touch $@

$(STAMP): pyproject.toml | $(PY)
	$(PY) -m pip install --quiet --editable '.[dev]'
	touch $@

demo: $(DEMO)
	$(PY) tools/demo.py

demo-database: $(STAMP)
	$(PY) tools/demo_database.py

test: $(STAMP)
	$(PY) -m pytest -n 2 --dist worksteal

lint: $(STAMP)
	$(PY) -m ruff check src tests tools benchmarks
	$(PY) -m ruff format --check src tests tools benchmarks
	$(PY) tools/blocking.py --check

types: $(STAMP)
	$(PY) -m mypy
	$(PY) -m mypy tests tools benchmarks

layers: $(STAMP)
	$(VENV)/bin/lint-imports

check: lint types layers test

# The page that says what each engine does, from the contract suite.
support: $(STAMP)
	HOWDAH_WRITE_SUPPORT=1 $(PY) -m pytest tests/contract -n 2 --dist loadfile -q

$(BENCH): pyproject.toml | $(STAMP)
	$(PY) -m pip install --quiet --editable '.[dev,bench]'
	touch $@

bench: $(BENCH)
	$(PY) -m benchmarks

bench-database: $(STAMP)
	$(PY) -m benchmarks.database


clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis
