// Activations, element by element, to the accuracy of f32.
// import numbers/storage

const ACT_NONE = 0u;
const ACT_RELU = 1u;
const ACT_LEAKY_RELU = 2u;
const ACT_ELU = 3u;
const ACT_GELU = 4u;
const ACT_GELU_TANH = 5u;
const ACT_SILU = 6u;
const ACT_TANH = 7u;

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

// 1 / (1 + exp(-a)), to a few 2^-24 of itself.
fn logistic(a: vec4<f32>) -> vec4<f32> {
    let e = exp(-abs(clamp(a, vec4<f32>(-120.0), vec4<f32>(120.0)))); // exp(-120) is 0
    let value = select(e, vec4<f32>(1.0), a >= vec4<f32>()) / (1.0 + e);
    // clamp may turn NaN into a number.
    let nan = (bitcast<vec4<u32>>(a) & vec4<u32>(MAGNITUDE)) > vec4<u32>(INFINITY);
    return select(value, a, nan);
}

const GATE_TANH_SIGMOID = 1u;
const GATE_GLU = 2u;

// `gate` is a constant, GATE_.. .
fn gated(first: vec4<f32>, second: vec4<f32>, gate: u32) -> vec4<f32> {
    if gate == GATE_GLU {
        return first * logistic(second);
    }
    return tanh_of(first) * logistic(second);
}

// exp(a) - 1 for a below 0.
fn expm1_of(a: vec4<f32>) -> vec4<f32> {
    let b = clamp(a, vec4<f32>(-200.0), vec4<f32>()); // exp(-200) is 0
    let series =
        1.0 + b * (1.0 / 2.0 + b * (1.0 / 6.0 + b * (1.0 / 24.0 + b * (1.0 / 120.0 + b * (1.0 / 720.0 + b / 5040.0)))));
    return select(exp(b) - 1.0, b * series, b > vec4<f32>(-0.25));
}

// The part of the normal distribution beyond s, erfc(s / √2) / 2, for s of 0 or more, each to a few 2^-24 of itself:
// exp(-s² / 2) times a polynomial in 1 / (1 + 0.35 s), which was fitted to 0.7 * 2^-24 for s up to 14.
fn normal_beyond(s: vec4<f32>) -> vec4<f32> {
    let b = min(s, vec4<f32>(20.0)); // exp(-200) is 0
    let t = 1.0 / (1.0 + 0.35 * b);
    var p = 0.146545827 - t * 0.0296795219;
    p = 0.165050998 + t * (t * p - 0.260961235);
    p = 0.107114591 + t * (t * p - 0.0270466078);
    p = 0.13961871 + t * (0.139912292 + t * (0.119444914 + t * p));
    return exp(-0.5 * b * b) * (t * p);
}

// `activation` is a constant, ACT_.. . Without a branch on the numbers: NaN stays NaN.
fn activated(a: vec4<f32>, activation: u32, slope: f32) -> vec4<f32> {
    // By the bits: Mesa's GL makes max(a, 0) of a float comparison, and 0 of NaN.
    let negative = bitcast<vec4<u32>>(a) - vec4<u32>(0x80000000u) <= vec4<u32>(INFINITY);
    if activation == ACT_RELU {
        return select(a, vec4<f32>(), negative);
    }
    if activation == ACT_LEAKY_RELU {
        return select(a, a * slope, negative);
    }
    if activation == ACT_ELU {
        return select(a, expm1_of(a), negative);
    }
    if activation == ACT_GELU {
        let beyond = normal_beyond(abs(a));
        return a * select(1.0 - beyond, beyond, negative);
    }
    if activation == ACT_GELU_TANH {
        // From |a| = 10 on tanh is ±1 in f32, and a³ may overflow.
        let b = clamp(a, vec4<f32>(-10.0), vec4<f32>(10.0));
        return 0.5 * a * (1.0 + tanh_of(0.7978845608 * (b + 0.044715 * b * b * b)));
    }
    if activation == ACT_SILU {
        // exp(80) is far from overflow. Below -80, 1 + exp(-a) is exp(-a) to f32, and exp(a) falls to 0.
        let near = a / (1.0 + exp(-clamp(a, vec4<f32>(-80.0), vec4<f32>(80.0))));
        let far = a * exp(clamp(a, vec4<f32>(-200.0), vec4<f32>()));
        return select(near, far, a < vec4<f32>(-80.0));
    }
    if activation == ACT_TANH {
        return tanh_of(a);
    }
    return a;
}
