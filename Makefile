# make demo   train and evaluate ResNet-50 with AN and BN on the built-in digits
# make test   the test suite            make lint   ruff, the floors, mypy
# make detection-demo  a detector for digits in scenes, from the classifier of make demo
# make tables-detection-small  all rows of Tables 2 to 4: built, two steps, evaluated, reported
# make slow   the tests that make test leaves out
# make faults kill, starve and poison real runs, and print what was lost
# make gpu    what only a GPU can show, as one table (DEVICE=cpu walks its code without one)
# make grid-small  five normalizers × three recipes on digits, and the report (SEEDS=0,1,2)
# make table1-small  all rows of Table 1, scaled down to the digits (SEEDS=3), and the report
# make docs   the documentation as a site, in build/site
# make release  sdist and wheel, checked and trained with in an empty environment
# All set up .venv first if it is not there; all may be interrupted and run again.

CUDA ?= 13
BIN := .venv/bin
READY := .venv/.ready-cuda$(CUDA)

.PHONY: demo grid-small table1-small detection-demo tables-detection-small test slow faults gpu docs release lint format install clean

demo: $(READY)
	$(BIN)/python scripts/demo.py

table1-small: $(READY)
	$(BIN)/python scripts/run_table1.py --seeds $(or $(SEEDS),1)

# The recipes as they are, but for sizes, epochs and batch. The rates are those of a batch eight times
# as large, LAMB's four times more: a step of it moves each weight by that share of its size, and in
# 704 steps of 1e-3 batch norm would get to 32 % only (group norm to 5 %; with 4e-3 both do).
GRID_SMALL = $(BIN)/python scripts/run_table.py --runs runs/grid-small norm=bn,gn,se,eca,an \
  seed=$(or $(SEEDS),0) arch=mobilenetv2 epochs=16 batch_size=32 optim.reference_batch=256 \
  schedule.warmup_epochs=2 data.image_size=32 data.resize_size=32 data.train_size=32

grid-small: $(READY)
	$(GRID_SMALL) recipe=paper,an_advanced
	$(GRID_SMALL) recipe=rsb_a3 optim.lr=0.032

detection-demo: $(READY)
	$(BIN)/python scripts/demo.py detection

tables-detection-small: $(READY)
	$(BIN)/python scripts/tables_detection_small.py

# Two processes of one thread each: most tests start programs and wait for them. A file's tests share
# what its first one makes, so one process runs them; in the order of the folders, since the files
# with few tests, which would come last otherwise, are the longest.
test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

# What is too long for make test, faults included.
slow: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m slow

faults: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/faults -m "slow or not slow"

gpu: $(READY)
	$(BIN)/python -m tests.gpu --device $(or $(DEVICE),cuda) $(CHECKS)

# The site, in build/site: a link that leads nowhere fails.
docs: $(READY)
	$(BIN)/python -m pip install --disable-pip-version-check --progress-bar off -q -c constraints.txt -e '.[docs]'
	$(BIN)/python scripts/model_zoo.py --check
	$(BIN)/python scripts/docs_tables.py --check
	$(BIN)/mkdocs build --strict

# sdist and wheel in dist/: checked, installed in an empty environment, and trained with there.
release: $(READY)
	$(BIN)/python scripts/release.py

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-logo
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

install: $(READY)

# The stamp is written last: an interrupted installation is taken up again. One at a time: another make
# waits for it.
$(READY): pyproject.toml constraints.txt
	@mkdir -p .venv
	@{ set -e; \
	flock -n 9 || { echo "another make is installing here: waiting for it"; flock 9; }; \
	if test $@ -nt pyproject.toml && test $@ -nt constraints.txt; then exit 0; fi; \
	python=$${PYTHON:-$$(for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	  $$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15))' 2>/dev/null \
	  && { echo $$p; break; }; done || true)}; \
	test -n "$$python" || { echo "Python 3.11 to 3.14 is needed: set PYTHON=/path/to/python"; exit 2; }; \
	$(BIN)/python -m pip --version >/dev/null 2>&1 || "$$python" -m venv .venv; \
	echo "installing into .venv, some minutes"; \
	$(BIN)/python -m pip install --disable-pip-version-check --progress-bar off -q \
	  -c constraints.txt -e '.[cuda$(CUDA),dev]'; \
	touch $@; } 9>.venv/.lock

clean:
	rm -rf .venv runs build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
