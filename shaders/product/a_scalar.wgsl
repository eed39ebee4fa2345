// Operand A of a product, element by element: any storage type, any first element, any length of a row.
// import numbers/storage
//
// Slot `a`, which a_quad.wgsl and a_pair.wgsl fill too. e: an element, counted from the start of the binding.

override A_DTYPE: u32 = F32;

@group(0) @binding(0) var<storage, read> a_words: array<u32>; // A, words of A_DTYPE

// Whether a row may end within the four elements that are read together.
const A_MAY_END = true;

// Four elements from e on, as they are read, of which `left` are there, at least one; the others may be anything.
// With nothing to be done in between, many reads are on their way at once.
fn a_raw(e: u32, left: u32) -> vec4<u32> {
    let last = e + min(left, 4u) - 1u;
    if A_DTYPE == F32 {
        return vec4<u32>(
            a_words[e], a_words[min(e + 1u, last)], a_words[min(e + 2u, last)], a_words[min(e + 3u, last)],
        );
    }
    return vec4<u32>(a_packed(e, left), vec2<u32>());
}

// What they are.
fn a_values(raw: vec4<u32>) -> vec4<f32> {
    if A_DTYPE == F32 {
        return bitcast<vec4<f32>>(raw);
    }
    return vec4<f32>(unpack_pair(raw.x, A_DTYPE), unpack_pair(raw.y, A_DTYPE));
}

// Both in one, zero from the `left`-th on.
fn a_four(e: u32, left: u32) -> vec4<f32> {
    if left == 0u {
        return vec4<f32>();
    }
    return select(vec4<f32>(), a_values(a_raw(e, left)), vec4<u32>(0u, 1u, 2u, 3u) < vec4<u32>(left));
}

// The word that holds element e.
fn a_word(e: u32) -> u32 {
    return a_words[word_holding(e, A_DTYPE)];
}

fn a_at(e: u32) -> f32 {
    return unpack(a_word(e), e, A_DTYPE);
}

// Four packed elements from e on as they are stored, of which `left` are there, at least one.
fn a_packed(e: u32, left: u32) -> vec2<u32> {
    let w = e >> 1u;
    let z = (e + clamp(left, 1u, 4u) - 1u) >> 1u;
    return packed_quad(vec3<u32>(a_words[w], a_words[min(w + 1u, z)], a_words[min(w + 2u, z)]), (e & 1u) == 1u);
}
