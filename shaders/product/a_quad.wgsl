// Operand A of a product, f32, four elements at a time: its rows start at multiples of four elements of the binding.
// import numbers/storage
//
// Fills the slot `a`: see a_scalar.wgsl.

@group(0) @binding(0) var<storage, read> a_quads: array<vec4<u32>>; // A

const A_MAY_END = false;

fn a_raw(e: u32, left: u32) -> vec4<u32> {
    return a_quads[e >> 2u];
}

fn a_values(raw: vec4<u32>) -> vec4<f32> {
    return bitcast<vec4<f32>>(raw);
}

fn a_four(e: u32, left: u32) -> vec4<f32> {
    if left == 0u {
        return vec4<f32>();
    }
    return a_values(a_quads[e >> 2u]);
}

fn a_at(e: u32) -> f32 {
    return bitcast<f32>(a_quads[e >> 2u][e & 3u]);
}
