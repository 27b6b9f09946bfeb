#!/bin/sh
# Run the tests of the C code under AddressSanitizer and UndefinedBehaviorSanitizer, in a copy of the
# package, so that the library in use stays as it is; before that the pool of threads alone, under
# ThreadSanitizer too.
#
#     PYTHON=.venv/bin/python sh tests/native/sanitize.sh [pytest arguments]
set -eu

python=$(command -v "${PYTHON:-python3}")
case $python in /*) ;; *) python=$PWD/$python ;; esac
CC=${CC:-gcc}
export CC
[ $# -gt 0 ] || set -- tests/test_isa.py tests/test_isa_panels.py tests/test_isa_super.py tests/test_kernels.py tests/test_attention_kernels.py \
    tests/test_screen_kernels.py tests/test_super_files.py tests/test_damaged_gguf.py \
    tests/test_formats.py tests/test_tokenizer.py tests/test_session.py tests/test_bandwidth.py

repo=$(cd "$(dirname "$0")/../.." && pwd)
copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
cp -R "$repo/plm_edge" "$repo/exporters" "$repo/runtime" "$repo/devices" "$repo/tests" \
    "$repo/pyproject.toml" "$copy"
cd "$copy"

for kind in thread address,undefined; do
    # shellcheck disable=SC2086 # CC may carry options
    $CC -std=c11 -O1 -g -pthread -fsanitize=$kind -fno-sanitize-recover=all -Iplm_edge/native \
        tests/native/pool_stress.c plm_edge/native/pool.c -o pool_stress
    for threads in 1 2 3 8; do ./pool_stress $threads 3000 $threads; done
done

"$python" plm_edge/native/build.py --sanitize

# Python itself is not sanitized: the runtime has to come first, and what Python leaves allocated at
# its end is not reported. Without its own allocator every Python object is watched as well.
# shellcheck disable=SC2086 # CC may carry options
sanitizer=$($CC -print-file-name=libasan.so)
watched() {
    LD_PRELOAD=$sanitizer ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 \
        PYTHONMALLOC=malloc PYTHONPATH=$copy PYTHONDONTWRITEBYTECODE=1 "$python" "$@"
}

past_the_end='
import sys
sys.path.insert(0, "tests")
import numpy as np
from primitives import Primitives
Primitives("scalar").add_rows("F32", np.zeros(4, np.uint8), [1.0], np.zeros(2, np.float32))
'
if watched -c "$past_the_end" 2> report || ! grep -q heap-buffer-overflow report; then
    echo "expected the sanitizer to report a read past the end, found no report:" >&2
    cat report >&2
    exit 1
fi
watched -m pytest -p no:cacheprovider "$@"
