# Two commands do everything: make quickstart, make test. make docs and make
# wheel build the site and the packages.
# PYTHON: an interpreter of at least 3.11 that makes the virtual environment.
PYTHON ?= python3
RUN := runs/quickstart
BIN := .venv/bin
export JAX_COMPILATION_CACHE_DIR ?= $(CURDIR)/.cache/jax
# Compilation of small programs is worth keeping, too.
export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS ?= 0.5

.PHONY: quickstart test lint types docs wheel lock clean

# Meta-trains on digits, then compares on wider networks: table and plot.
quickstart: .venv/ready
	$(BIN)/python -m meta_train.train \
	  --config=meta_train/configs/quickstart.py --workdir=$(RUN)
	$(BIN)/python -m experiments.studies.transfer \
	  --optimizers=$(RUN)/theta.safetensors,untrained:$(RUN)/theta.safetensors,adam,mu_adam \
	  --workdir=$(RUN)/transfer --settings=dataset=digits \
	  --schedules=constant --num_steps=300 --seeds=5 --tuning_seeds=3 \
	  --bfloat16_state

test: .venv/ready
	$(MAKE) -j 2 lint types
	$(BIN)/python -m pytest

lint: .venv/ready
	$(BIN)/flake8
	$(BIN)/isort --check --diff .

types: .venv/ready
	$(BIN)/mypy

# The site, into build/site. A warning is an error.
docs: .venv/ready
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

# Both packages, into dist, tried in new environments and an empty folder.
wheel: .venv/ready
	rm -rf build/wheel dist && mkdir -p build/wheel/empty
	$(BIN)/python -c "from setuptools import build_meta; \
	  build_meta.build_sdist('dist')"
	$(BIN)/pip wheel --quiet --no-deps --no-build-isolation \
	  --wheel-dir dist dist/mulo-*.tar.gz
	for extra in "" "[train]"; do \
	  $(PYTHON) -m venv --clear build/wheel/env && \
	  build/wheel/env/bin/pip install --quiet "$$(echo dist/*.whl)$$extra" && \
	  (cd build/wheel/empty && ../env/bin/python \
	   $(CURDIR)/tests/smoke.py "$$extra") || exit 1; \
	done

# New versions within the ranges of setup.cfg.
lock:
	$(BIN)/pip install --quiet uv
	$(BIN)/uv pip compile --universal --python-version 3.11 --generate-hashes \
	  --extra train --extra test --extra docs --output-file requirements.lock \
	  --custom-compile-command "make lock" setup.cfg

clean:
	rm -rf .venv .cache build dist *.egg-info

# uv installs in a tenth of the time that pip takes; where it cannot, pip does.
.venv/ready: requirements.lock setup.cfg
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet uv && $(BIN)/uv pip install --quiet \
	  --python $(BIN)/python --require-hashes \
	  -r requirements.lock || \
	  $(BIN)/pip install --quiet --require-hashes -r requirements.lock
	$(BIN)/pip install --quiet --no-deps --no-build-isolation --editable . \
	  --config-settings editable_mode=compat
	touch $@
