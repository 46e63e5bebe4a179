#!/usr/bin/env bash
# SPDX-License-Identifier: GPL-2.0
# The sources of Rust's own library, of exactly the compiler's version,
# and `rustc-lguest`: rustc that finds them, for -Zbuild-std.
#   rust-src.sh ok | build
#
# The compiler's installation is not touched where that can be helped: the
# wrapper looks at a tree of links, the toolchain's with the sources added.
set -euo pipefail
. "$(dirname "$0")/env.sh"
. "$(dirname "$0")/lib.sh"

real_sysroot=$(rustc --print sysroot)

sources_ok() { [ -s "$LGUEST_RUST_SRC/.listing" ] && listing "$LGUEST_RUST_SRC" | cmp -s - "$LGUEST_RUST_SRC/.listing"; }
ok() {
    sources_ok && [ -f "$RUST_LIB_SRC/core/src/lib.rs" ] && [ -e "$LGUEST_SYSROOT/lib/rustlib/etc" ] &&
        [ "$(readlink "$LGUEST_SYSROOT/bin")" = "$real_sysroot/bin" ] && [ -x "$RUSTC_LGUEST" ] &&
        [ "$("$RUSTC_LGUEST" --print sysroot 2>/dev/null)" = "$LGUEST_SYSROOT" ]
}

from_toolchain() { # what rustup brings, now or before
    local dir=$real_sysroot/lib/rustlib/src/rust
    if [ ! -f "$dir/library/core/src/lib.rs" ] && command -v rustup >/dev/null; then
        note 'asking rustup for the component rust-src'
        timeout 120 rustup component add rust-src >/dev/null 2>&1 || note 'rustup could not get it'
    fi
    [ -f "$dir/library/core/src/lib.rs" ] && cp -a "$dir/library" "$1/library"
}

from_debian() {
    note "looking for Debian's package rust-src $LGUEST_RUSTC_VERSION"
    deb_fetch "rust-src=$LGUEST_RUSTC_VERSION*" "$1" trixie-backports trixie forky sid || return 1
    mkdir "$1/deb"
    dpkg-deb -x "$1"/rust-src_*.deb "$1/deb" && mv "$1/deb/usr/src"/rustc-*/library "$1/library"
    rm -rf "$1/deb" "$1"/rust-src_*.deb
}

fetch() {
    local new=$LGUEST_RUST_SRC.new way
    rm -rf "$LGUEST_RUST_SRC" "$new"
    mkdir -p "$new"
    for way in ${LGUEST_RUST_SRC_FROM:-toolchain debian}; do
        "from_$way" "$new" && break
    done
    [ -f "$new/library/core/src/lib.rs" ] || die "the sources of Rust's library (rust-src) for rustc \
$LGUEST_RUSTC_VERSION could not be had: not from rustup, not from Debian's archive.
        With rustup: rustup component add rust-src"
    listing "$new" > "$new/.listing.new"
    mv "$new/.listing.new" "$new/.listing"
    mv "$new" "$LGUEST_RUST_SRC"
}

link_sysroot() {
    local new=$LGUEST_SYSROOT.new entry
    rm -rf "$new" "$LGUEST_SYSROOT"
    mkdir -p "$new/lib/rustlib/src" "$LGUEST_CACHE/bin"
    ln -s "$real_sysroot/bin" "$new/bin"
    for entry in "$real_sysroot"/lib/*; do
        [ "${entry##*/}" = rustlib ] || ln -s "$entry" "$new/lib/"
    done
    for entry in "$real_sysroot"/lib/rustlib/*; do
        [ "${entry##*/}" = src ] || ln -s "$entry" "$new/lib/rustlib/"
    done
    [ -e "$new/lib/rustlib/etc" ] || mkdir "$new/lib/rustlib/etc"
    ln -s "$LGUEST_RUST_SRC" "$new/lib/rustlib/src/rust"
    mv "$new" "$LGUEST_SYSROOT"
    printf '#!/bin/sh\nexec rustc --sysroot %q "$@"\n' "$LGUEST_SYSROOT" > "$RUSTC_LGUEST.new"
    chmod +x "$RUSTC_LGUEST.new"
    mv "$RUSTC_LGUEST.new" "$RUSTC_LGUEST"
}

build() {
    ok && return
    sources_ok || fetch
    link_sysroot
    ok || die 'the library sources are in place, but rustc does not find them'
}

case ${1:-} in
    ok) ok ;;
    build) with_lock rust-src build ;;
    *) die 'usage: rust-src.sh ok|build' ;;
esac
