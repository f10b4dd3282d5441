# From nothing but Python >= 3.10 and make: each target but oldest first makes .venv with the pinned tools, once.
# Another interpreter: make test PYTHON=/path/to/python3.12
PYTHON ?= python3
BIN := .venv/bin

.PHONY: help venv demo test oldest bench export readme docs build

help: ## list the targets
	@sed -n 's/^\([a-z]*\):.*## /make \1	/p' Makefile

venv: .venv/.installed ## make .venv and install the project with its pinned development tools

.venv/.installed: settings.ini setup.py constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || { \
	  echo 'Python 3.10 or newer is needed, and "$(PYTHON)" is not one. Name one: make PYTHON=/path/to/python3.12' >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -c constraints.txt -e '.[dev]'
	touch $@

demo: venv ## finetune the embedded model with PRDP on the CPU, pictures and table included
	$(BIN)/prdp_train --preset emoji_small

test: venv ## sync, README, map, lint, every notebook, the website, every test
	.ci/check_sync
	$(BIN)/python tools/readme.py --check
	$(BIN)/python tools/house.py --check
	$(BIN)/ruff check
	OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --dist loadgroup --durations=0 --durations-min=1

oldest: ## the tests of models, training and processes with the oldest releases that settings.ini allows, in .venv-oldest; Python 3.10 or 3.11
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 12))' || { \
	  echo 'The oldest releases need Python 3.10 or 3.11, and "$(PYTHON)" is neither. Name one: make oldest PYTHON=/path/to/python3.11' >&2; exit 1; }
	$(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/python -m pip install -c constraints-oldest.txt -e . pytest pytest-xdist fastcore pyarrow scipy
	OMP_NUM_THREADS=1 .venv-oldest/bin/pytest -n auto --dist loadgroup tests/test_baselines.py tests/test_clip_rewards.py tests/test_losses.py tests/test_evaluation.py tests/test_models.py tests/test_processes.py tests/test_prompts.py tests/test_rewards.py tests/test_sd.py tests/test_training.py

bench: venv ## measure what training costs and write benchmarks/README.md: over an hour, and an environment with TRL
	$(BIN)/python benchmarks/epoch.py bare
	$(BIN)/python benchmarks/epoch.py families
	$(BIN)/python benchmarks/epoch.py memory
	$(BIN)/python benchmarks/epoch.py growth
	$(BIN)/python benchmarks/beside_trl.py
	$(BIN)/python benchmarks/subset.py
	$(BIN)/python benchmarks/table.py

export: venv ## write the modules anew from the notebooks, and clean these
	find prdp_nb -name '*.py' -delete
	$(BIN)/nbdev_export
	$(BIN)/nbdev_clean

readme: venv ## write README.md from nbs/index.ipynb, and its picture from the results of 30
	$(BIN)/python tools/stability_picture.py
	$(BIN)/python tools/readme.py

docs: venv ## the website, in _docs/html
	$(BIN)/python tools/website.py

build: venv ## the wheel and the source archive, in dist
	rm -rf build dist
	$(BIN)/python -m build --no-isolation
