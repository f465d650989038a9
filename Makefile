# The two commands of the README are `make demo` and `make test`; both set up what they need.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help demo test test-matrix test-broker-versions chaos fuzz lint api bench docs clean up down services-down cargo

ARGS ?=
FUZZ_SECONDS ?= 15
# Servers come from scripts/services; a variable that is set already (AMQP_URL, POSTGRES_URL, ...) names one of yours.
WITH_SERVICES = environment=$$(scripts/services env); eval "$$environment";

help: ## List the targets
	@sed -nE 's/^([a-z-]+):.*## (.*)/\1\t\2/p' $(MAKEFILE_LIST) | expand -t 22

up: cargo ## Start RabbitMQ and the databases (installs them on Debian and Ubuntu), or find them
	@scripts/services up

down: ## Stop what `up` started
	@scripts/suite each scripts/services down

services-down: down

demo: cargo ## 1,000 debits with duplicates and cut connections; every balance right
	@scripts/services up rabbitmq
	@$(WITH_SERVICES) cargo run --release --package lapin-idempotent-demo -- $(ARGS)

test: up ## All tests, with real servers and a browser; none is left out
	@scripts/services browser
	@$(WITH_SERVICES) export REQUIRE_SERVICES=1 RUST_BACKTRACE=0; \
	if cargo nextest --version >/dev/null 2>&1; then \
		cargo nextest run --package lapin-idempotent --package lapin-idempotent-model --all-features --no-fail-fast; \
		cargo test --quiet --all-features --doc; \
	else \
		cargo test --package lapin-idempotent --package lapin-idempotent-model --all-features; \
	fi

# Each suite has a turn, also after one that failed. Nothing of this needs nextest; without it, a filter is left out.
NEXTEST = $(shell cargo nextest --version >/dev/null 2>&1 && echo yes)
IN_SUITES = failed=; for suite in $(1); do echo "== $$suite"; \
	REQUIRE_SERVICES=1 RUST_BACKTRACE=0 scripts/suite cargo $$suite $(2) || failed+=" $$suite"; \
	done; if [ -n "$$failed" ]; then echo "tests failed among the servers of$$failed" >&2; exit 1; fi

test-matrix: cargo ## All tests among the servers of each Debian suite, or of one: SERVERS=debian13 (debian12, debian-sid)
	@scripts/services prerequisites
	@scripts/services browser
	@$(call IN_SUITES,$(or $(SERVERS),$$(scripts/suite list)),$(if $(NEXTEST),nextest run,test --tests) --all-features --no-fail-fast)

test-broker-versions: cargo ## The tests that depend on the broker's version, among the servers of the newer Debian suites
	@scripts/services prerequisites
	@$(call IN_SUITES,$(or $(SERVERS),$$(scripts/suite list | sed 1d)),$(if $(NEXTEST),nextest run --profile broker-versions,test \
		--test service --test chaos --test databases) --all-features --no-fail-fast)

chaos: cargo ## Kills, cuts, freezes and starts everything again, and counts: MINUTES=20 SEED=1 MESSAGES=100000 OUTBOX=1 OUT=folder
	@scripts/services install rabbitmq postgres
	@cargo test --all-features --test chaos -- run $(if $(MINUTES),--minutes $(MINUTES)) $(if $(SEED),--seed $(SEED)) \
		$(if $(MESSAGES),--messages $(MESSAGES)) $(if $(OUTBOX),--outbox) $(if $(OUT),--out $(abspath $(OUT)))

lint: cargo ## Formatting, clippy, docs, public API, package, dependencies; INSTALL_CARGO_DENY=1 gets cargo-deny first
	@scripts/services prerequisites
	@if [ "$${INSTALL_CARGO_DENY:-}" = 1 ] && ! command -v cargo-deny >/dev/null; then cargo install --locked cargo-deny; fi
	scripts/lint

api: cargo ## Write the public API to docs/api.txt, which `lint` compares
	scripts/api write

fuzz: cargo ## Fuzz what reads foreign bytes, each target for FUZZ_SECONDS (15); a crash fails
	@scripts/services fuzzing
	@cargo fuzz --version >/dev/null 2>&1 || cargo install --locked cargo-fuzz
	FUZZ_SECONDS=$(FUZZ_SECONDS) scripts/fuzz

BENCHES = --bench publish --bench consume --bench outbox --bench stores

bench: up ## Throughput against raw lapin, in one run, and the aims that were reached; BENCH_STRICT=1 fails if one was missed, BENCH_PUBLISH=1 writes benches/README.md. A short one: ARGS="500 1" (messages, rounds)
	@$(WITH_SERVICES) cargo bench --all-features $(BENCHES) -- $(ARGS)
	@cargo bench --all-features --bench report

docs: cargo ## Build the documentation
	cargo doc --all-features --no-deps

clean: cargo ## Stop the servers and remove what they hold and what was built
	@scripts/suite each scripts/services clean
	cargo clean

cargo:
	@command -v cargo >/dev/null || { echo "cargo is needed: install Rust 1.94 or newer (https://rustup.rs)" >&2; exit 1; }
