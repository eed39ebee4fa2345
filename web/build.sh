#!/usr/bin/env bash
# Builds the page into web/dist: bash web/build.sh
# It wants the target wasm32-unknown-unknown (rustup target add) and wasm-bindgen of the version in Cargo.lock (README.md).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

version=$(grep -A1 '^name = "wasm-bindgen"$' Cargo.lock | sed -n 's/^version = "\(.*\)"$/\1/p')
bindgen=${WASM_BINDGEN:-wasm-bindgen}
have=$("$bindgen" --version 2>/dev/null || true)
if [ "$have" != "wasm-bindgen $version" ]; then
    echo "web/build.sh: $bindgen ${have:+is $have, }is wanted in version $version:" >&2
    echo "    cargo install wasm-bindgen-cli --version $version --no-default-features --bin wasm-bindgen" >&2
    exit 3
fi
target=${CARGO_TARGET_DIR:-target}
cargo build --locked --release --target wasm32-unknown-unknown
rm -rf dist
mkdir -p dist/golden
"$bindgen" --target web --no-typescript --remove-name-section --remove-producers-section --out-dir dist "$target/wasm32-unknown-unknown/release/web.wasm"
cp page/* ../tests/data/round_cross.safetensors ../tests/data/hifigan_small{,.io}.safetensors dist/
cp ../tests/golden/*.safetensors dist/golden/
(cd dist/golden && ls *.safetensors | sed 's/\.safetensors$//' >list.txt)
size=$(wc -c <dist/web_bg.wasm)
echo "web/dist: $size bytes of wasm, $(gzip -9 -c dist/web_bg.wasm | wc -c) compressed"
