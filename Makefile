# Two commands for a fresh machine: `make demo` and `make test`. Both build .venv first; PYTHON=python3.12 picks another Python.
PYTHON ?= python3
BIN := .venv/bin
# setuptools warns of every editable installation that its folder may hide other packages; ours are in one of their own.
PIP := PYTHONWARNINGS='ignore:Editable installation' $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: demo test quick quick-tests oldest lint wheel setup clean

.venv/.run: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "robustq needs Python 3.11 or newer; try: make PYTHON=python3.12 $(MAKECMDGOALS)")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) -e .
	touch $@

.venv/.dev: .venv/.run
	$(PIP) 'pip>=25.1'  # older Pythons bring one that knows no --group
	$(PIP) -e '.[postgres,cluster,serve,corruptions,deploy,mlflow,tensorboard,wandb]' --group dev --group peers
	$(PIP) --no-deps torchattacks==3.5.1 adv-lib==0.2.8
	mkdir -p .venv/names && ln -sfn ../.. .venv/names/robustq  # pyright knows no editable installs but by paths
	touch $@

setup: .venv/.dev

demo: .venv/.run
	$(BIN)/robustq run studies/quickstart.yaml
	$(BIN)/robustq report --sweep quickstart --out report/quickstart.html --figures report
	$(BIN)/robustq export --sweep quickstart report/quickstart.arrow
	@echo
	@$(BIN)/robustq results --sweep quickstart --summary
	@printf '%s\n' '' \
	  'How to read it: beside clean accuracy stands what the worst attack of each radius leaves of it.' \
	  'Compare the networks that learnt on attacked digits with the plain ones at Linf 0.1, the radius of that training.' \
	  'A number holds against the attacks of the study, not against all that exist: robustq audit MODEL tries more.' \
	  'Open report/quickstart.html for the answer in words, curves, images and checks, or follow it live: $(BIN)/robustq ui' \
	  'Next, a model of your own: $(BIN)/robustq attack my_model.py:build --eps 8/255 (README.md, docs/study.md)'

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright

QUICK := not ray and not browser and not postgres and not peers and not data and not slow and not trained

# Side by side: types alone would leave all cores but one idle.
quick: setup
	$(MAKE) --no-print-directory --jobs=2 lint quick-tests

quick-tests: setup
	$(BIN)/python -m pytest -q -n auto --maxprocesses 8 --dist loadscope -m "$(QUICK)"

# The same with the lowest versions that pyproject.toml allows, in an environment of its own; then exports, which take
# long and depend on the versions most. Warnings of what will change are no errors of ours.
OLDEST := build/oldest
OLDER := -W ignore::DeprecationWarning -W ignore::FutureWarning
OLD := postgres cluster corruptions deploy mlflow tensorboard wandb
oldest:
	$(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/python -m pip install --quiet --disable-pip-version-check uv
	$(OLDEST)/bin/uv pip compile --quiet --resolution lowest-direct $(OLD:%=--extra %) --python $(OLDEST)/bin/python \
		--output-file $(OLDEST)/lowest.txt pyproject.toml
	$(OLDEST)/bin/uv pip install --quiet --python $(OLDEST)/bin/python -r $(OLDEST)/lowest.txt --group dev
	$(OLDEST)/bin/uv pip install --quiet --python $(OLDEST)/bin/python --no-deps -e .
	$(OLDEST)/bin/python -m pytest -q -n auto --maxprocesses 8 --dist loadscope $(OLDER) -m "$(QUICK)"
	$(OLDEST)/bin/python -m pytest -q $(OLDER) tests/robustlib/export tests/robustlib/inference/test_wrappers.py

# Side by side but for Ray, which has all cores to itself. Ray that dies has a process of its own: one that had other Rays
# before was ended by it, without a word (Ray 2.60). Then how models are called once more, alone and so with two threads:
# beside others a test has one.
test: lint
	$(BIN)/python -m pytest -q -n 2 --dist loadscope -m "not ray"
	$(BIN)/python -m pytest -q -m ray --ignore tests/cluster/test_ray_failures.py
	$(BIN)/python -m pytest -q -m ray tests/cluster/test_ray_failures.py
	$(BIN)/python -m pytest -q -m "not ray" tests/robustlib/inference

# What a user gets: the wheel in an environment of its own, run from a folder that has nothing else.
wheel:
	rm -rf build && mkdir -p build/elsewhere
	$(PYTHON) -m venv build/clean
	build/clean/bin/python -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir build/dist .
	build/clean/bin/python -m pip install --quiet --disable-pip-version-check build/dist/*.whl
	cd build/elsewhere && ../clean/bin/robustq --help && ../clean/bin/robustq run ../../studies/quickstart.yaml

clean:
	rm -rf .venv .robustq report build *.egg-info
