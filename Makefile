# make demo   fresh clone -> .venv -> quick start on real digits -> verdict (about 5 minutes after the install)
# make test   fresh clone -> .venv -> the test suite, without the tests marked slow
# make slow   the tests marked slow and all kills, one at a time and within the limits of time that we promise:
#             clusters, browsers, long trainings (some need root)
# make check  format, lint, types, architecture, tests: what has to be green before a commit is shared
# Each makes .venv from a bare Python (>= 3.11) when it is missing. PYTHON=python3.12 make ... picks another one.

PYTHON ?= python3
BIN := .venv/bin
# Two tests at a time, so limits of time are doubled; a file's tests, and all that share a Ray, in one process.
TEST := AIM_TUNE_SLOWER=2 $(BIN)/python -m pytest -n 2 --dist loadgroup --no-loadscope-reorder -m "not slow"

.PHONY: demo test slow check format clean

demo: .venv/installed
	$(BIN)/python -m aim_tune.search

test: .venv/installed
	$(TEST) $(PYTEST_ARGS)

slow: .venv/installed
	$(BIN)/python -m pytest -m "slow or kills" $(PYTEST_ARGS)

check: .venv/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_architecture.py
	$(TEST) $(PYTEST_ARGS)

format: .venv/installed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; v = "%d.%d" % sys.version_info[:2]; sys.exit(None if sys.version_info >= (3, 11) else "aim_tune needs Python 3.11 or newer, this is " + v + "; try PYTHON=python3.12 make")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
