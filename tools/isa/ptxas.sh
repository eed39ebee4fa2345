#!/usr/bin/env bash
# NVIDIA's assembler and a compiler in front of it, without a GPU and without installing anything: ptxas.sh DIR
#
# Some 600 MB, once: clang 19 of Debian, unpacked, ptxas and nvdisasm from PyPI. PTXAS=DIR makes `isa` use them.
set -euo pipefail
dir=$(mkdir -p "${1:?usage: ptxas.sh DIR}" && cd "$1" && pwd)
[ ! -e "$dir/complete" ] || exit 0
debs=$(mktemp -d)
trap 'rm -rf "$debs"' EXIT
cd "$debs"
apt-get -q download clang-19 libclang-common-19-dev libclang-cpp19 libllvm19 llvm-19
for deb in *.deb; do dpkg-deb -x "$deb" "$dir/clang"; done
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -q nvidia-cuda-nvcc==13.5.* nvidia-cuda-nvdisasm==13.5.*
touch "$dir/complete"
