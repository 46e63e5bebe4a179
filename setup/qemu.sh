#!/usr/bin/env bash
# SPDX-License-Identifier: GPL-2.0
# QEMU 10 beside the machine's own, for the long tests: on Debian 12 from
# bookworm-backports, unpacked into the cache and never installed.
#   qemu.sh ok | qemu.sh build
#
# $LGUEST_CACHE/qemu-10/run is the program.
set -euo pipefail
. "$(dirname "$0")/env.sh"
. "$(dirname "$0")/lib.sh"

dir=$LGUEST_CACHE/qemu-10
suite=bookworm-backports

ok() { [ -x "$dir/run" ] && stamp_ok "$dir"; }

# What this machine lacks of what QEMU 10 needs, by its own list of what is
# installed; the firmware is taken in any case, for the old one's is older.
fetch() { # DIR
    local mirror keyring=/usr/share/keyrings/debian-archive-keyring.gpg
    [ -r "$keyring" ] || { note "no keyring of Debian's archive here ($keyring)"; return 1; }
    for mirror in $(apt_mirrors); do
        rm -rf "$1/apt"
        mkdir -p "$1/apt"/{sources,lists/partial,cache/archives/partial}
        printf '%s\n' 'Types: deb' "URIs: $mirror" "Suites: bookworm $suite" \
            'Components: main' "Signed-By: $keyring" > "$1/apt/sources/other.sources"
        apt_other "$suite" "$1/apt" apt-get update >"$1/apt/log" 2>&1 ||
            note "the mirror $mirror is not quite in order; going on with what it has"
        apt_other "$suite" "$1/apt" apt-get -o Dir::State::Status=/var/lib/dpkg/status \
            -o Debug::NoLocking=1 install --download-only --reinstall --yes \
            --no-install-recommends qemu-system-x86 qemu-system-common qemu-system-data \
            seabios ipxe-qemu >>"$1/apt/log" 2>&1 && return 0
    done
    tail -n 5 "$1/apt/log" >&2
    return 1
}

build() {
    local new=$dir.new deb
    ok && return
    [ "$(. /etc/os-release; echo "${ID:-}-${VERSION_ID:-}")" = debian-12 ] ||
        die 'QEMU 10 is unpacked beside the old one on Debian 12 only'
    rm -rf "$dir" "$new"
    mkdir -p "$new/tree"
    fetch "$new" || die "QEMU 10 could not be had from $suite"
    for deb in "$new"/apt/cache/archives/*.deb; do
        dpkg-deb --extract "$deb" "$new/tree"
    done
    rm -rf "$new/apt"
    cat > "$new/run" <<'RUN'
#!/bin/sh
tree=${0%/*}/tree
export LD_LIBRARY_PATH="$tree/usr/lib/x86_64-linux-gnu:$tree/lib/x86_64-linux-gnu"
exec "$tree/usr/bin/qemu-system-x86_64" \
    -L "$tree/usr/share/qemu" -L "$tree/usr/share/seabios" -L "$tree/usr/lib/ipxe/qemu" "$@"
RUN
    chmod +x "$new/run"
    "$new/run" --version >/dev/null || die 'QEMU 10 was unpacked but does not start'
    mv "$new" "$dir"
    stamp_write "$dir" run tree/usr/bin/qemu-system-x86_64
    note "$("$dir/run" --version | head -n 1)"
}

case ${1:-} in
    ok) ok ;;
    build) with_lock qemu-10 build ;;
    *) die 'usage: qemu.sh ok|build' ;;
esac
