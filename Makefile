# Two commands for a newcomer: `make demo` and `make test`. Each sets up what it needs.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin

.PHONY: demo demo-generate test test-slow test-long test-gpu test-cluster faults soak check format setup lock clean
.DELETE_ON_ERROR:

setup: $(VENV)/installed

# Both ways install the versions of uv.lock: uv where it is on the path and reaches its files, else pip with the lock as constraints.
$(VENV)/installed: pyproject.toml uv.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "mergevq needs Python 3.11 or newer; set PYTHON=python3.11"; exit 2; }
	if command -v uv >/dev/null && UV_PROJECT_ENVIRONMENT=$(VENV) uv sync --frozen --extra dev --python $(PYTHON); then :; else \
		{ test -x $(RUN)/python || $(PYTHON) -m venv $(VENV); } && \
		$(PYTHON) .ci/constraints.py >$(VENV)/constraints.txt && \
		$(RUN)/python -m pip install --quiet --disable-pip-version-check -c $(VENV)/constraints.txt -e '.[dev]'; \
	fi
	touch $@

lock: pyproject.toml  ## after a change of pyproject.toml: uv.lock anew, from PyPI, keeping the versions that still fit
	uv lock --no-config --default-index https://pypi.org/simple

demo: setup  ## images, a stand-in teacher, a tokenizer, its curve: about ten minutes on two cores
	$(RUN)/python jobs/demo.py

demo-generate: setup  ## after `make demo`: two small generators on its tokenizer's codes, evaluated: under twelve minutes
	$(RUN)/python jobs/demo_generate.py

LONG := soak or cluster or faults or long or slow or gpu
RAY_FILES = $$(grep -rl --include='*.py' 'mark\.ray' tests)  # the others need not be imported to be deselected
AFTER_RAY := tests/golden tests/end_to_end tests/parity tests/platform/tasks tests/platform/sweeps tests/platform/data tests/platform/allocation tests/platform/test_loop.py
PYTEST := OMP_NUM_THREADS=1 $(RUN)/python -m pytest --durations=10
test: setup  ## the ordinary suite in two halves: what starts Ray, then AFTER_RAY; beside them the rest, whose output follows at the end
	@rest=$$(mktemp); trap 'rm -f "$$rest"' EXIT; \
	$(PYTEST) -m 'not (ray or $(LONG))' $(AFTER_RAY:%=--ignore=%) >"$$rest" 2>&1 & \
	$(PYTEST) -m 'ray and not ($(LONG))' $(RAY_FILES); ray=$$?; \
	$(PYTEST) -m 'not (ray or $(LONG))' $(AFTER_RAY); after=$$?; \
	wait $$!; others=$$?; cat "$$rest"; exit $$((ray | after | others))

test-slow: setup  ## what CI runs after the ordinary suite: killed drivers, a bare cluster, more workers and servers; minutes
	$(PYTEST) -m slow

test-long: setup  ## real trainings on Ray that the ordinary suite shows smaller; minutes
	$(RUN)/python -m pytest -m long

test-gpu: setup  ## on a machine with an NVIDIA GPU: the library, the loop and the generators on it; three minutes
	$(RUN)/python -m pytest -m gpu tests/gpu

test-cluster: setup  ## jobs of real clusters: submission, lost nodes, doctor, plan; minutes
	$(RUN)/python -m pytest -m cluster

faults: setup  ## every fault on clusters of its own, as root also on hosts in network namespaces; writes docs/faults.md
	$(RUN)/python -m pytest -m faults tests/faults

soak: setup  ## the long suite: many trials through one sweep, a sweep killed ten times, a long training under random faults
	$(RUN)/python -m pytest -m soak

check: setup  ## format, lint, types; import directions, cycles, class names; links, commands, recipe reference; the lock
	$(RUN)/ruff format --check .
	$(RUN)/ruff check .
	$(RUN)/mypy
	$(RUN)/python -m pytest -q tests/test_architecture.py tests/test_docs.py tests/test_install.py

format: setup
	$(RUN)/ruff format .
	$(RUN)/ruff check --fix .

clean:
	rm -rf $(VENV) runs build dist
