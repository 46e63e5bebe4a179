# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash
# What the set-up scripts share: messages, locks, stamps, downloads.

say()  { printf '%s\n' "$*" >&2; }
note() { printf '    %s\n' "$*" >&2; }
die()  { printf 'set-up: %s\n' "$*" >&2; exit 1; }

# stamp_write DIR FILE...: mark the entry complete. The stamp holds the
# hashes of the files that matter and appears last, in one rename.
stamp_write() {
    local dir=$1; shift
    (cd "$dir" && sha256sum -- "$@") > "$dir/.stamp.new"
    mv -f "$dir/.stamp.new" "$dir/.stamp"
}

# stamp_ok DIR: is the entry there, complete and undamaged?
stamp_ok() {
    [ -s "$1/.stamp" ] && (cd "$1" && sha256sum --check --status --strict .stamp) 2>/dev/null
}

# listing DIR: a file list with sizes, for trees of thousands of small
# files: cheaper than reading them, and a missing or cut-off one shows.
listing() { (cd "$1" && find . -type f ! -name '.stamp*' ! -name '.listing*' -printf '%s %P\n' | LC_ALL=C sort); }

# with_lock NAME COMMAND...: run it while no other run works on NAME.
with_lock() {
    local name=$1 fd; shift
    mkdir -p "$LGUEST_CACHE/lock"
    exec {fd}> "$LGUEST_CACHE/lock/$name"
    if ! flock --nonblock "$fd"; then
        note "another run is at work on '$name'; waiting for it"
        flock "$fd"
    fi
    "$@"
    exec {fd}>&-
}

# Three tries, because mirrors have bad moments.
download() { # URL FILE
    curl --fail --location --silent --show-error --retry 3 --output "$2.part" "$1" && mv -f "$2.part" "$2"
}

# apt_other SUITE DIR COMMAND...: run apt-get or apt-cache for another
# suite of the mirror that this machine already uses, with a state of its
# own in DIR: the system's apt is neither asked nor changed. Nothing is
# installed this way, packages are only downloaded and unpacked.
apt_other() {
    local suite=$1 dir=$2 tool=$3; shift 3
    "$tool" -o Dir::Etc::SourceList=/dev/null -o Dir::Etc::SourceParts="$dir/sources" \
        -o Dir::State::Lists="$dir/lists" -o Dir::Cache="$dir/cache" \
        -o Dir::State::Status=/dev/null -o Dir::Etc::Preferences=/dev/null \
        -o Dir::Etc::PreferencesParts=/dev/null -o APT::Architecture=amd64 \
        -o APT::Architectures=amd64 -o APT::Sandbox::User="$(id -un)" \
        -o APT::Default-Release="$suite" -qq "$@"
}

# The mirrors in the machine's own apt sources, Debian's main one first.
apt_mirrors() {
    command -v apt-get >/dev/null || return 0
    # shellcheck disable=SC2016  # the format is for apt-get
    apt-get indextargets --format '$(ORIGIN)/$(LABEL) $(REPO_URI)' 'Created-By: Packages' 2>/dev/null |
        LC_ALL=C sort -u | awk '$1 == "Debian/Debian" { print $2; next } { rest = rest $2 "\n" }
                                END { printf "%s", rest }' | awk '!seen[$0]++'
}

# deb_fetch PACKAGE[=VERSION] DIR SUITE...: put PACKAGE's .deb into DIR
# from the first mirror and suite that have it.
deb_fetch() {
    local package=$1 dir=$2 mirror suite try keyring; shift 2
    command -v dpkg-deb >/dev/null && command -v apt-get >/dev/null || return 1
    keyring=/usr/share/keyrings/debian-archive-keyring.gpg
    [ -r "$keyring" ] || { note "no keyring of Debian's archive here ($keyring)"; return 1; }
    for mirror in $(apt_mirrors); do
        for suite in "$@"; do
            rm -rf "$dir/apt"
            mkdir -p "$dir/apt"/{sources,lists/partial,cache/archives/partial}
            printf '%s\n' 'Types: deb' "URIs: $mirror" "Suites: $suite" 'Components: main' \
                "Signed-By: $keyring" > "$dir/apt/sources/other.sources"
            # While a mirror syncs, `update` may exit 100 although the lists
            # it has are good: what counts is whether the package resolves.
            for try in 1 2 3; do
                apt_other "$suite" "$dir/apt" apt-get update >"$dir/apt/log" 2>&1 && break
                grep -qE '404 |does not have a Release' "$dir/apt/log" && break
                sleep "$try"
            done
            (cd "$dir" && apt_other "$suite" "$dir/apt" apt-get download "$package") \
                >>"$dir/apt/log" 2>&1 && { rm -rf "$dir/apt"; return 0; }
        done
    done
    rm -rf "$dir/apt"
    return 1
}
