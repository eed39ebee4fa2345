// Activations, element by element, to the accuracy of f32.
// import numbers/storage

override ACTIVATION: u32 = 0u; // none

const ACT_RELU = 1u;
const ACT_LEAKY_RELU = 2u;
const ACT_GELU = 3u;
const ACT_SILU = 4u;
const ACT_TANH = 5u;

// tanh to a few 2^-24: WGSL promises 1e-5 only, and some drivers give NaN for large arguments.
fn tanh_of(a: vec4<f32>) -> vec4<f32> {
    let size = abs(clamp(a, vec4<f32>(-15.0), vec4<f32>(15.0)));
    let e = exp(-2.0 * size);
    let large = (1.0 - e) / (1.0 + e);
    let s2 = size * size;
    let small = size * (1.0 - s2 * (1.0 / 3.0 - s2 * (2.0 / 15.0 - s2 * (17.0 / 315.0))));
    let value = select(large, small, size < vec4<f32>(0.25)) * sign(a);
    // clamp may turn NaN into a number.
    let nan = (bitcast<vec4<u32>>(a) & vec4<u32>(MAGNITUDE)) > vec4<u32>(INFINITY);
    return select(value, a, nan);
}

// Without a branch on the numbers: NaN stays NaN.
fn activate(a: vec4<f32>, slope: f32) -> vec4<f32> {
    // By the bits: Mesa's GL makes max(a, 0) of a float comparison, and 0 of NaN.
    let negative = bitcast<vec4<u32>>(a) - vec4<u32>(0x80000000u) <= vec4<u32>(INFINITY);
    if ACTIVATION == ACT_RELU {
        return select(a, vec4<f32>(), negative);
    }
    if ACTIVATION == ACT_LEAKY_RELU {
        return select(a, a * slope, negative);
    }
    if ACTIVATION == ACT_GELU {
        // From |a| = 10 on tanh is ±1 in f32, and a³ may overflow.
        let b = clamp(a, vec4<f32>(-10.0), vec4<f32>(10.0));
        return 0.5 * a * (1.0 + tanh_of(0.7978845608 * (b + 0.044715 * b * b * b)));
    }
    if ACTIVATION == ACT_SILU {
        // exp(80) is far from overflow. Below -80, 1 + exp(-a) is exp(-a) to f32, and exp(a) falls to 0.
        let near = a / (1.0 + exp(-clamp(a, vec4<f32>(-80.0), vec4<f32>(80.0))));
        let far = a * exp(clamp(a, vec4<f32>(-200.0), vec4<f32>()));
        return select(near, far, a < vec4<f32>(-80.0));
    }
    if ACTIVATION == ACT_TANH {
        return tanh_of(a);
    }
    return a;
}
