#!/usr/bin/env bash
# Compiles the variants of variants.txt for three generations of AMD GPUs and compares with the committed table.
#
#   tools/isa/check.sh [--update]      exit 0: as committed, 1: something differs, 3: the driver is missing or another
#
# RADV_MANIFEST: the Vulkan manifest of a RADV (~/.cache/weightnorm/drivers/radv25.json). Mesa 25 or later knows all
# three chips; a Mesa other than the table's makes other code, which says nothing of a change here.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

chips="navi21 navi31 gfx1201" # RDNA2, RDNA3, RDNA4
manifest=${RADV_MANIFEST:-${XDG_CACHE_HOME:-$HOME/.cache}/weightnorm/drivers/radv25.json}
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT

[ -e "$manifest" ] || { echo "isa: no RADV at $manifest"; exit 3; }
cargo build -q --locked
(cd ../.. && cargo run -q --example shaders -- "$tmp/shaders")

for chip in $chips; do
    RADV_FORCE_FAMILY=$chip VK_DRIVER_FILES=$manifest VK_ICD_FILENAMES=$manifest XDG_RUNTIME_DIR=$tmp \
        ./target/debug/isa "$tmp/shaders" variants.txt ${ASSEMBLY:+"$ASSEMBLY"} >"$tmp/$chip" 2>"$tmp/log" ||
        { cat "$tmp/log" >&2; exit 2; }
done
# The two lines on top are the same for all; then the chips of each variant below each other.
first=${chips%% *}
{ head -2 "$tmp/$first"; (cd "$tmp" && paste -d '\n' $chips | tail -n +7); } >"$tmp/table.txt"

if [ "${1-}" = --update ]; then
    cp "$tmp/table.txt" table.txt
elif [ "$(head -1 table.txt)" != "$(head -1 "$tmp/table.txt")" ]; then
    echo "isa: the table is of $(head -1 table.txt), here is $(head -1 "$tmp/table.txt")"
    exit 3
elif ! diff -u table.txt "$tmp/table.txt"; then
    echo "isa: the code of these variants changed. If that is meant: tools/isa/check.sh --update, and say why it is no worse."
    exit 1
fi
