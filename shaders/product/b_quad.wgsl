// Operand B of a product, f32, four elements at a time: its rows start at multiples of four elements of the binding.
// import numbers/storage
//
// Fills the slot `b`: see b_scalar.wgsl.

@group(0) @binding(1) var<storage, read> b_quads: array<vec4<u32>>; // B

const B_MAY_END = false;

fn b_raw(e: u32, left: u32) -> vec4<u32> {
    return b_quads[e >> 2u];
}

fn b_values(raw: vec4<u32>) -> vec4<f32> {
    return bitcast<vec4<f32>>(raw);
}

fn b_four(e: u32, left: u32) -> vec4<f32> {
    if left == 0u {
        return vec4<f32>();
    }
    return b_values(b_quads[e >> 2u]);
}

fn b_at(e: u32) -> f32 {
    return bitcast<f32>(b_quads[e >> 2u][e & 3u]);
}
