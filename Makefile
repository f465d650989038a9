# The two commands of the README are `make demo` and `make test`; both set up what they need.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help demo test chaos fuzz lint bench docs clean up down services-down cargo

ARGS ?=
FUZZ_SECONDS ?= 15
# Servers come from scripts/services; a variable that is set already (AMQP_URL, POSTGRES_URL, ...) names one of yours.
WITH_SERVICES = environment=$$(scripts/services env); eval "$$environment";

help: ## List the targets
	@sed -nE 's/^([a-z-]+):.*## (.*)/\1\t\2/p' $(MAKEFILE_LIST) | expand -t 10

up: cargo ## Start RabbitMQ and the databases (installs them on Debian and Ubuntu), or find them
	@scripts/services up

down: ## Stop what `up` started
	@scripts/services down

services-down: down

demo: cargo ## 1,000 debits with duplicates and cut connections; every balance right
	@scripts/services up rabbitmq
	@$(WITH_SERVICES) cargo run --release --features sqlite --example payments -- $(ARGS)

test: up ## All tests, with real servers; none is left out
	@$(WITH_SERVICES) export REQUIRE_SERVICES=1 RUST_BACKTRACE=0; \
	if cargo nextest --version >/dev/null 2>&1; then \
		cargo nextest run --all-features --no-fail-fast; \
		cargo test --quiet --all-features --doc; \
	else \
		cargo test --all-features; \
	fi

chaos: cargo ## Kills, cuts, freezes and starts everything again, and counts: MINUTES=20 SEED=1 MESSAGES=100000 OUT=folder
	@scripts/services install rabbitmq postgres
	@cargo test --all-features --test chaos -- run $(if $(MINUTES),--minutes $(MINUTES)) $(if $(SEED),--seed $(SEED)) \
		$(if $(MESSAGES),--messages $(MESSAGES)) $(if $(OUT),--out $(abspath $(OUT)))

lint: cargo ## Formatting, clippy, docs, dependencies; INSTALL_CARGO_DENY=1 gets cargo-deny first
	@scripts/services prerequisites
	@if [ "$${INSTALL_CARGO_DENY:-}" = 1 ] && ! command -v cargo-deny >/dev/null; then cargo install --locked cargo-deny; fi
	scripts/lint

fuzz: cargo ## Fuzz what reads foreign bytes, each target for FUZZ_SECONDS (15); a crash fails
	@scripts/services fuzzing
	@cargo fuzz --version >/dev/null 2>&1 || cargo install --locked cargo-fuzz
	FUZZ_SECONDS=$(FUZZ_SECONDS) scripts/fuzz

bench: up ## Throughput against raw lapin, in one run; writes target/bench/
	@$(WITH_SERVICES) cargo bench --all-features

docs: cargo ## Build the documentation
	cargo doc --all-features --no-deps

clean: cargo ## Stop the servers and remove what they hold and what was built
	@scripts/services clean
	cargo clean

cargo:
	@command -v cargo >/dev/null || { echo "cargo is needed: install Rust 1.94 or newer (https://rustup.rs)" >&2; exit 1; }
