# SPDX-License-Identifier: GPL-3.0-or-later
# Run a check, named $1: one line when it passes, all that it printed when it fails. A check that ends with 77 was skipped.
set -eu
name=$1
shift

start=$(date +%s)
status=0
output=$("$@" 2>&1) || status=$?
case $status in
0) printf '%-18s ok %4d s%s\n' "$name" $(($(date +%s) - start)) "$(echo "$output" | sed -n 's/^ansible-core .*/, &/p')" ;;
77) printf '%-18s SKIPPED: %s\n' "$name" "$output" ;;
*)
    printf '%s\n%-18s FAILED\n' "$output" "$name" >&2
    exit "$status"
    ;;
esac
