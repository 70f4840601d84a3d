# The commands of this project. `make` alone lists them.
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c

VENV := .venv
BIN := $(VENV)/bin
STAMPS := $(VENV)/.stamps
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

# rustup's cargo is not in every shell's PATH. Found when a recipe needs it, so that `make help` works without.
WITH_CARGO = export PATH="$$(.ci/setup cargo):$$PATH";

NATIVE_SOURCES := $(shell find native -name target -prune -o \( -name '*.rs' -o -name 'Cargo.*' -o -name '*.toml' -o -name '*.pyi' \) -print)
PYTHON_SOURCES := $(shell find dsvpn -name '*.py' -o -name '*.pxd' -o -name 'py.typed')
RUST_TESTS := -p dsvpn-wire -p dsvpn-dataplane -p dsvpn-io

## help: list the targets
.PHONY: help
help:
	@sed -n 's/^## \([a-z-]*\): \(.*\)/  make \1|\2/p' Makefile | column -t -s '|'

## setup: build both packages (release) into .venv, with what they need
.PHONY: setup
setup: $(STAMPS)/dsvpn

## demo: a hub, two spokes and their LANs in network namespaces, shown and checked (root)
.PHONY: demo
demo: $(STAMPS)/lab-packages setup
	@$(BIN)/dsvpn lab $(DEMO)

## test: all tests; those in network namespaces need root
.PHONY: test
test: $(STAMPS)/lab-packages $(STAMPS)/test-packages $(STAMPS)/tools setup
	$(WITH_CARGO) cargo test --quiet --locked --manifest-path native/Cargo.toml $(RUST_TESTS)
	$(BIN)/pytest --quiet --wire=compiled -o "pythonpath=$$(echo $(VENV)/lib/python3*/site-packages) ." tests/wire
	$(BIN)/pytest --wire=interpreted --ignore=tests/interop $(TESTS)

## test-interop: against FRR and strongSwan in User-Mode Linux guests (root)
.PHONY: test-interop
test-interop: $(STAMPS)/lab-packages $(STAMPS)/interop-packages $(STAMPS)/tools setup
	$(BIN)/pytest tests/interop

## bench: every benchmark against every peer, into build/bench (root, long)
.PHONY: bench
bench: $(STAMPS)/bench
	$(BIN)/python -m bench full $(BENCH)

## bench-quick: the figures that matter most, in less than 5 minutes (root)
.PHONY: bench-quick
bench-quick: $(STAMPS)/bench
	$(BIN)/python -m bench quick $(BENCH)

## lint: formatters, linters and type checkers, changing nothing
.PHONY: lint
lint: $(STAMPS)/tools setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m mypy.stubtest dsvpn_native
	$(WITH_CARGO) cargo fmt --manifest-path native/Cargo.toml --all --check
	$(WITH_CARGO) cargo clippy --quiet --locked --manifest-path native/Cargo.toml --workspace --all-targets -- -D warnings

## format: let the formatters rewrite the sources
.PHONY: format
format: $(STAMPS)/tools
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(WITH_CARGO) cargo fmt --manifest-path native/Cargo.toml --all

## clean: remove everything that was built
.PHONY: clean
clean:
	rm -rf $(VENV) native/target build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find dsvpn \( -name '*.so' -o -name '*.c' -o -name '*.html' \) -delete
	find dsvpn tests -name __pycache__ -prune -exec rm -rf {} +

# -- what the targets stand on; a stamp is renewed when what it was made from is newer ------------------------------

$(STAMPS)/venv: .ci/setup
	.ci/setup packages build
	.ci/setup venv $(VENV)
	@mkdir -p $(STAMPS)
	@touch $@

$(STAMPS)/%-packages: .ci/setup | $(STAMPS)/venv
	.ci/setup packages $*
	@touch $@

$(STAMPS)/native: $(NATIVE_SOURCES) $(STAMPS)/venv
	@echo "building dsvpn-native (release; the first build takes minutes)"
	@$(WITH_CARGO) $(PIP) install --force-reinstall --no-deps ./native
	@touch $@

# Installed, not editable: what runs is the compiled codecs, while the tests read the checkout.
$(STAMPS)/dsvpn: pyproject.toml setup.py $(PYTHON_SOURCES) $(STAMPS)/native
	@echo "building dsvpn"
	@$(PIP) install .
	@touch $@

$(STAMPS)/bench: pyproject.toml $(STAMPS)/lab-packages $(STAMPS)/bench-packages $(STAMPS)/dsvpn
	@$(PIP) install '.[bench]'
	@touch $@

$(STAMPS)/tools: pyproject.toml | $(STAMPS)/dsvpn
	@$(PIP) install '.[test,lint,bench]'
	@touch $@
