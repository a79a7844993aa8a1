# make venv | demo | test | lint | clean.  With a GPU: make venv EXTRAS=test,cuda.
PYTHON ?= python3
EXTRAS ?= test
# Processes that share the tests. Each holds a TensorFlow of its own, and grows to 4 or 5 GB.
WORKERS ?= 2
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
export TF_CPP_MIN_LOG_LEVEL ?= 2

.PHONY: venv demo test test-slow lint clean
.DEFAULT_GOAL := venv

venv: $(STAMP)

# The environment is made once; a newer setup.py only updates it.
$(STAMP): setup.py
	@echo "Installing the requirements into $(VENV) (the first time takes some minutes)"
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install -q --disable-pip-version-check -e '.[$(EXTRAS)]'
	@touch $@

demo: $(STAMP)
	@$(BIN)/python tools/demo.py

test: $(STAMP)
	$(BIN)/python -m pytest -q -n $(WORKERS) --dist loadfile --no-loadscope-reorder

test-slow: $(STAMP)
	$(BIN)/python -m pytest -q -m slow

lint: $(STAMP)
	$(BIN)/ruff check .

# Keeps $(VENV) and results/: nothing that took long to make is removed.
clean:
	rm -rf build dist *.egg-info .cache .pytest_cache .ruff_cache .hypothesis
	find . -path ./$(VENV) -prune -o -type d -name __pycache__ -prune -exec rm -rf {} +
