#!/usr/bin/env bash
# SPDX-License-Identifier: GPL-2.0
# Fetch the crates of both workspaces and of Rust's own library once, so
# that everything after this works without a network.
#   crates.sh ok | build
set -euo pipefail
. "$(dirname "$0")/env.sh"
. "$(dirname "$0")/lib.sh"

library=$RUST_LIB_SRC/Cargo.lock
# One mark for each set of lock files.
mark() {
    local key
    key=$(cat "$LGUEST_ROOT/Cargo.lock" "$LGUEST_ROOT/book/Cargo.lock" \
        "$LGUEST_ROOT/tests/guests/Cargo.lock" "$LGUEST_ROOT/fuzz/Cargo.lock" "$library" 2>/dev/null |
        sha256sum | cut -c 1-16)
    echo "$LGUEST_CACHE/crates/$key"
}

ok() { [ -e "$(mark)" ]; }

build() {
    ok && return
    # A crate of std is fetched like any other; only `core`, `alloc` and
    # `compiler_builtins` are built, but cargo wants to know them all.
    cargo fetch --quiet --locked --manifest-path "$LGUEST_ROOT/Cargo.toml" >&2
    RUSTC_BOOTSTRAP=1 cargo fetch --quiet --locked --manifest-path "$RUST_LIB_SRC/Cargo.toml" >&2
    # The second workspace comes out of the chapters.
    make --silent -C "$LGUEST_ROOT" workspace >&2
    cargo fetch --quiet --locked --manifest-path "$LGUEST_ROOT/workspace/Cargo.toml" >&2
    # The test Guests use crates of it, so they come after it.
    cargo fetch --quiet --locked --manifest-path "$LGUEST_ROOT/tests/guests/Cargo.toml" >&2
    # And so do the fuzz targets.
    cargo fetch --quiet --locked --manifest-path "$LGUEST_ROOT/fuzz/Cargo.toml" >&2
    mkdir -p "$LGUEST_CACHE/crates"
    : > "$(mark)"
}

case ${1:-} in
    ok) ok ;;
    build) with_lock crates build ;;
    *) die 'usage: crates.sh ok|build' ;;
esac
