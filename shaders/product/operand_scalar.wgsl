// The operands of a product, element by element: any storage type, any first element, any length of a row.
// import numbers/storage
//
// Slot `operand`, which operand_vec4.wgsl fills too. e: an element, counted from the start of the binding.

override A_DTYPE: u32 = F32;
override B_DTYPE: u32 = F32;

@group(0) @binding(0) var<storage, read> a_words: array<u32>; // A, words of A_DTYPE
@group(0) @binding(1) var<storage, read> b_words: array<u32>; // B, words of B_DTYPE

// Whether a row may end within the four elements that are read together.
const QUADS_MAY_END = true;

// Four elements as they are read: with nothing to be done in between, many reads are on their way at once.
alias Raw = vec4<f32>;

// Four elements of A from e on, of which `left` are there, at least one; the others may be anything.
fn a_raw(e: u32, left: u32) -> Raw {
    let last = e + min(left, 4u) - 1u;
    if A_DTYPE == F32 {
        return bitcast<vec4<f32>>(vec4<u32>(
            a_words[e], a_words[min(e + 1u, last)], a_words[min(e + 2u, last)], a_words[min(e + 3u, last)],
        ));
    }
    let w = e >> 1u;
    let z = last >> 1u;
    let words = vec3<u32>(a_words[w], a_words[min(w + 1u, z)], a_words[min(w + 2u, z)]);
    return unpack_quad(words, (e & 1u) == 1u, A_DTYPE);
}

fn a_values(raw: Raw) -> vec4<f32> {
    return raw;
}

// The same in one, zero from the `left`-th on.
fn a_four(e: u32, left: u32) -> vec4<f32> {
    if left == 0u {
        return vec4<f32>();
    }
    return select(vec4<f32>(), a_raw(e, left), vec4<u32>(0u, 1u, 2u, 3u) < vec4<u32>(left));
}

fn a_at(e: u32) -> f32 {
    return unpack(a_words[select(e >> 1u, e, A_DTYPE == F32)], e, A_DTYPE);
}

// Four packed elements from e on as they are stored, of which `left` are there, at least one.
fn a_packed(e: u32, left: u32) -> vec2<u32> {
    let w = e >> 1u;
    let z = (e + clamp(left, 1u, 4u) - 1u) >> 1u;
    return packed_quad(vec3<u32>(a_words[w], a_words[min(w + 1u, z)], a_words[min(w + 2u, z)]), (e & 1u) == 1u);
}

// Four elements of B from e on, of which `left` are there, at least one; the others may be anything.
fn b_raw(e: u32, left: u32) -> Raw {
    let last = e + min(left, 4u) - 1u;
    if B_DTYPE == F32 {
        return bitcast<vec4<f32>>(vec4<u32>(
            b_words[e], b_words[min(e + 1u, last)], b_words[min(e + 2u, last)], b_words[min(e + 3u, last)],
        ));
    }
    let w = e >> 1u;
    let z = last >> 1u;
    let words = vec3<u32>(b_words[w], b_words[min(w + 1u, z)], b_words[min(w + 2u, z)]);
    return unpack_quad(words, (e & 1u) == 1u, B_DTYPE);
}

fn b_values(raw: Raw) -> vec4<f32> {
    return raw;
}

// The same in one, zero from the `left`-th on.
fn b_four(e: u32, left: u32) -> vec4<f32> {
    if left == 0u {
        return vec4<f32>();
    }
    return select(vec4<f32>(), b_raw(e, left), vec4<u32>(0u, 1u, 2u, 3u) < vec4<u32>(left));
}

fn b_at(e: u32) -> f32 {
    return unpack(b_words[select(e >> 1u, e, B_DTYPE == F32)], e, B_DTYPE);
}

// Four packed elements from e on as they are stored, of which `left` are there, at least one.
fn b_packed(e: u32, left: u32) -> vec2<u32> {
    let w = e >> 1u;
    let z = (e + clamp(left, 1u, 4u) - 1u) >> 1u;
    return packed_quad(vec3<u32>(b_words[w], b_words[min(w + 1u, z)], b_words[min(w + 2u, z)]), (e & 1u) == 1u);
}
