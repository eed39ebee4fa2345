// Tensors shaped as C beside C itself, element by element.
// import numbers/storage

@group(0) @binding(6) var<storage, read> v: array<u32>; // gradient.wgsl: the weight, words of V_DTYPE
@group(0) @binding(7) var<storage, read_write> u: array<f32>; // linear.wgsl: what the gain multiplies

override V_DTYPE: u32 = F32;

fn put_u_element(e: u32, value: f32) {
    u[e] = value;
}

// The first `count` of four neighbouring elements.
fn put_u(e: u32, values: vec4<f32>, count: u32) {
    u[e] = values.x;
    if count > 1u {
        u[e + 1u] = values.y;
    }
    if count > 2u {
        u[e + 2u] = values.z;
    }
    if count > 3u {
        u[e + 3u] = values.w;
    }
}

// Four of them, of which `count` are there.
fn u_four(e: u32, count: u32) -> vec4<f32> {
    let last = count - 1u;
    return vec4<f32>(u[e], u[e + min(1u, last)], u[e + min(2u, last)], u[e + min(3u, last)]);
}

fn v_element(e: u32) -> f32 {
    return unpack(v[select(e >> 1u, e, V_DTYPE == F32)], e, V_DTYPE);
}

// Four neighbouring elements, of which `count` are there.
fn v_four(e: u32, count: u32) -> vec4<f32> {
    let last = min(count, 4u) - 1u;
    return vec4<f32>(
        v_element(e), v_element(e + min(1u, last)), v_element(e + min(2u, last)), v_element(e + min(3u, last)),
    );
}
