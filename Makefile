# Development commands. Each target installs the tools it needs; `.ci/run` uses the same targets.
.DEFAULT_GOAL := help
SHELL := bash
# Architectures of the static binaries and the image: amd64, arm64 or both.
ARCH ?= $(shell uname -m | sed 's/x86_64/amd64/; s/aarch64/arm64/')

.PHONY: help demo test test-docker test-docker-figures test-docker-29 test-vm test-vm-long test-vm-cluster test-cluster test-long fuzz lint deny sanity bench static image deb manifest chart cluster-up cluster-down e2e e2e-storage figures

help: ## list the targets
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

demo: ## run the whole life cycle of a volume over CSI, step by step
	@echo 'Installing what is missing, then building orlop and the demonstration (about 2 minutes the first time) …'
	@tests/install rust
	cargo build --quiet --bin orlop --example demo
	@target/debug/examples/demo target/debug/orlop

test: ## run all tests that this machine supports, including csi-sanity, Docker and Podman
	@echo 'Installing what is missing: bindfs, strace, acl, attr, docker.io and podman (the first time) …'
	@tests/install rust test docker go
	@echo 'Building, then running the tests of the project (about 13 minutes the first time) …'
	cargo test --no-run
	@start=$$(date +%s) && cargo test && tests/budget 'cargo test: passed' "$$(($$(date +%s) - start))" 1800
	@echo 'Building csi-sanity (about a minute the first time) and running it on two filesystems …'
	tests/sanity/run
	tests/sanity/run btrfs
	@echo 'Running Docker and Podman on volumes of orlop (about 2 minutes) …'
	tests/docker/suite
	@if [[ -n $$CI || $$(uname -m) == x86_64 && -e /etc/debian_version && $$(id -u) == 0 ]]; then $(MAKE) test-vm; \
	else echo 'The tests in a virtual machine are skipped: they need root and Debian on x86-64.'; fi

test-docker: ## run the suite with Docker and Podman only
	@tests/install rust docker
	tests/docker/suite

test-docker-figures: static ## compare times and memory of the static binary with Docker's own driver and with their bars
	@tests/install docker
	ORLOP_BIN=$${CARGO_TARGET_DIR:-target}/$$(uname -m)-unknown-linux-musl/release/orlop tests/docker/suite figures

test-docker-29: ## build the 29 series of Docker and Compose 5 from Go modules, and run the suite with them
	@tests/install rust docker docker-29 go
	@echo 'Building Docker and Compose (6 to 20 minutes the first time), then running them on volumes of orlop …'
	@directory=$$(tests/docker/build-29) && DOCKER_BIN_DIR=$$directory tests/docker/suite

fuzz: ## extract mutated archives for five minutes
	@tests/install rust test
	ORLOP_FUZZ_SECONDS=300 ORLOP_FUZZ_SEED=$$(date +%s) cargo test --test api -- --nocapture a_mutated_archive

# A KUBECONFIG of another cluster is ignored.
test-cluster: export KUBECONFIG =
test-cluster: cluster-up ## run orlop's commands in a Kubernetes cluster on this machine, and stop it
	@tests/install rust
	tests/cluster/scenarios verbs:: || failed=1; tests/cluster/down && exit $${failed-0}

test-long: test test-docker-figures test-docker-29 test-vm-long test-vm-cluster test-cluster fuzz ## run everything, also what takes longer than CI may (about two hours)
	ORLOP_SNAPSHOTS=200 cargo test --test load -- --nocapture load::consistency

lint: ## check formatting, clippy, documentation and shell scripts
	@tests/install rust lint
	cargo fmt --check
	cargo clippy --all-targets --all-features -- -D warnings
	RUSTDOCFLAGS='-D warnings' cargo doc --no-deps --quiet
	tests/shellcheck

deny: ## check licences, sources and versions of the dependencies
	@tests/install rust deny
	PATH="$${ORLOP_TOOLS:-$$HOME/.cache/orlop-tools}/bin:$$PATH" cargo deny check bans licenses sources

sanity: ## run csi-sanity only
	@tests/install rust test go
	@echo 'Building csi-sanity (about a minute the first time) and running it on two filesystems …'
	tests/sanity/run
	tests/sanity/run btrfs

test-vm: ## run the tests that need NFS or project quotas, in a virtual machine
	@tests/install rust test vm go
	tests/vm/build
	tests/vm/suite

test-vm-long: ## storms and kills at every quota call, in a virtual machine (about half an hour)
	@tests/install rust test vm go
	tests/vm/build
	tests/vm/suite long

test-vm-cluster: image ## run Kubernetes clusters in the virtual machine: with a pool on xfs, and with an NFS server
	@tests/install rust test vm
	tests/cluster/install
	tests/cluster/build cluster
	tests/vm/build
	tests/vm/cluster/suite local
	tests/vm/cluster/suite

bench: ## run the benchmarks, compared with the least driver and with bare system calls
	@tests/install rust bench
	cargo build --release --bin orlop
	cargo bench --bench csi

static: ## build static binaries (ARCH='amd64 arm64' for both architectures)
	@tests/install rust static $(filter arm64,$(ARCH))
	deploy/static $(ARCH)

image: static ## build a container image, target/image/orlop.tar, for `ctr images import` and `docker load`
	deploy/image $(addprefix --arch ,$(ARCH))

deb: static ## build Debian packages, target/deb/orlop_VERSION_ARCH.deb
	@mkdir -p target/deb
	@version=$$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -1); for arch in $(ARCH); do \
	machine=$$(sed 's/amd64/x86_64/; s/arm64/aarch64/' <<<"$$arch"); \
	deploy/deb/build "target/$$machine-unknown-linux-musl/release/orlop" "target/deb/orlop_$${version}_$$arch.deb"; done

manifest: ## generate deploy/orlop.yaml, for an installation without Helm
	tests/cluster/build helm
	deploy/manifest

chart: ## test the chart: lint, schemas, invalid values
	@tests/install go chart
	tests/cluster/build chart
	tests/chart/check

cluster-up: image ## start a Kubernetes cluster on this machine and install orlop with Helm
	tests/cluster/install
	tests/cluster/build cluster
	tests/cluster/up
	tests/cluster/orlop

cluster-down: ## stop the cluster and remove everything it left
	tests/cluster/down

# With a KUBECONFIG of another cluster, that cluster is used as it is.
other_cluster := $(filter-out $(or $(ORLOP_CLUSTER),/var/lib/orlop-cluster)/kubeconfig,$(KUBECONFIG))

e2e: $(if $(other_cluster),,cluster-up) ## run orlop's own end-to-end scenarios, on the cluster or on that of KUBECONFIG
	@tests/install rust
	tests/cluster/scenarios

figures: cluster-up ## measure time to a running pod, orlop's share of it, and memory, on the cluster
	tests/cluster/figures

e2e-storage: cluster-up ## run the Kubernetes external storage test suite on the cluster
	tests/cluster/build e2e
	tests/cluster/storage-suite
