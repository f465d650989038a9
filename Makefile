# The two commands of the README are `make demo` and `make test`; both set up what they need.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help demo test lint bench docs clean up down

ARGS ?=
# Servers come from scripts/services; a variable that is set already (AMQP_URL) names one of yours.
WITH_SERVICES = env=$$(scripts/services env) && eval "$$env" &&

help: ## List the targets
	@sed -nE 's/^([a-z]+):.*## (.*)/\1\t\2/p' $(MAKEFILE_LIST) | expand -t 10

up: ## Start RabbitMQ (installs it on Debian), or find it
	@command -v cargo >/dev/null || { echo "cargo is needed: install Rust 1.94 or newer (https://rustup.rs)" >&2; exit 1; }
	@scripts/services up

down: ## Stop what `up` started
	@scripts/services down

demo: up ## 1,000 debits with duplicates and cut connections; every balance right
	@cargo build --quiet --release --features sqlite --example payments
	@$(WITH_SERVICES) target/release/examples/payments $(ARGS)

test: up ## All tests, with a real broker; none is left out
	@$(WITH_SERVICES) export REQUIRE_SERVICES=1 RUST_BACKTRACE=0; \
	if cargo nextest --version >/dev/null 2>&1; then \
		cargo nextest run --all-features --no-fail-fast && cargo test --quiet --all-features --doc; \
	else \
		cargo test --all-features; \
	fi

lint: ## Formatting, clippy, docs, dependencies
	scripts/lint

bench: up ## Throughput against raw lapin, in one run; writes target/bench/
	@$(WITH_SERVICES) cargo bench --all-features

docs: ## Build the documentation
	cargo doc --all-features --no-deps

clean: down ## Stop the servers and remove what was built
	cargo clean
