# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash
#
# Where everything is. Source it (`. setup/env.sh`); `setup/show-env`
# prints the same for reading. It makes nothing and changes nothing.
#
#   LGUEST_CACHE    all that set-up fetches and builds; `make distclean` removes it
#   KDIR            full build tree of the Host's kernel (the user may give his own)
#   BZIMAGE         the kernel image in it
#   RUSTC_LGUEST    rustc with the library's sources beside it, for -Zbuild-std
#   LGUEST_TOOLS    folder with bindgen and mdbook
#   LGUEST_BUSYBOX  static busybox for the Host's user space

LGUEST_ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
LGUEST_CACHE=${LGUEST_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/lguest-rs}
LGUEST_SERIES=$(sed -n '/^[0-9]/{p;q;}' "$LGUEST_ROOT/kernel/series")
LGUEST_TOOLS=$LGUEST_CACHE/tools/bin

# Short names for what an entry of the cache depends on.
lguest_rustc=$({ rustc --version 2>/dev/null || echo 'rustc none'; } | cut -d' ' -f2)
LGUEST_RUSTC_VERSION=${lguest_rustc%%-*}
lguest_key=$({ rustc --version --verbose; "${CC:-gcc}" --version | head -n 1
               cat "$LGUEST_ROOT/kernel/host.config"; } 2>/dev/null |
             sha256sum | cut -c 1-12)

LGUEST_KERNEL=$LGUEST_CACHE/kernel/$LGUEST_SERIES-$lguest_key
KDIR=${KDIR:-$LGUEST_KERNEL}
BZIMAGE=$KDIR/arch/x86/boot/bzImage
LGUEST_RUST_SRC=$LGUEST_CACHE/rust-src/$lguest_rustc
LGUEST_SYSROOT=$LGUEST_CACHE/sysroot/$lguest_rustc
RUST_LIB_SRC=$LGUEST_SYSROOT/lib/rustlib/src/rust/library
RUSTC_LGUEST=$LGUEST_CACHE/bin/rustc-lguest
unset lguest_rustc lguest_key

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
export LGUEST_KERNEL KDIR BZIMAGE LGUEST_RUST_SRC LGUEST_SYSROOT RUST_LIB_SRC
export RUSTC_LGUEST LGUEST_BUSYBOX PATH
