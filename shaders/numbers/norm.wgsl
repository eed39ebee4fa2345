// Effective norms, n̂ = eps policy of sqrt(sum of squares), and what the gradients make of them.
// import numbers/wide

// Eps policies (Eps::code).
const EPS_NONE = 0u;
const EPS_INSIDE_SQRT = 1u;
const EPS_CLAMP = 2u;
const EPS_AFTER = 3u;

// The effective norm of a row whose squares add up to `sum`, settled.
fn effective_norm(sum: Wide, policy: u32, eps: f32) -> Wide {
    var square = wide_of(sum.m);
    square.e += sum.e;
    if magnitude(square.m) < SMALLEST {
        square = Wide(0.0, 0);
    }
    if policy == EPS_INSIDE_SQRT {
        square = sum_of(square, wide_of(eps));
    }
    let odd = square.e & 1;
    let norm = Wide(sqrt(square.m * f32(1 + odd)), (square.e - odd) / 2);
    if policy == EPS_CLAMP && magnitude(f32_of(norm)) < bitcast<u32>(eps) {
        return Wide(eps, 0);
    }
    if policy == EPS_AFTER {
        return without_exponent(sum_of(norm, wide_of(eps)));
    }
    return without_exponent(norm);
}

// The effective norms where neither they nor `sum` are near the ends of f32's range, in a fraction of the time; 0
// elsewhere.
fn plain_norms(sum: vec4<f32>, policy: u32, eps: f32) -> vec4<f32> {
    var norm = sqrt(select(sum, sum + eps, policy == EPS_INSIDE_SQRT));
    norm = select(norm, norm + eps, policy == EPS_AFTER);
    if policy == EPS_CLAMP {
        norm = select(norm, vec4<f32>(eps), norm < vec4<f32>(eps));
    }
    let sums = (bitcast<vec4<u32>>(sum) & vec4<u32>(MAGNITUDE)) - SUM_LOW;
    let norms = (bitcast<vec4<u32>>(norm) & vec4<u32>(MAGNITUDE)) - SUM_LOW;
    let width = vec4<u32>(SUM_HIGH - SUM_LOW);
    return select(vec4<f32>(), norm, (sums < width) & (norms < width));
}

fn plain_norm(sum: f32, policy: u32, eps: f32) -> f32 {
    return plain_norms(vec4<f32>(sum), policy, eps).x;
}

// effective_norm of a sum of squares within SUM_LOW .. SUM_HIGH.
fn norm_in_range(sum: f32, policy: u32, eps: f32) -> f32 {
    let n = sqrt(select(sum, sum + eps, policy == EPS_INSIDE_SQRT));
    let clamped = select(n, max(n, eps), policy == EPS_CLAMP);
    return select(clamped, n + eps, policy == EPS_AFTER);
}

// What the gradients divide by, d: n̂, but n under EPS_AFTER. Of a sum of squares.
fn divisor_of(squares: Wide, policy: u32, eps: f32) -> Wide {
    return effective_norm(squares, select(policy, EPS_NONE, policy == EPS_AFTER), eps);
}

// What a norm contributes to the gradients, dg = products / n̂ and dv = a * (dw - share * v):
struct NormFactors {
    dg: Wide,
    a: Scale,     // g / n̂
    share: Scale, // dg / d, but 0 where n̂ does not depend on v: the clamp is active, n <= e, or n = 0 under EPS_AFTER
}

// `products`: the sum of dw * v of the norm.
fn factors_of_products(products: Wide, d: Wide, gain: f32, policy: u32, eps: f32) -> NormFactors {
    return factors_of_dg(quotient(products, norm_of_divisor(d, policy, eps)), d, gain, policy, eps);
}

fn factors_of_dg(dg: Wide, d: Wide, gain: f32, policy: u32, eps: f32) -> NormFactors {
    let a = scale_of(quotient(wide_of(gain), norm_of_divisor(d, policy, eps)));
    let size = magnitude(f32_of(d));
    if (policy == EPS_CLAMP && size == bitcast<u32>(eps)) || (policy == EPS_AFTER && size < SMALLEST) {
        return NormFactors(dg, a, Scale(1.0, 0.0));
    }
    return NormFactors(dg, a, scale_of(quotient(dg, d)));
}

fn norm_of_divisor(d: Wide, policy: u32, eps: f32) -> Wide {
    if policy == EPS_AFTER {
        return without_exponent(sum_of(d, wide_of(eps)));
    }
    return d;
}

// dv = a * (dw - share * v), of four elements with the Scales (t, m) of their norms.
fn gradient_of_v(
    dw: vec4<f32>, v: vec4<f32>, t: vec4<f32>, m: vec4<f32>, share_t: vec4<f32>, share_m: vec4<f32>,
) -> vec4<f32> {
    return (((dw - ((v * share_t) * share_m) * share_t) * t) * m) * t;
}
