// How norms.wgsl reads v and dw four words at once: rows (of columns: the matrix) of whole quads from an aligned
// element on, dw of v's storage type.
// import weight/shape
//
// Fills the slot `access`: see access_scalar.wgsl.

@group(0) @binding(0) var<storage, read> v: array<vec4<u32>>; // quads of V_DTYPE
@group(0) @binding(5) var<storage, read> dw: array<vec4<u32>>; // DOT: quads of V_DTYPE, shaped as v

// What a unit, which is a quad, adds to a sum.
alias Terms = vec4<f32>;

override WORD: u32 = select(2u, 1u, V_DTYPE == F32); // elements of 32 bits
override QUAD: u32 = 4u * WORD; // elements
override SQUARE_UNIT: u32 = QUAD;
override PRODUCT_UNIT: u32 = QUAD;

fn total_of(terms: Terms) -> f32 {
    return (terms.x + terms.y) + (terms.z + terms.w);
}

fn v_at(e: u32) -> f32 {
    return unpack(v[e / QUAD][e % QUAD / WORD], e, V_DTYPE);
}

fn dw_at(e: u32) -> f32 {
    return unpack(dw[e / QUAD][e % QUAD / WORD], e, V_DTYPE);
}

fn squares(words: vec4<u32>, scale: f32) -> Terms {
    let a = quad_low(words, V_DTYPE) * scale;
    if V_DTYPE == F32 {
        return a * a;
    }
    let b = quad_high(words, V_DTYPE) * scale;
    return a * a + b * b;
}

fn squares_at(u: u32, first: u32, end: u32, scale: f32) -> Terms {
    return squares(v[u], scale);
}

// The squares of quad u of v, which products_at takes too.
fn squares_beside(u: u32, scale: f32) -> Terms {
    return squares_at(u, 0u, 0u, scale);
}

fn products(a: vec4<u32>, b: vec4<u32>) -> Terms {
    let low = quad_low(a, V_DTYPE) * quad_low(b, V_DTYPE);
    if V_DTYPE == F32 {
        return low;
    }
    return low + quad_high(a, V_DTYPE) * quad_high(b, V_DTYPE);
}

// dw * v, quad u of v and f of dw.
fn products_at(u: u32, f: u32) -> Terms {
    return products(v[u], dw[f]);
}
