# SPDX-License-Identifier: GPL-2.0
# `make help` lists what there is. Two commands do everything from nothing:
# `make run` and `make test`.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

# Where the caches, the kernel and the tools are: setup/env.sh knows.
ENV := . setup/env.sh;
TANGLE = cargo run --quiet --release --package tangle --
TESTS = cargo run --quiet --release --package lguest-tests --bin

# A second Linux shell beside the Guest: make run HOST=1
# The kernel's own prompt instead of the programs: make run MONITOR=1
# Several Guests that share a network: make run GUESTS=2
RUN_FLAGS := $(if $(HOST),--host-shell) $(if $(MONITOR),--monitor) $(if $(GUESTS),--guests $(GUESTS))
# How many there can be, and so which one can be meant.
NUMBERS := 1 2 3 4

.PHONY: help setup setup-long doctor tangle sync fmt watch check workspace lock module analyzer guest initrd launcher programs \
	run attach recording trace check-GUESTS check-N test test-long test-list soak miri fuzz supply gdb bench book pdf serve \
	release clean distclean

help: ## this list
	@echo 'make run [GUESTS=2] [HOST=1] [MONITOR=1] [KDIR=/a/kernel/tree], make test, and:'
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1|\2/p' $(MAKEFILE_LIST) | \
		while IFS='|' read -r name text; do printf '  %-10s  %s\n' "$$name" "$$text"; done

setup: ## fetch and build what is missing (run and test do it too)
	@setup/all

doctor: ## say what is here, what is missing, and what mends it
	@setup/doctor

setup-long: ## the same, and the two kernels of test-long (half an hour more)
	@setup/all long

tangle: ## take the code out of the chapters
	@[ -x target/release/tangle ] || echo 'Building tangle first (about a minute).'
	@$(TANGLE) tangle

sync: ## take what was changed in generated files back into the chapters
	@$(TANGLE) sync

fmt: ## rustfmt, in the chapters
	@$(TANGLE) fmt

watch: ## tangle whenever a chapter is saved
	@$(TANGLE) watch

check: ## is the book in order, and the code its faithful copy
	@$(TANGLE) check

# The crates that come out of the chapters are a workspace of their own;
# its lock file is kept beside the chapters.
workspace: tangle
	@cmp -s book/Cargo.lock workspace/Cargo.lock || cp book/Cargo.lock workspace/Cargo.lock

lock: tangle ## after a change of dependencies: write the lock files anew
	@cargo metadata --quiet --format-version 1 --manifest-path workspace/Cargo.toml >/dev/null
	@cp workspace/Cargo.lock book/Cargo.lock

# MODULE_OUT=target/module-debug: built there, and module/ is left as it is.
# CHECKED=1: a module that compares the Host's state over every trip.
module: workspace ## build lguest.ko against KDIR, errors at the chapter's line
	@$(ENV) BITFLAGS_SRC=$$(setup/crate-path bitflags); WORDS=$$(kernel/module-words "$$KDIR" $(MODULE_OUT)); \
	make -C "$$KDIR" $$WORDS BITFLAGS_SRC="$$BITFLAGS_SRC" modules 2>&1 | $(TANGLE) filter --from module \
		$(if $(MODULE_OUT),--module $(MODULE_OUT)/lguest.ko)

# The Cargo workspaces need no such file.
analyzer: workspace ## let rust-analyzer read the module, too
	@$(ENV) BITFLAGS_SRC=$$(setup/crate-path bitflags) KDIR="$$KDIR" \
		LIBRARY=$$("$$RUSTC_LGUEST" --print sysroot)/lib/rustlib/src/rust/library kernel/rust-project

# A panic names its place in the book's tree, wherever that tree lies.
PLACES = target.x86_64-unknown-none.rustflags=["--remap-path-prefix=$(CURDIR)/="]

guest: workspace ## build the Guest's kernel and its programs
	@[ -d workspace/target/x86_64-unknown-none ] || echo 'Building the Guest (seconds).'
	@$(ENV) RUSTC="$$RUSTC_LGUEST" RUSTC_BOOTSTRAP=1 cargo build --quiet --locked --release \
		--config guest/bare.toml --config '$(PLACES)' \
		--manifest-path workspace/Cargo.toml --package guest --package programs \
		2>&1 | $(TANGLE) filter

initrd: guest ## pack the Guest's programs into target/initrd.cpio
	@[ -x target/release/pack ] || echo 'Building what packs the programs and boots QEMU (half a minute).'
	@$(TESTS) pack

# Static, because the Host in QEMU has no C library to load.
launcher: workspace ## build the Launcher
	@[ -d workspace/target/x86_64-unknown-linux-gnu ] || echo 'Building the Launcher (half a minute).'
	@RUSTFLAGS=-Ctarget-feature=+crt-static cargo build --quiet --locked --release \
		--target x86_64-unknown-linux-gnu --manifest-path workspace/Cargo.toml \
		--package launcher 2>&1 | $(TANGLE) filter

programs: module guest initrd launcher ## all four

# One after the other: what is built needs what set-up brings.
.NOTPARALLEL:

# make ends with 2 whatever went wrong; setup/run has the Guest's own status.
run: check-GUESTS setup programs ## boot the Host in QEMU and show a Guest's console
	@$(ENV) $(TESTS) boot -- run $(RUN_FLAGS)

attach: check-N ## in another terminal: join Guest N=2 of a `make run GUESTS=2`
	@$(ENV) $(TESTS) boot -- attach $(or $(N),2) $(if $(RUN),--run '$(RUN)')

recording: setup programs ## make the picture in the README anew, from a real run
	@$(ENV) $(TESTS) recording

# KEEP=1: the trace stays, and only the page is made of it anew.
trace: setup programs ## record the trip that the book shows step by step
	@$(ENV) $(TESTS) trace $(if $(KEEP),-- --keep)

# $(call one-of,NAME): that variable is one of the numbers, or not set.
one-of = $(if $(if $($(1)),$(filter-out $(NUMBERS),$($(1)))$(word 2,$($(1)))),$(error \
	$(1)=$($(1)): $(1) may be 1, 2, 3 or 4, and is $(2) if you leave it out))

check-GUESTS: ; @$(call one-of,$(@:check-%=%),1)
check-N: ; @$(call one-of,$(@:check-%=%),2)

gdb: setup programs ## stop the Host with gdb where a Guest has come out
	@$(ENV) $(TESTS) boot -- gdb

test: setup programs ## the cheap tests and a sample of the others
	@$(ENV) $(TESTS) suite

test-long: setup-long programs ## all tests, under the debug kernels too
	@$(ENV) $(TESTS) suite -- --long

test-list: setup programs ## the cases in QEMU, N=10 times in a row, on all kinds of Host or KINDS=...
	@$(ENV) $(TESTS) suite -- --repeat $(or $(N),10) $(KINDS)

soak: setup programs ## an hour or MINUTES= of Guests under all that can be done to them
	@$(ENV) $(TESTS) soak -- --minutes $(or $(MINUTES),60) $(if $(SEED),--seed $(SEED)) $(if $(KEEP),--keep)

miri: ## the tests that need no machine, under Miri, if rustup can bring it
	@setup/miri

fuzz: ## what reads strangers' bytes, under libFuzzer: SECONDS=60 for each
	@fuzz/run $(or $(SECONDS),60)

supply: ## licences and origin of all crates, and known holes (needs a network)
	@setup/tool.sh cargo-deny build
	@$(ENV) setup/supply; setup/supply advisories

bench: setup programs ## measure, and write bench/figures.json
	@$(ENV) bench/measure

# book.toml names the command that weaves by its place: target/release.
WEAVE = cargo build --quiet --release --package tangle --target-dir target

# Who publishes it says where a page can be mended, and each page links there:
# make book EDIT_URL='https://example.org/edit/main/{path}'
MDBOOK = $(if $(EDIT_URL),MDBOOK_OUTPUT__HTML__EDIT_URL_TEMPLATE='$(EDIT_URL)') mdbook

book: setup tangle ## render the book into book-out/html
	@$(ENV) $(WEAVE); rm -rf book-out; $(MDBOOK) build

serve: setup tangle ## render the book, serve it, and follow changes
	@$(ENV) $(WEAVE); $(MDBOOK) serve

pdf: book ## print the book into target/lguest-rs.pdf, by the browser that the tests use
	@setup/browser.sh build; setup/pdf book-out/html target/lguest-rs.pdf

release: book ## pack the book, its code and the map between them, always the same bytes
	@setup/release book-out/html target/lguest-rs.tar.gz

clean: ## remove what was built in this checkout
	@cargo clean --quiet; rm -rf workspace/target tests/guests/target book-out
	@$(ENV) [ ! -f module/Kbuild ] || [ ! -d "$$KDIR" ] || \
		make -s -C "$$KDIR" M="$(CURDIR)/module" BITFLAGS_SRC=none clean

distclean: clean ## remove the caches as well
	@setup/remove
