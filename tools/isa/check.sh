#!/usr/bin/env bash
# Compiles the variants of variants.txt for GPUs that need not be there, and compares with the committed tables.
#
#   tools/isa/check.sh [amd | others | ptxas] [--update]
#                           exit 0: as committed, 1: something differs, 3: a compiler is missing or another
#
# amd.txt: RDNA2, RDNA3 and RDNA4 by Mesa's RADV. RADV_MANIFEST: its Vulkan manifest
# (~/.cache/weightnorm/drivers/radv25.json). Mesa 25 or later knows all three chips.
# others.txt: NVIDIA Ampere, Qualcomm A740 and Apple G13 by Mesa's NAK, ir3 and asahi, which start only behind a stand-in
# for the kernel's driver. COMPILERS: the command that starts a program so, `COMMAND CHIP PROGRAM ARGUMENT ..`.
# ptxas.txt: NVIDIA Hopper by NVIDIA's own assembler. PTXAS_FOLDER: where ptxas.sh set it up (~/.cache/weightnorm/ptxas).
# A compiler other than the table's makes other code, which says nothing of a change here.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

ptxas=${PTXAS_FOLDER:-${XDG_CACHE_HOME:-$HOME/.cache}/weightnorm/ptxas}
manifest=${RADV_MANIFEST:-${XDG_CACHE_HOME:-$HOME/.cache}/weightnorm/drivers/radv25.json}
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
status=0

cargo build -q --locked
(cd ../.. && cargo run -q --example shaders -- "$tmp/shaders")

radv() {
    RADV_FORCE_FAMILY=$1 VK_DRIVER_FILES=$manifest VK_ICD_FILENAMES=$manifest XDG_RUNTIME_DIR=$tmp "${@:2}"
}

ptxas() {
    PTXAS=$ptxas "${@:2}"
}

# table FILE "CHIP .." COMMAND..: the rows of a compiler's chips, the chips of each variant below each other, beside FILE
table() {
    local file=$1 chips=$2 chip first; shift 2
    first=${chips%% *}
    for chip in $chips; do
        "$@" "$chip" ./target/debug/isa "$tmp/shaders" variants.txt "$chip" ${ASSEMBLY:+"$ASSEMBLY"} >"$tmp/$chip" 2>"$tmp/log" ||
            { cat "$tmp/log" >&2; exit 2; }
    done
    { head -2 "$tmp/$first"; (cd "$tmp" && paste -d '\n' $chips | tail -n +$((1 + 2 * $(wc -w <<<"$chips")))); } >"$tmp/table"
    if [ "$update" ]; then
        cp "$tmp/table" "$file"
    elif [ "$(head -1 "$file")" != "$(head -1 "$tmp/table")" ]; then
        echo "isa: $file is of $(head -1 "$file"), here is $(head -1 "$tmp/table")"
        status=3
    elif ! diff -u "$file" "$tmp/table"; then
        echo "isa: the code of these variants changed. If that is meant: tools/isa/check.sh --update, and say why it is no worse."
        exit 1
    fi
}

tables="amd others ptxas" update=
for argument in "$@"; do
    case $argument in
    --update) update=yes ;;
    amd | others | ptxas) tables=$argument ;;
    *) sed -n '2,6s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
    esac
done
for name in $tables; do
    if [ "$name" = others ] && [ -z "${COMPILERS-}" ]; then
        echo "isa: no COMPILERS for NVIDIA, Qualcomm and Apple"; status=3
    elif [ "$name" = others ]; then
        table others.txt "ampere adreno apple" $COMPILERS
    elif [ "$name" = ptxas ] && [ ! -e "$ptxas/complete" ]; then
        echo "isa: no ptxas in $ptxas"; status=3
    elif [ "$name" = ptxas ]; then
        table ptxas.txt sm_90 ptxas
    elif [ -e "$manifest" ]; then
        table amd.txt "navi21 navi31 gfx1201" radv
    else
        echo "isa: no RADV at $manifest"; status=3
    fi
done
exit $status
