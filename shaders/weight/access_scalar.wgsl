// How norms.wgsl reads v and dw word by word: any length of rows, from any element on.
// import weight/shape
//
// Slot `access`, which access_vec4.wgsl fills too.

@group(0) @binding(0) var<storage, read> v: array<u32>; // words of V_DTYPE
@group(0) @binding(5) var<storage, read> dw: array<u32>; // DOT: words of W_DTYPE, shaped as v

// What a unit adds to a sum: squares of a word, or a product of elements.
alias Terms = f32;

override SQUARE_UNIT: u32 = select(2u, 1u, V_DTYPE == F32); // elements
const PRODUCT_UNIT = 1u; // elements

fn total_of(terms: Terms) -> f32 {
    return terms;
}

fn v_at(e: u32) -> f32 {
    return unpack(v[select(e >> 1u, e, V_DTYPE == F32)], e, V_DTYPE);
}

fn dw_at(e: u32) -> f32 {
    return unpack(dw[select(e >> 1u, e, W_DTYPE == F32)], e, W_DTYPE);
}

// The squares of what word w holds of the elements first .. end - 1.
fn squares_at(w: u32, first: u32, end: u32, scale: f32) -> Terms {
    if V_DTYPE == F32 {
        let a = bitcast<f32>(v[w]) * scale;
        return a * a;
    }
    let pair = unpack_pair(v[w], V_DTYPE) * scale;
    // The neighbouring row may own a half of the word, and hold a NaN there.
    let a = select(0.0, pair.x, 2u * w >= first);
    let b = select(0.0, pair.y, 2u * w + 1u < end);
    return a * a + b * b;
}

// dw * v at element e of v and f of dw.
fn products_at(e: u32, f: u32) -> Terms {
    return v_at(e) * dw_at(f);
}

// The square of element e of v, which products_at takes too.
fn squares_beside(e: u32, scale: f32) -> Terms {
    let a = v_at(e) * scale;
    return a * a;
}
