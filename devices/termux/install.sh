#!/bin/sh
# Put plm-edge into Termux on an Android phone (64-bit; Termux from F-Droid or GitHub, not from the Play Store).
#
#     sh install.sh [FILE]     FILE is plm_edge-*.tar.gz, the source; without it, the one here or beside this folder
#
# Run it again whenever it stopped half-way or there is a new source. It needs the network: Python, numpy and clang come
# through pkg, a few small packages through pip; clang compiles what needs it in some minutes. No root, no cmake.
set -eu
here=$(cd "$(dirname "$0")" && pwd -P)
# shellcheck source=common.sh source-path=SCRIPTDIR
. "$here/common.sh"

if [ -z "${PREFIX:-}" ] || ! command -v pkg >/dev/null; then
    fail 6 "expected Termux, found no pkg or no \$PREFIX; run this in the Termux app"
fi
bin=$PREFIX/bin
case $(uname -m) in
aarch64 | x86_64) ;;
*) fail 6 "expected a 64-bit Android, found $(uname -m); numpy and the kernels need 64 bits to be of use" ;;
esac

missing=
for name in python python-pip python-numpy clang; do
    dpkg -s "$name" 2>/dev/null | grep -q '^Status: install ok installed' || missing="$missing $name"
done
if [ -n "$missing" ]; then
    dpkg --configure -a || fail 4 "dpkg could not finish what was interrupted, see above"
    # shellcheck disable=SC2086 # several names
    pkg install -y $missing ||
        fail 4 "pkg failed, see above; check the network, run: pkg upgrade, then this again"
fi
# numpy has no wheel for Android: the one of pkg is used.
python3 -c 'import numpy' || fail 6 "numpy does not load, see above; run: pkg upgrade, then this again"

# Shared storage is slow to map, and whatever cleans the phone cleans it too.
bundle=$here
case $here in
/sdcard/* | /storage/* | /mnt/*)
    bundle=$HOME/$(basename "$here")
    if ! cmp -s "$here/manifest.json" "$bundle/manifest.json"; then
        [ ! -e "$bundle" ] || fail 4 "expected no other $bundle, found one; move it away, then run this again"
        say "copying the bundle to $bundle"
        rm -rf "$bundle.part"
        cp -r "$here" "$bundle.part"
        mv -T "$bundle.part" "$bundle"
    fi
    ;;
esac

package=${1:-$(only_package 'plm_edge-*.tar.gz')}
CC=${CC:-clang}
export CC
install_package "$package" --system-site-packages
check_bundle "$bundle"
say "chat: sh $bundle/run.sh"
