// Snake, x + sin²(αx) / (α + 1e-9), and its derivatives, to the accuracy of f32.
// import numbers/storage
//
// WGSL promises a sine to 2^-11 only. Here sin² and sin of the double angle are to f32 accuracy for |θ| below 2^17;
// beyond, they are anything from 0 to 1 and from -1 to 1.

// θ less a multiple k of π, in three parts of which the first two times k are exact for |θ| below 2^17: -π/2 .. π/2.
fn less_half_turns(theta: vec4<f32>) -> vec4<f32> {
    let k = round(theta * 0.3183098862);
    let rest = ((theta - k * 3.140625) - k * 0.000965118408203125) - k * 2.5351816930196946e-6;
    return clamp(rest, vec4<f32>(-1.5707964), vec4<f32>(1.5707964));
}

// sin(r), for |r| up to π/2.
fn sine_of(r: vec4<f32>) -> vec4<f32> {
    let z = r * r;
    let part = z * (-0.1666666567 + z * (0.00833323039 + z * (-0.00019821235 + z * 2.629978781e-6)));
    return r + r * part;
}

// sin²(θ), not from 1 - cos, which would lose small ones.
fn sine_squared(theta: vec4<f32>) -> vec4<f32> {
    let sine = sine_of(less_half_turns(theta));
    return sine * sine;
}

// sin(2θ). The cosine is the sine of what is left to π/2, which is given in two parts.
fn sine_of_double(theta: vec4<f32>) -> vec4<f32> {
    let r = less_half_turns(theta);
    return 2.0 * sine_of(r) * sine_of((1.5707964 - abs(r)) - 4.371139e-8);
}

// x + sin²(αx) / (α + 1e-9)
fn snake(x: vec4<f32>, alpha: f32) -> vec4<f32> {
    return x + sine_squared(alpha * x) / (alpha + 1e-9);
}

// Its derivative by x.
fn snake_slope(x: vec4<f32>, alpha: f32) -> vec4<f32> {
    let slope = 1.0 + sine_of_double(alpha * x) * (alpha / (alpha + 1e-9));
    // clamp may turn NaN into a number.
    return select(slope, x, (bitcast<vec4<u32>>(x) & vec4<u32>(MAGNITUDE)) > vec4<u32>(INFINITY));
}

// Its derivative by α.
fn snake_by_alpha(x: vec4<f32>, alpha: f32) -> vec4<f32> {
    let theta = alpha * x;
    let quotient = sine_of(less_half_turns(theta)) / (alpha + 1e-9);
    return x * (sine_of_double(theta) / (alpha + 1e-9)) - quotient * quotient;
}
