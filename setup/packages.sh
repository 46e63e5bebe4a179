#!/usr/bin/env bash
# SPDX-License-Identifier: GPL-2.0
# The programs and headers of the distribution that the build needs.
#   packages.sh missing [long]   print the names of packages for what is not there
#   packages.sh install [long]   install them
#   packages.sh list             all of them: name, `ok` or `missing`, versions
#   packages.sh mend NAME...     print the command that installs them
# With `long`, those that only the long tests need as well.
set -euo pipefail
. "$(dirname "$0")/env.sh"
. "$(dirname "$0")/lib.sh"
case ${1:-} in install|missing) long=${2:-} ;; *) long= ;; esac

has_header() { printf '#include <%s>\n' "$1" | gcc -E -x c -o /dev/null - 2>/dev/null; }
has_libclang() { [ -n "${LIBCLANG_PATH:-}" ]; }
has_busybox() {
    [ -x "$LGUEST_BUSYBOX" ] && [[ $(LC_ALL=C readelf -l "$LGUEST_BUSYBOX") != *INTERP* ]]
}

# Debian's name, then the test that finds the thing itself: a program
# that came another way is as good as the package.
missing() {
    local package test
    while read -r package test; do
        eval "$test" >/dev/null 2>&1 || printf '%s\n' "$package"
    done < <(table)
}

table() {
    cat <<'TABLE'
build-essential   command -v gcc && command -v make && command -v ld && has_header stdlib.h
flex              command -v flex
bison             command -v bison
bc                command -v bc
cpio              command -v cpio
kmod              command -v depmod || [ -x /sbin/depmod ]
lz4               command -v lz4
xz-utils          command -v xz
libelf-dev        has_header gelf.h
libssl-dev        has_header openssl/ssl.h
libclang-dev      has_libclang
qemu-system-x86   command -v qemu-system-x86_64
busybox-static    has_busybox
gdb               command -v gdb
curl              command -v curl
ca-certificates   [ -e /etc/ssl/certs/ca-certificates.crt ] || [ -d /etc/pki ]
TABLE
    # The KASAN kernel: all of LLVM of one version, and bindgen with its libclang.
    [ -z "$long" ] || cat <<TABLE
clang-$LGUEST_LLVM         command -v clang-$LGUEST_LLVM
lld-$LGUEST_LLVM           command -v ld.lld-$LGUEST_LLVM
llvm-$LGUEST_LLVM          command -v llvm-nm-$LGUEST_LLVM && command -v llvm-objcopy-$LGUEST_LLVM
libclang-$LGUEST_LLVM-dev  compgen -G "/usr/lib/llvm-$LGUEST_LLVM/lib/libclang[.-]*so*"
TABLE
}

# What is there, in a few words, for those packages of which it can be said.
versions() {
    local words=() word line
    case $1 in
        build-essential) words=(gcc make ld) ;;
        xz-utils) words=(xz) ;;
        qemu-system-x86) words=(qemu-system-x86_64) ;;
        libclang-dev) echo "$LIBCLANG_PATH"; return ;;
        busybox-static) word=$("$LGUEST_BUSYBOX" 2>&1 | head -n 1); echo "${word% (*}"; return ;;
        flex|bison|bc|cpio|lz4|gdb|curl) words=("$1") ;;
    esac
    # A program that does not tell its version is no error: the list is about what is there, and
    # with pipefail its status, or that of a grep without a match, would end the list.
    for word in "${words[@]}"; do
        line=$({ PATH=$PATH:/sbin "$word" --version || true; } 2>/dev/null |
            LC_ALL=C grep -m 1 -E '[0-9]+\.[0-9]' | LC_ALL=C grep -oE '[0-9]+(\.[0-9]+)+' | head -n 1 || true)
        printf '%s %s\n' "$word" "$line"
    done | paste -sd, | sed 's/,/, /g'
}

list() {
    local package test
    while read -r package test; do
        if eval "$test" >/dev/null 2>&1; then
            printf '%s\tok\t%s\n' "$package" "$(versions "$package")"
        else
            printf '%s\tmissing\t\n' "$package"
        fi
    done < <(table)
}

# The command that brings packages, as the user who asks would give it.
mend() {
    local command="apt-get install --no-install-recommends $*"
    if ! command -v apt-get >/dev/null; then
        echo "install what Debian calls $*, with your distribution's package command"
        return
    fi
    case " $* " in *' libclang-dev '*) command=${command/libclang-dev/$(pick_libclang)} ;; esac
    [ "$(id -u)" -eq 0 ] || command="sudo $command"
    echo "$command"
}

# The plain libclang-dev of Debian 12 is LLVM 14, too old for the kernel's
# bindings: take a numbered one, 19 first, which is the one tried most.
pick_libclang() {
    local n
    for n in 19 20 21 22 18 17; do
        [[ $(LC_ALL=C apt-cache policy "libclang-$n-dev" 2>/dev/null) == *'Candidate: '[!\(]* ]] || continue
        echo "libclang-$n-dev"
        return
    done
    echo libclang-dev
}

update_lists() {
    local try
    for try in 1 2 3; do
        "$@" apt-get update -qq && return 0
        sleep "$try"
    done
    note 'apt-get update did not end well; going on with the lists there are'
}

install() {
    local packages sudo=() i answer log=$LGUEST_CACHE/log/packages.log
    mapfile -t packages < <(missing)
    [ ${#packages[@]} -gt 0 ] || return 0
    if ! command -v apt-get >/dev/null || ! command -v dpkg >/dev/null; then
        die "this is not Debian or Ubuntu, so nothing is installed for you. Please install what
        Debian calls: ${packages[*]}
        and start again. (libclang from LLVM 17 or newer; busybox linked statically.)"
    fi
    if [ "$(id -u)" -ne 0 ]; then
        if ! command -v sudo >/dev/null || ! [ -t 0 ] || ! [ -t 2 ]; then
            die "packages are missing. As root, run
        apt-get update; $(mend "${packages[@]}" | sed 's/^sudo //')
        and start again."
        fi
        note "missing packages: ${packages[*]}"
        read -r -p '    Install them with sudo apt-get? [Y/n] ' answer
        case $answer in ''|y|Y|yes) sudo=(sudo) ;; *) die 'nothing was installed' ;; esac
    fi
    update_lists "${sudo[@]}"
    for i in "${!packages[@]}"; do
        [ "${packages[i]}" != libclang-dev ] || packages[i]=$(pick_libclang)
    done
    # Where an old version of something would be in the way, bring it up to
    # date together with the rest: nothing is ever removed.
    mapfile -t -O ${#packages[@]} packages < <(apt-get install --simulate --no-install-recommends \
        "${packages[@]}" 2>/dev/null | sed -n 's/^Remv \([^ ]*\).*/\1/p')
    note "installing: ${packages[*]}"
    mkdir -p "${log%/*}"
    if ! "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-remove \
        --no-install-recommends "${packages[@]}" > "$log" 2>&1; then
        tail -n 20 "$log" >&2
        die "apt-get could not install them; all it said is in $log"
    fi
    . "$LGUEST_ROOT/setup/env.sh"
    mapfile -t packages < <(missing)
    [ ${#packages[@]} -eq 0 ] || die "installed, but still not found: ${packages[*]}"
}

case ${1:-} in
    missing|install|list) "$1" ;;
    mend) shift; mend "$@" ;;
    *) die 'usage: packages.sh missing|install [long], list, mend NAME...' ;;
esac
