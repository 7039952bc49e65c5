# What a person runs. Each target installs what it needs itself; `.ci/run` calls these too.
.DEFAULT_GOAL := help
SHELL := bash
# What static binaries and the image are built for: amd64, arm64 or both.
ARCH ?= $(shell uname -m | sed 's/x86_64/amd64/; s/aarch64/arm64/')

.PHONY: help demo test lint deny sanity bench static image manifest chart cluster-up cluster-down e2e e2e-storage figures

help: ## what can be made
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

demo: ## a volume's whole life over CSI, step by step
	@tests/install rust
	cargo build --quiet --bin orlop --example demo
	@target/debug/examples/demo target/debug/orlop

test: ## everything that this machine can run, csi-sanity included
	@tests/install rust test go
	cargo test
	tests/sanity/run

lint: ## formatting, clippy, documentation, scripts
	@tests/install rust lint
	cargo fmt --check
	cargo clippy --all-targets --all-features -- -D warnings
	RUSTDOCFLAGS='-D warnings' cargo doc --no-deps --quiet
	tests/shellcheck

deny: ## licences, sources and versions of what is built in
	@tests/install rust deny
	PATH="$${ORLOP_TOOLS:-$$HOME/.cache/orlop-tools}/bin:$$PATH" cargo deny check bans licenses sources

sanity: ## csi-sanity alone
	@tests/install rust go
	tests/sanity/run

bench: ## the figures, each beside the same work by bare system calls
	@tests/install rust
	cargo build --release --bin orlop
	cargo bench --bench csi

static: ## static binaries (ARCH='amd64 arm64' for both architectures)
	@tests/install rust static $(filter arm64,$(ARCH))
	deploy/static $(ARCH)

image: static ## a container image as target/image/orlop.tar, for `ctr images import` and `docker load`
	deploy/image $(addprefix --arch ,$(ARCH))

manifest: ## deploy/orlop.yaml, for people without Helm
	tests/cluster/build helm
	deploy/manifest

chart: ## the chart: lint, schemas, bad values
	@tests/install go chart
	tests/cluster/build chart
	tests/chart/check

cluster-up: image ## a real Kubernetes on this machine, with orlop installed by Helm
	tests/cluster/install
	tests/cluster/build cluster
	tests/cluster/up
	tests/cluster/orlop

cluster-down: ## end it; nothing is left
	tests/cluster/down

e2e: cluster-up ## our scenarios, on the cluster
	tests/cluster/scenarios

figures: cluster-up ## time to a running pod, orlop's part of it, and memory, on the cluster
	tests/cluster/figures

e2e-storage: cluster-up ## Kubernetes' own storage suite, on the cluster
	tests/cluster/build e2e
	tests/cluster/storage-suite
