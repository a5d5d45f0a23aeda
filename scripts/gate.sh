# SPDX-License-Identifier: GPL-3.0-or-later
# Run a check, named $1: one line when it passes, all that it printed when it fails.
set -eu
name=$1
shift

start=$(date +%s)
if output=$("$@" 2>&1); then
    printf '%-18s ok %4d s\n' "$name" $(($(date +%s) - start))
else
    status=$?
    printf '%s\n%-18s FAILED\n' "$output" "$name" >&2
    exit "$status"
fi
