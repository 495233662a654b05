# make demo   train and evaluate ResNet-50 with AN and BN on the built-in digits
# make test   the test suite            make lint   ruff and mypy
# Both set up .venv first if it is not there; both may be interrupted and run again.

CUDA ?= 13
BIN := .venv/bin
READY := .venv/.ready-cuda$(CUDA)

.PHONY: demo test lint format install clean

demo: $(READY)
	$(BIN)/python scripts/demo.py

test: $(READY)
	$(BIN)/python -m pytest

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

install: $(READY)

# The stamp is written last: an interrupted installation is taken up again.
$(READY): pyproject.toml constraints.txt
	@python=$${PYTHON:-$$(for p in python3 python3.13 python3.12 python3.11; do \
	  $$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null \
	  && { echo $$p; break; }; done)}; \
	test -n "$$python" || { echo "Python 3.11, 3.12 or 3.13 is needed: set PYTHON=/path/to/python"; exit 2; }; \
	test -x $(BIN)/python || $$python -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check --progress-bar off -q \
	  -c constraints.txt -e '.[cuda$(CUDA),dev]'
	@touch $@

clean:
	rm -rf .venv runs build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache
