// Effective norms: n̂ = eps policy of sqrt(sum of squares).
// import numbers/wide

// Eps policies (Eps::code).
const EPS_NONE = 0u;
const EPS_INSIDE_SQRT = 1u;
const EPS_CLAMP = 2u;
const EPS_AFTER = 3u;

// The effective norm of a row whose squares add up to `sum`, settled.
fn effective_norm(sum: Wide, policy: u32, eps: f32) -> Wide {
    var square = wide(sum.m);
    square.e += sum.e;
    if magnitude(square.m) < SMALLEST {
        square = Wide(0.0, 0);
    }
    if policy == EPS_INSIDE_SQRT {
        square = sum_of(square, wide(eps));
    }
    let odd = square.e & 1;
    let norm = Wide(sqrt(square.m * f32(1 + odd)), (square.e - odd) / 2);
    if policy == EPS_CLAMP && magnitude(narrow(norm)) < bitcast<u32>(eps) {
        return Wide(eps, 0);
    }
    if policy == EPS_AFTER {
        return settled(sum_of(norm, wide(eps)));
    }
    return settled(norm);
}

// The effective norms where neither they nor `sum` are near the ends of f32's range, in a fraction of the time; 0 elsewhere.
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
