# shellcheck shell=sh
# shellcheck disable=SC2154 # here and bin are set by whoever sources this
# What the install and run scripts share; they set $here, their own folder, and source it from there.
#
# The program lives in a Python environment of its own under $base, named after the package and the
# Python it was made of; $bin/plm-edge, set by the installer, points into it. An environment is pointed to only once it is
# complete, so an interrupted run leaves the earlier program working, and the next one starts anew
# what was not finished.

base=${XDG_DATA_HOME:-$HOME/.local/share}/plm-edge

say() { printf '%s\n' "$*" >&2; }

# fail CODE MESSAGE: one line, expected, found, what to do; the exit codes are those of plm-edge.
fail() {
    code=$1
    shift
    say "plm-edge: $*"
    exit "$code"
}

# Print the one file of a name pattern: in the current folder, here or beside here.
only_package() {
    # shellcheck disable=SC2086 # the pattern is meant to match
    found=$(find . "$here" "$here/.." -maxdepth 1 -name "$1" -exec readlink -f {} + | sort -u)
    case $found in
    "") fail 4 "expected $1 here or beside $here, found none; \`make wheels\` in plm-edge's source builds it" ;;
    *"
"*) fail 2 "expected one $1, found several; name one: sh $0 FILE" ;;
    esac
    printf '%s\n' "$found"
}

# install_package FILE [OPTION OF venv...]: make the environment of FILE, named by $venv, and point
# $bin/plm-edge into it.
install_package() {
    package=$1
    shift
    python=$(python3 -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    [ -r "$package" ] || fail 4 "expected the file $package, found none that can be read; copy it again"
    hash=$(sha256sum <"$package" | cut -c 1-12)
    venv=$base/venv-$python-$hash
    if [ -e "$venv/complete" ]; then
        say "$(basename "$package") is installed already"
    else
        rm -rf "$venv"
        mkdir -p "$base"
        python3 -m venv "$@" "$venv" || fail 4 "no Python environment in $venv; is the disk full? (df -h)"
        "$venv/bin/python" -m pip install --disable-pip-version-check --no-cache-dir "$package" >&2 ||
            fail 4 "pip failed, see above; check network and disk, then run this again"
        "$venv/bin/plm-edge" chat demo -p Hello -n 1 >&2 || fail 6 "the program does not run here, see above"
        sync # or a power cut could leave the mark and empty files
        : >"$venv/complete"
    fi
    point "$bin/plm-edge" "$venv/bin/plm-edge"
    for old in "$base"/venv-*; do
        [ "$old" = "$venv" ] || rm -rf "$old"
    done
}

# point LINK TARGET: make or replace a link in one step.
point() {
    mkdir -p "$(dirname "$1")"
    ln -sfn "$2" "$1.new"
    mv -fT "$1.new" "$1"
}

# check_bundle FOLDER: nothing was lost on the way, where FOLDER is a bundle.
check_bundle() {
    [ ! -e "$1/manifest.json" ] || "$bin/plm-edge" verify "$1" >&2 ||
        fail 3 "$1 is not what was exported, see above; copy it again"
}
