#!/usr/bin/env bash
# SPDX-License-Identifier: GPL-2.0
# A command written in Rust, built into the cache and not into the user's
# own ~/.cargo/bin.
#   tool.sh bindgen|mdbook|cargo-deny ok | build
set -euo pipefail
. "$(dirname "$0")/env.sh"
. "$(dirname "$0")/lib.sh"

case ${1:-} in
    bindgen) crate=bindgen-cli version='^0.73' ;;
    mdbook)  crate=mdbook      version='^0.5' ;;
    cargo-deny) crate=cargo-deny version='^0.20' ;;
    *) die 'usage: tool.sh bindgen|mdbook|cargo-deny ok|build' ;;
esac
tool=$1
entry=$LGUEST_CACHE/tools/$tool

ok() { stamp_ok "$entry" && [ "$(readlink "$LGUEST_TOOLS/$tool")" = "$entry/bin/$tool" ]; }

build() {
    ok && return
    # Kept between runs, so that an interrupted build goes on.
    mkdir -p "$entry" "$LGUEST_TOOLS"
    rm -f "$entry/.stamp"
    CARGO_TARGET_DIR=$entry/target cargo install --quiet --locked --force --no-track \
        --root "$entry" --version "$version" "$crate" >&2
    "$entry/bin/$tool" --version > "$entry/version"
    rm -rf "$entry/target"
    ln -sfn "$entry/bin/$tool" "$LGUEST_TOOLS/$tool"
    stamp_write "$entry" "bin/$tool" version
}

case ${2:-} in
    ok) ok ;;
    build) with_lock "tool-$tool" build ;;
    *) die 'usage: tool.sh bindgen|mdbook|cargo-deny ok|build' ;;
esac
