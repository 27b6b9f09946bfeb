#!/bin/sh
# Chat with the bundle that this script lies in:  sh run.sh [OPTION OF plm-edge chat...]
set -eu
here=$(cd "$(dirname "$0")" && pwd -P)
# shellcheck source=common.sh source-path=SCRIPTDIR
. "$here/common.sh"
program=$HOME/.local/bin/plm-edge
[ -x "$program" ] || fail 6 "expected $program, found none; run: sh $here/install.sh"

# Bits 0 to 3 of the firmware: too little voltage, capped, throttled, too warm, now.
throttled=$(vcgencmd get_throttled 2>/dev/null) || throttled=
case $throttled in
throttled=*[1-9a-f]) say "slowed down now ($throttled): use the official power supply and a fan; vcgencmd measure_temp" ;;
esac
exec "$program" chat "$here" "$@"
