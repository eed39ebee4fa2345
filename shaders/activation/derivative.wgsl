// Derivatives of activations, element by element, to the accuracy of f32.
// import product/activation

override ACTIVATION: u32 = ACT_NONE;
// Where the derivative is taken: at what the activation gave, else at what it was given.
override FROM_OUTPUT: bool = false;

// The derivative of z * s(a(z)), s(a) = 1 / (1 + exp(-a)), where a has this derivative. Nothing cancels in s and 1 - s.
fn gated_slope(z: vec4<f32>, a: vec4<f32>, slope_of_a: vec4<f32>) -> vec4<f32> {
    let e = exp(-abs(a));
    let larger = 1.0 / (1.0 + e);
    let smaller = e / (1.0 + e);
    let s = select(smaller, larger, a >= vec4<f32>());
    let rest = select(larger, smaller, a >= vec4<f32>());
    return s * (1.0 + z * slope_of_a * rest);
}

// What is infinite or NaN in z is NaN in `slope`: infinity times zero, as f64 has it.
fn finite_only(z: vec4<f32>, slope: vec4<f32>) -> vec4<f32> {
    let bits = bitcast<vec4<u32>>(z);
    let nan = bitcast<vec4<f32>>(bits | vec4<u32>(0x7fc00000u));
    return select(slope, nan, (bits & vec4<u32>(MAGNITUDE)) >= vec4<u32>(INFINITY));
}

// The derivative of 1 / (1 + exp(-a)), for |a| up to 120, where it is 0.
fn slope_of_logistic(a: vec4<f32>) -> vec4<f32> {
    let e = exp(-abs(a));
    return e / ((1.0 + e) * (1.0 + e));
}

// That of tanh, 1 - tanh² = 4e / (1 + e)². exp(-120) is 0 in f32.
fn slope_of_tanh(z: vec4<f32>) -> vec4<f32> {
    let slope = 4.0 * slope_of_logistic(2.0 * clamp(z, vec4<f32>(-60.0), vec4<f32>(60.0)));
    // clamp may turn NaN into a number.
    let nan = (bitcast<vec4<u32>>(z) & vec4<u32>(MAGNITUDE)) > vec4<u32>(INFINITY);
    return select(slope, z, nan);
}

// d times the derivative at z. What a ReLU drops is 0 whatever d is; NaN in z keeps d under ReLU and ELU, and is not
// above 0 under leaky ReLU, as in PyTorch. By the bits, since compilers may assume that there is no NaN.
fn pulled_back(d: vec4<f32>, z: vec4<f32>, slope: f32) -> vec4<f32> {
    let bits = bitcast<vec4<u32>>(z);
    let not_above = (bits - vec4<u32>(0x80000000u) <= vec4<u32>(INFINITY)) | (bits == vec4<u32>());
    if ACTIVATION == ACT_RELU {
        return select(d, vec4<f32>(), not_above);
    }
    if ACTIVATION == ACT_LEAKY_RELU {
        let above = bits - vec4<u32>(1u) < vec4<u32>(INFINITY);
        return select(d * slope, d, above);
    }
    if ACTIVATION == ACT_ELU {
        if FROM_OUTPUT {
            return select(d, d * (z + 1.0), not_above);
        }
        return select(d, d * exp(clamp(z, vec4<f32>(-200.0), vec4<f32>())), not_above); // exp(-200) is 0
    }
    if ACTIVATION == ACT_TANH {
        if FROM_OUTPUT {
            return d * ((1.0 - z) * (1.0 + z));
        }
        return d * slope_of_tanh(z);
    }
    if ACTIVATION == ACT_SILU {
        let a = clamp(z, vec4<f32>(-120.0), vec4<f32>(120.0));
        return d * finite_only(z, gated_slope(a, a, vec4<f32>(1.0)));
    }
    if ACTIVATION == ACT_GELU {
        // z times the density of the normal distribution, and its part below z. exp(-200) is 0.
        let b = clamp(z, vec4<f32>(-20.0), vec4<f32>(20.0));
        let beyond = normal_beyond(abs(b));
        let below = select(1.0 - beyond, beyond, b < vec4<f32>());
        return d * finite_only(z, below + b * (0.3989422804 * exp(-0.5 * b * b)));
    }
    if ACTIVATION == ACT_GELU_TANH {
        // (1 + tanh i) / 2 is s(2i). From |z| = 12 on the derivative is 0 or 1 in f32, and z³ may overflow.
        let b = clamp(z, vec4<f32>(-12.0), vec4<f32>(12.0));
        let a = 1.5957691216 * (b + 0.044715 * b * b * b);
        return d * finite_only(z, gated_slope(b, a, 1.5957691216 * (1.0 + 0.134145 * b * b)));
    }
    return d;
}
