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
FUZZ_TARGETS := encap decap split coalesce headers
# Miri cannot call ring, which is C and assembly (aead, cookie, hmac, sequence), and takes many minutes for properties or for a
# million of anything.
MIRI_SKIPS := $(addprefix --skip ,aead cookie hmac sequence agree anything infers_any fragments_put slots_run_out a_million_routes \
  largest_sums once_per_interval flows_spread)

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

# Two processes: tests in namespaces mostly wait, while others compute.
## test: all tests; those in network namespaces need root
.PHONY: test
test: $(STAMPS)/lab-packages $(STAMPS)/test-packages $(STAMPS)/tools $(STAMPS)/null-cipher setup
	$(WITH_CARGO) cargo test --quiet --locked --manifest-path native/Cargo.toml $(RUST_TESTS)
	$(BIN)/pytest --quiet --wire=compiled -o "pythonpath=$$(echo $(VENV)/lib/python3*/site-packages) ." tests/wire
	$(BIN)/pytest -n 2 --dist loadscope --wire=interpreted --ignore=tests/interop -m "not mesh" $(TESTS)

## test-mesh: 30 spokes in a full mesh on this machine (root)
.PHONY: test-mesh
test-mesh: $(STAMPS)/lab-packages $(STAMPS)/test-packages $(STAMPS)/tools setup
	$(BIN)/pytest -rP -m mesh tests/netns/test_mesh.py

## test-interop: against FRR and strongSwan in User-Mode Linux guests (root)
.PHONY: test-interop
test-interop: $(STAMPS)/lab-packages $(STAMPS)/interop-packages $(STAMPS)/tools setup
	rm -f build/interop/results.json
	$(BIN)/pytest -n 4 --dist load -rs tests/interop

## interop-report: docs/interoperability.md from the last `make test-interop`
.PHONY: interop-report
interop-report:
	$(BIN)/python -m tests.interop.report

## fuzz: every fuzz target for TIME seconds (nightly Rust, cargo-fuzz)
.PHONY: fuzz
fuzz: TIME := 60
fuzz:
	@$(WITH_CARGO) cargo +nightly fuzz --version >/dev/null 2>&1 || { \
	  echo "fuzz: needs a nightly toolchain and cargo-fuzz: rustup toolchain install nightly; cargo install cargo-fuzz" >&2; exit 1; }
	$(WITH_CARGO) cd native/fuzz; for target in $(FUZZ_TARGETS); do \
	  mkdir -p ../../build/fuzz/$$target; echo "fuzzing $$target for $(TIME) s"; \
	  cargo +nightly fuzz run --fuzz-dir . $$target ../../build/fuzz/$$target corpus/$$target -- \
	    -max_total_time=$(TIME) -max_len=600 -timeout=20 -print_final_stats=1; done

## fuzz-ike: the IKEv2 engine for TIME seconds, seeded by real exchanges (atheris, from PyPI)
.PHONY: fuzz-ike
fuzz-ike: TIME := 60
fuzz-ike: $(STAMPS)/fuzz
	@mkdir -p build/fuzz/ike
	$(BIN)/python -m tests.ike.fuzz build/fuzz/ike tests/ike/corpus -max_total_time=$(TIME) -max_len=1500 -timeout=30 \
	  -artifact_prefix=build/fuzz/ -print_final_stats=1

## sanitize: the Rust tests under AddressSanitizer, and the pure crates under Miri (nightly Rust)
.PHONY: sanitize
sanitize:
	@$(WITH_CARGO) rustc +nightly --version >/dev/null 2>&1 || { \
	  echo "sanitize: needs a nightly toolchain: rustup toolchain install nightly" >&2; exit 1; }
	@echo "sanitize: AddressSanitizer over wire, dataplane and io"
	$(WITH_CARGO) RUSTFLAGS=-Zsanitizer=address PROPTEST_CASES=200 cargo +nightly test --quiet --locked $(SANITIZE) \
	  --manifest-path native/Cargo.toml --target "$$(rustc +nightly -vV | sed -n 's/^host: //p')" $(RUST_TESTS)
	@$(WITH_CARGO) if cargo +nightly miri --version >/dev/null 2>&1; then \
	  echo "sanitize: Miri over the unit tests of wire and dataplane, but for properties and what calls ring"; \
	else echo "sanitize: Miri is not installed (rustup +nightly component add miri rust-src): AddressSanitizer ran alone"; fi
	@$(WITH_CARGO) if cargo +nightly miri --version >/dev/null 2>&1; then export MIRIFLAGS=-Zmiri-disable-isolation; set -x; \
	  cargo +nightly miri test --quiet --locked --manifest-path native/Cargo.toml $(SANITIZE) -p dsvpn-wire --lib -- $(MIRI_SKIPS); \
	  cargo +nightly miri test --quiet --locked --manifest-path native/Cargo.toml $(SANITIZE) -p dsvpn-dataplane --lib -- $(MIRI_SKIPS); fi

## bench: every benchmark against every peer, into build/bench (root, about 35 minutes)
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

$(STAMPS)/bench: $(STAMPS)/lab-packages $(STAMPS)/bench-packages $(STAMPS)/null-cipher
	@touch $@

# A second module, which only the benchmarks and the tests about it load.
$(STAMPS)/null-cipher: $(STAMPS)/native $(STAMPS)/tools
	@$(BIN)/python -m bench build
	@touch $@

$(STAMPS)/fuzz: $(STAMPS)/tools
	@$(PIP) install '.[fuzz]'
	@touch $@

$(STAMPS)/tools: pyproject.toml | $(STAMPS)/dsvpn
	@$(PIP) install '.[test,lint,bench]'
	@touch $@
