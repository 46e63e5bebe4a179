# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash
#
# Where everything is. Source it (`. setup/env.sh`); `setup/show-env`
# prints the same for reading. It makes nothing and changes nothing.
#
#   LGUEST_CACHE    all that set-up fetches and builds; `make distclean` removes it
#   KDIR            full build tree of the Host's kernel (the user may give his own)
#   BZIMAGE         the kernel image in it
#   LGUEST_KERNEL_DEBUG, LGUEST_KERNEL_KASAN   trees for the long tests, with every net spread
#   RUSTC_LGUEST    rustc with the library's sources beside it, for -Zbuild-std
#   LGUEST_TOOLS    folder with bindgen, mdbook and, for the long tests, cargo-deny
#   LGUEST_BUSYBOX  static busybox for the Host's user space

LGUEST_ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
LGUEST_CACHE=${LGUEST_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/lguest-rs}
LGUEST_SERIES=$(sed -n '/^[0-9]/{p;q;}' "$LGUEST_ROOT/kernel/series")
LGUEST_TOOLS=$LGUEST_CACHE/tools/bin

# Short names for what an entry of the cache depends on.
lguest_rustc=$({ rustc --version 2>/dev/null || echo 'rustc none'; } | cut -d' ' -f2)
LGUEST_RUSTC_VERSION=${lguest_rustc%%-*}
# COMPILER [VARIANT]: what the Host's kernel or a variant of it depends on.
lguest_key() {
    { rustc --version --verbose; "$1" --version | head -n 1
      cat "$LGUEST_ROOT/kernel/host.config"
      [ -z "${2:-}" ] || grep -E '^(# )?CONFIG_' "$LGUEST_ROOT/kernel/$2.config"
    } 2>/dev/null | sha256sum | cut -c 1-12
}

# The clang that the KASAN kernel is built by; its parts must be of one version.
LGUEST_LLVM=${LGUEST_LLVM:-19}
LGUEST_KERNEL=$LGUEST_CACHE/kernel/$LGUEST_SERIES-$(lguest_key "${CC:-gcc}")
LGUEST_KERNEL_DEBUG=$LGUEST_CACHE/kernel/$LGUEST_SERIES-debug-$(lguest_key "${CC:-gcc}" debug)
LGUEST_KERNEL_KASAN=$LGUEST_CACHE/kernel/$LGUEST_SERIES-kasan-$(
    lguest_key "clang-$LGUEST_LLVM" kasan)
KDIR=${KDIR:-$LGUEST_KERNEL}
# Others are told of it who stand elsewhere.
case $KDIR in /*) ;; *) KDIR=$PWD/$KDIR ;; esac
BZIMAGE=$KDIR/arch/x86/boot/bzImage
LGUEST_RUST_SRC=$LGUEST_CACHE/rust-src/$lguest_rustc
LGUEST_SYSROOT=$LGUEST_CACHE/sysroot/$lguest_rustc
RUST_LIB_SRC=$LGUEST_SYSROOT/lib/rustlib/src/rust/library
RUSTC_LGUEST=$LGUEST_CACHE/bin/rustc-lguest
unset lguest_rustc
unset -f lguest_key

# The newest libclang from 17 up that is installed; bindgen would take any.
if [ -z "${LIBCLANG_PATH:-}" ]; then
    for lguest_dir in /usr/lib/llvm-{17..40}/lib; do
        [ -e "$lguest_dir/libclang.so" ] || [ -e "$lguest_dir/libclang.so.1" ] ||
            compgen -G "$lguest_dir/libclang-*.so*" >/dev/null || continue
        LIBCLANG_PATH=$lguest_dir
    done
    unset lguest_dir
fi
[ -z "${LIBCLANG_PATH:-}" ] || export LIBCLANG_PATH

LGUEST_BUSYBOX=${LGUEST_BUSYBOX:-$(command -v busybox || true)}
case :$PATH: in *:"$LGUEST_TOOLS":*) ;; *) PATH=$LGUEST_TOOLS:$PATH ;; esac

export LGUEST_ROOT LGUEST_CACHE LGUEST_SERIES LGUEST_TOOLS LGUEST_RUSTC_VERSION
export LGUEST_LLVM LGUEST_KERNEL_DEBUG LGUEST_KERNEL_KASAN
export LGUEST_KERNEL KDIR BZIMAGE LGUEST_RUST_SRC LGUEST_SYSROOT RUST_LIB_SRC
export RUSTC_LGUEST LGUEST_BUSYBOX PATH
