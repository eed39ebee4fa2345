// Numbers beyond the range of f32: with an exponent of their own (Wide), factors in two parts (Scale), and where they
// are needed.
// import numbers/storage

// A number with an exponent of its own, m * 2^e: it reaches where f32 does not.
struct Wide {
    m: f32,
    e: i32,
}

// Exponent of a Wide that is zero.
const NOTHING = -100000;

// x with 1 <= |m| < 2; zero, subnormals, infinity and NaN as they are.
fn wide_of(x: f32) -> Wide {
    // Without branches: some compilers take minutes over this function's many copies otherwise.
    let a = magnitude(x);
    let normal = a - SMALLEST < INFINITY - SMALLEST;
    let m = bitcast<f32>((bitcast<u32>(x) & 0x807fffffu) | 0x3f800000u);
    return Wide(select(x, m, normal), select(0, i32(a >> 23u) - 127, normal));
}

// m * 2^e in three steps of one direction, so that no step leaves the range unless the result does.
// (A Wide of exponent NOTHING is zero.)
fn f32_of(x: Wide) -> f32 {
    let e = clamp(x.e, -378, 378);
    let third = exp2i(e / 3);
    return ((x.m * third) * exp2i(e - 2 * (e / 3))) * third;
}

// a / b with IEEE's results for zeros, infinities and NaN, which WGSL's division does not promise.
fn quotient(a: Wide, b: Wide) -> Wide {
    let x = wide_of(a.m);
    let y = wide_of(b.m);
    let p = magnitude(x.m);
    let q = magnitude(y.m);
    let sign = (bitcast<u32>(x.m) ^ bitcast<u32>(y.m)) & 0x80000000u;
    if p > INFINITY || q > INFINITY || (p == INFINITY && q == INFINITY) || (p < SMALLEST && q < SMALLEST) {
        return Wide(bitcast<f32>(sign | 0x7fc00000u), 0);
    }
    if p == INFINITY || q < SMALLEST {
        return Wide(bitcast<f32>(sign | INFINITY), 0);
    }
    if q == INFINITY || p < SMALLEST {
        return Wide(bitcast<f32>(sign), 0);
    }
    return Wide(x.m / y.m, x.e + a.e - y.e - b.e);
}

fn product_of(a: Wide, b: Wide) -> Wide {
    let x = wide_of(a.m);
    let y = wide_of(b.m);
    return Wide(x.m * y.m, x.e + a.e + y.e + b.e);
}

// a + b, rounded once.
fn sum_of(a: Wide, b: Wide) -> Wide {
    let x = wide_of(a.m);
    let y = wide_of(b.m);
    let p = select(x.e + a.e, NOTHING, magnitude(x.m) == 0u);
    let q = select(y.e + b.e, NOTHING, magnitude(y.m) == 0u);
    let top = max(p, q);
    // What the clamp keeps of a smaller term is below 2^-125 of the larger one.
    return Wide(x.m * exp2i(clamp(p - top, -126, 0)) + y.m * exp2i(clamp(q - top, -126, 0)), top);
}

// A factor of any exponent as two f32: x * factor = ((x * t) * m) * t, where no step leaves the range of f32 unless the
// result does. t is a power of two.
struct Scale {
    t: f32,
    m: f32,
}

fn scale_of(x: Wide) -> Scale {
    // With t = 1, m alone is the factor.
    let normal = abs(x.e) <= 120 || magnitude(x.m) == 0u;
    let third = select(clamp(x.e / 3, -126, 126), 0, normal);
    return Scale(exp2i(third), x.m * exp2i(clamp(x.e - 2 * third, -126, 126)));
}

fn scaled(x: f32, scale: Scale) -> f32 {
    return ((x * scale.t) * scale.m) * scale.t;
}

fn wide_of_scale(scale: Scale) -> Wide {
    let t = wide_of(scale.t);
    let m = wide_of(scale.m);
    return Wide(m.m, m.e + 2 * t.e);
}

// Sums of squares: of values scaled by 2^c, with c = 0 where that is safe and else ±SCALING, as in Blue's and LAPACK's
// nrm2. They are wide numbers then, s * 2^(-2c). NaN and infinity come with c = -SCALING.
const SCALING = 96;
const SUM_LOW = 0x0f800000u; // 2^-96: what squares below 2^-126 lose is far below the rounding of the sum
const SUM_HIGH = 0x71800000u; // 2^100

// The c with which a sum of squares has to be formed, given the sum formed with c = 0.
fn scale_exponent(s: f32) -> i32 {
    let a = magnitude(s);
    return select(select(0, SCALING, a < SUM_LOW), -SCALING, a >= SUM_HIGH);
}

// x with an exponent of 0 if f32 holds it safely.
fn without_exponent(x: Wide) -> Wide {
    let value = f32_of(x);
    let a = magnitude(value);
    if a >= SUM_LOW && a < SUM_HIGH {
        return Wide(value, 0);
    }
    return x;
}

fn is_normal(x: f32) -> bool {
    return magnitude(x) - SMALLEST < INFINITY - SMALLEST;
}

// Dot products outside of 2^-60 .. 2^60 are formed again with exponents of their own.
fn is_safe(s: f32) -> bool {
    return magnitude(s) - 0x21800000u < 0x5d800000u - 0x21800000u;
}
