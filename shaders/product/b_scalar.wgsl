// Operand B of a product, element by element: any storage type, any first element, any length of a row.
// import numbers/storage
//
// Slot `b`, which b_quad.wgsl and b_pair.wgsl fill too. e: an element, counted from the start of the binding.

override B_DTYPE: u32 = F32;

@group(0) @binding(1) var<storage, read> b_words: array<u32>; // B, words of B_DTYPE

// Whether a row may end within the four elements that are read together.
const B_MAY_END = true;

// Four elements from e on, as they are read, of which `left` are there, at least one; the others may be anything.
// With nothing to be done in between, many reads are on their way at once.
fn b_raw(e: u32, left: u32) -> vec4<u32> {
    let last = e + min(left, 4u) - 1u;
    if B_DTYPE == F32 {
        return vec4<u32>(
            b_words[e], b_words[min(e + 1u, last)], b_words[min(e + 2u, last)], b_words[min(e + 3u, last)],
        );
    }
    return vec4<u32>(b_packed(e, left), vec2<u32>());
}

// What they are.
fn b_values(raw: vec4<u32>) -> vec4<f32> {
    if B_DTYPE == F32 {
        return bitcast<vec4<f32>>(raw);
    }
    return vec4<f32>(unpack_pair(raw.x, B_DTYPE), unpack_pair(raw.y, B_DTYPE));
}

// Both in one, zero from the `left`-th on.
fn b_four(e: u32, left: u32) -> vec4<f32> {
    if left == 0u {
        return vec4<f32>();
    }
    return select(vec4<f32>(), b_values(b_raw(e, left)), vec4<u32>(0u, 1u, 2u, 3u) < vec4<u32>(left));
}

// The word that holds element e.
fn b_word(e: u32) -> u32 {
    return b_words[word_holding(e, B_DTYPE)];
}

fn b_at(e: u32) -> f32 {
    return unpack(b_word(e), e, B_DTYPE);
}

// Four packed elements from e on as they are stored, of which `left` are there, at least one.
fn b_packed(e: u32, left: u32) -> vec2<u32> {
    let w = e >> 1u;
    let z = (e + clamp(left, 1u, 4u) - 1u) >> 1u;
    return packed_quad(vec3<u32>(b_words[w], b_words[min(w + 1u, z)], b_words[min(w + 2u, z)]), (e & 1u) == 1u);
}
