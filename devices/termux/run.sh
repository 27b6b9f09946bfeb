#!/bin/sh
# Chat with the bundle that this script lies in:  sh run.sh [OPTION OF plm-edge chat...]
set -eu
here=$(cd "$(dirname "$0")" && pwd -P)
# shellcheck source=common.sh source-path=SCRIPTDIR
. "$here/common.sh"
command -v plm-edge >/dev/null || fail 6 "expected plm-edge, found none; run: sh $here/install.sh"

# Awake, or Android slows the phone down as soon as the screen is off.
termux-wake-lock 2>/dev/null || :
code=0
plm-edge chat "$here" "$@" || code=$?
termux-wake-unlock 2>/dev/null || :
if [ $code = 137 ]; then
    say "Android ended it (signal 9): close other apps or take a shorter context (-c 512); if Termux itself went too, switch off 'child process restrictions' in the developer options (Android 12 and newer)"
fi
exit $code
