#!/bin/sh
# Put plm-edge on a Raspberry Pi (64-bit Raspberry Pi OS 12 or newer, or another Debian) for this user.
#
#     sh install.sh [FILE]     FILE is the wheel plm_edge-*_aarch64.whl; without it, the one here or beside this folder
#     sh install.sh --service  installs the same, and answers questions on a socket from every boot on
#
# Run it again whenever it stopped half-way or there is a new wheel. It needs the network: numpy and a few small
# packages come through pip, ready for this processor; nothing is compiled. Only a missing python3-venv, and a service
# that outlives the login, ask for sudo.
set -eu
here=$(cd "$(dirname "$0")" && pwd -P)
# shellcheck source=common.sh source-path=SCRIPTDIR
. "$here/common.sh"
bin=$HOME/.local/bin
service=no
[ "${1:-}" != --service ] || { service=yes && shift; }

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi
}

# A 64-bit kernel under a 32-bit system is the usual trap: pip would find no wheels and compile for hours.
[ "$(uname -m) $(getconf LONG_BIT)" = "aarch64 64" ] ||
    fail 6 "expected a 64-bit ARM system, found $(uname -m) with programs of $(getconf LONG_BIT) bits; write the 64-bit Raspberry Pi OS to the card"

python3 -c 'import venv, ensurepip' 2>/dev/null || {
    say "installing python3-venv"
    as_root apt-get update || say "apt-get update failed; trying with the lists that are there"
    as_root apt-get install -y python3-venv ||
        fail 4 "apt-get failed, see above; after a power cut first: sudo dpkg --configure -a"
}
python3 -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
    fail 6 "expected Python 3.10 or newer, found $(python3 --version); it comes with Raspberry Pi OS 12 (bookworm)"

package=${1:-$(only_package 'plm_edge-*_aarch64.whl')}
install_package "$package"
check_bundle "$here"

if [ $service = yes ]; then
    [ -e "$here/manifest.json" ] ||
        fail 2 "expected manifest.json beside this script, found none; use the install.sh in a bundle"
    units=$("$venv/bin/python" -c 'from plm_edge import devices; print(devices.__path__[0])')/raspberry_pi
    own=${XDG_CONFIG_HOME:-$HOME/.config}/systemd/user
    mkdir -p "$own"
    cp "$units/plm-edge.socket" "$units/plm-edge@.service" "$own/"
    point "$base/bundle" "$here"
    as_root loginctl enable-linger "$(id -un)"
    systemctl --user daemon-reload
    systemctl --user enable --now plm-edge.socket
    say "ask: echo 'Tell me a tale' | nc -N -U /run/user/$(id -u)/plm-edge.sock"
fi
say "chat: sh $here/run.sh"
