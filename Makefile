# rt: build, demo, test, install. `make help` lists the targets.
#
# What is missing on the machine is installed by the targets that need it, with apt, as root or
# through sudo.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

DIST     := target/dist
PREFIX   ?= /usr/local
DESTDIR  ?=
SHARE     = "$(DESTDIR)$(PREFIX)"/share
# The commit that `rt --version` shows.
export RT_COMMIT ?= $(shell git rev-parse --short=12 HEAD 2>/dev/null)

# How rt is built (packaging/build-rt): LIBC=gnu for glibc, RELOCATION=pie for a
# position-independent executable.
export LIBC RELOCATION

.PHONY: help
help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 16

.PHONY: demo
demo: build guests ## build all, then run a Wasm HTTP service and a Linux process in containers
	packaging/demo $(DIST)

.PHONY: deps
deps: ## install the Debian packages that building, testing and measuring require
	@packaging/dependencies all

.PHONY: build
build: engines rt top ## a runnable tree in target/dist: bin/rt, its engines, and rt-top

.PHONY: rt
rt: build-deps ## bin/rt alone, for Linux containers
	@echo "== building rt"
	packaging/build-rt $(DIST)/bin/rt

# A file, because each directory there is an engine.
.PHONY: top
top: build-deps ## rt-top alone, the program of `rt top`
	@echo "== building rt-top"
	packaging/build-rt $(DIST)/libexec/rt/rt-top rt-top

# Looks for WasmEdge first: if there is none, the message says so before the long builds.
# WASMEDGE_ROOT= names another one.
.PHONY: engines
engines: build-deps
	@echo "== finding WasmEdge"
	@packaging/wasmedge/source target/wasmedge
	@echo "== building the engine wasmtime"
	packaging/wasmtime/build $(DIST)/libexec/rt/wasmtime
	@echo "== building the engine wasmedge"
	packaging/wasmedge/build $(DIST)/libexec/rt/wasmedge

.PHONY: guests
guests: build-deps
	@echo "== building the Wasm guests"
	runtime-tests/guests/build target/guests

.PHONY: test
test: build guests test-deps ## everything that must hold before a change is merged
	rm -f target/lint-skipped
	packaging/lint target/lint-skipped || echo "error: the lints failed; the tests follow" >&2
	rm -rf target/packages
	$(MAKE) --no-print-directory deb rpm tarball
	packaging/test $(DIST) target/lint-skipped

.PHONY: lint
lint: build-deps test-deps ## formatting, lints, documentation, scripts, spelling, dependencies
	packaging/lint

.PHONY: tools
tools: ## install typos and cargo-deny, which `make lint` uses if they are there (some minutes)
	cargo install --locked typos-cli cargo-deny

# The oldest Rust that each part says it builds with (`rust-version`). The engine programs are not
# among them: rt-wasmtime requires the Rust of rust-toolchain.toml, and rt-wasmedge names no
# version.
.PHONY: msrv
msrv: ## build rt and the tests with the oldest Rust that they are for
	for package in rt rt-engine rt-spin rt-top runtime-tests; do \
	  version=$$(cargo metadata --locked --no-deps --format-version 1 | \
	    jq -r --arg name $$package '.packages[] | select(.name == $$name).rust_version'); \
	  rustup toolchain install --profile minimal $$version; \
	  cargo +$$version check --locked -p $$package --all-targets --target-dir target/msrv; \
	done

# As root: a root filesystem has files of root's.
.PHONY: test-vm
test-vm: build guests vm-deps ## the black-box tests in an emulated machine with systemd and cgroup v2
	cargo build --locked -p runtime-tests
	rm -rf target/packages
	$(MAKE) --no-print-directory deb
	runtime-tests/vm/run $(DIST)

# The version before: the commit of the last release.
BEFORE ?= $(shell cat runtime-tests/formats/before)
.PHONY: test-upgrade
test-upgrade: build guests test-deps ## containers that an older rt has made, and the other way round (BEFORE=commit)
	rm -rf target/before
	git worktree prune
	git worktree add --detach target/before $(BEFORE)
	cd target/before && packaging/build-rt target/dist/bin/rt
	install -D target/before/target/dist/bin/rt target/upgrade/bin/rt
	git worktree remove --force target/before
	cargo build --locked -p runtime-tests
	RT_BEFORE=$(CURDIR)/target/upgrade/bin/rt target/debug/runtime-tests --lanes hybrid,v1,v2 upgrade::

# Compiles Kubernetes the first time, which takes a quarter of an hour with two processors.
.PHONY: test-kubernetes
test-kubernetes: build guests test-deps vm-deps ## the manifests on a node with a real kubelet
	cargo build --locked -p runtime-tests
	rm -rf target/packages
	$(MAKE) --no-print-directory deb
	runtime-tests/kubernetes/build target/kubernetes/bin
	runtime-tests/kubernetes/run $(DIST) target/kubernetes/bin

.PHONY: soak
soak: rt test-deps ## an hour with 1,000 containers and the calls of a kubelet (RT_SOAK_SECONDS, CRUN)
	cargo build --locked --release -p runtime-tests
	runtime-tests/lane v2 env RT_TESTS_LANE=v2 OCI_RUNTIME=$(CURDIR)/$(DIST)/bin/rt target/release/runtime-tests bench target/bench soak

.PHONY: bench
bench: build guests test-deps vm-deps bench-deps ## measure rt beside crun, runc and the floor, and modules beside WasmEdge
	runtime-tests/bench/run $(DIST)/bin/rt

.PHONY: install
install: ## copy target/dist to $(DESTDIR)$(PREFIX), with manual pages, completions, and configurations in share/rt
	@[ -x $(DIST)/bin/rt ] || { echo "nothing to install: run \`make build\` first" >&2; exit 1; }
	install -d $(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(PREFIX)/libexec/rt
	install $(DIST)/bin/rt $(DESTDIR)$(PREFIX)/bin/rt
	ln -sf rt $(DESTDIR)$(PREFIX)/bin/rt-wasm
	ln -sf rt $(DESTDIR)$(PREFIX)/bin/rt-spin
	cd packaging/callers && for file in */*; do \
	  install -d "$(DESTDIR)$(PREFIX)/share/rt/$${file%/*}"; \
	  sed 's|@PREFIX@|$(PREFIX)|g' "$$file" >"$(DESTDIR)$(PREFIX)/share/rt/$$file"; \
	  [ ! -x "$$file" ] || chmod 755 "$(DESTDIR)$(PREFIX)/share/rt/$$file"; \
	done
	install -d $(SHARE)/{man/man1,man/man7,bash-completion/completions,zsh/site-functions,fish/vendor_completions.d}
	install -m 644 packaging/man/rt.1 $(SHARE)/man/man1/rt.1
	packaging/man/annotations docs/annotations.md >$(SHARE)/man/man7/rt-annotations.7
	$(DIST)/bin/rt completion bash >$(SHARE)/bash-completion/completions/rt
	$(DIST)/bin/rt completion zsh >$(SHARE)/zsh/site-functions/_rt
	$(DIST)/bin/rt completion fish >$(SHARE)/fish/vendor_completions.d/rt.fish
	# Those two shells look for a file by the command's name.
	ln -sf rt $(SHARE)/bash-completion/completions/rt-wasm
	ln -sf rt.fish $(SHARE)/fish/vendor_completions.d/rt-wasm.fish
	if [ -d $(DIST)/libexec/rt ]; then cp -a --no-preserve=ownership $(DIST)/libexec/rt/. $(DESTDIR)$(PREFIX)/libexec/rt/; fi

.PHONY: deb rpm tarball
deb rpm tarball: ## a package of target/dist, in target/packages
	@[ -x $(DIST)/bin/rt ] || { echo "nothing to package: run \`make build\` first" >&2; exit 1; }
	@[ $@ != rpm ] || command -v rpmbuild >/dev/null || packaging/dependencies rpm
	packaging/package $@ $(DIST) target/packages

.PHONY: lint-packages
lint-packages: deb rpm ## what lintian and rpmlint find in the packages, beyond what packaging/ says is meant
	packaging/lint-packages target/packages

.PHONY: clean
clean: ## remove everything that was built
	rm -rf target

.PHONY: build-deps test-deps vm-deps bench-deps
build-deps:
	@packaging/dependencies build
test-deps:
	@packaging/dependencies test
vm-deps:
	@packaging/dependencies vm
bench-deps:
	@packaging/dependencies bench
