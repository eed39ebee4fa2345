// Number formats and number ranges, joined in front of every kernel.

// Storage types (DType::code). f16 and bf16 lie two to a word, the lower half first.
const F32 = 0u;
const F16 = 1u;
const BF16 = 2u;

// Eps policies (Eps::code).
const EPS_NONE = 0u;
const EPS_INSIDE_SQRT = 1u;
const EPS_CLAMP = 2u;
const EPS_AFTER = 3u;

const MAGNITUDE = 0x7fffffffu; // all bits of an f32 but the sign
const INFINITY = 0x7f800000u; // bits; larger magnitudes are NaN
const SMALLEST = 0x00800000u; // bits of 2^-126; smaller magnitudes are subnormal, and count as zero where it matters

// Floats are classified by their bits: compilers may assume that NaN and infinity do not occur.
fn magnitude(x: f32) -> u32 {
    return bitcast<u32>(x) & MAGNITUDE;
}

// 2^e, for -126 <= e <= 127.
fn exp2i(e: i32) -> f32 {
    return bitcast<f32>(u32(e + 127) << 23u);
}

// Element e of a tensor, given its word.
fn unpack(word: u32, e: u32, dtype: u32) -> f32 {
    if dtype == F32 {
        return bitcast<f32>(word);
    }
    let half = word >> (16u * (e & 1u));
    if dtype == F16 {
        return unpack2x16float(half).x;
    }
    return bitcast<f32>(half << 16u);
}

// Both elements of a packed word.
fn unpack_pair(word: u32, dtype: u32) -> vec2<f32> {
    if dtype == F16 {
        return unpack2x16float(word);
    }
    return vec2<f32>(bitcast<f32>(word << 16u), bitcast<f32>(word & 0xffff0000u));
}

// Four packed elements out of the words that hold them; `odd` when the first one is an upper half.
fn unpack_quad(words: vec3<u32>, odd: bool, dtype: u32) -> vec4<f32> {
    let low = select(words.x, (words.x >> 16u) | (words.y << 16u), odd);
    let high = select(words.y, (words.y >> 16u) | (words.z << 16u), odd);
    return vec4<f32>(unpack_pair(low, dtype), unpack_pair(high, dtype));
}

// x rounded to f16 or bf16, to nearest, ties to even, as 16 bits. In integers, because pack2x16float leaves
// overflow undefined and truncates on some compilers.
fn pack(x: f32, dtype: u32) -> u32 {
    let bits = bitcast<u32>(x);
    let a = bits & MAGNITUDE;
    if dtype == BF16 {
        return select((bits + 0x7fffu + ((bits >> 16u) & 1u)) >> 16u, (bits >> 16u) | 0x40u, a > INFINITY);
    }
    let sign = (bits >> 16u) & 0x8000u;
    if a > INFINITY {
        return sign | 0x7e00u;
    }
    if a >= 0x477ff000u { // 65520 and above round to infinity
        return sign | 0x7c00u;
    }
    if a >= 0x38800000u { // 2^-14 and above are normal
        return sign | ((a + 0xfffu + ((a >> 13u) & 1u) - 0x38000000u) >> 13u);
    }
    if a < 0x33000000u { // below 2^-25
        return sign;
    }
    // Subnormal: a multiple of 2^-24.
    let shift = 126u - (a >> 23u);
    let mantissa = (a & 0x7fffffu) | 0x800000u;
    return sign | ((mantissa + (1u << (shift - 1u)) - 1u + ((mantissa >> shift) & 1u)) >> shift);
}

// A number with an exponent of its own, m * 2^e: it reaches where f32 does not.
struct Wide {
    m: f32,
    e: i32,
}

// Exponent of a Wide that is zero.
const NOTHING = -100000;

// x with 1 <= |m| < 2; zero, subnormals, infinity and NaN as they are.
fn wide(x: f32) -> Wide {
    let a = magnitude(x);
    if a < SMALLEST || a >= INFINITY {
        return Wide(x, 0);
    }
    return Wide(bitcast<f32>((bitcast<u32>(x) & 0x807fffffu) | 0x3f800000u), i32(a >> 23u) - 127);
}

// m * 2^e in three steps of one direction, so that no step leaves the range unless the result does.
fn narrow(x: Wide) -> f32 {
    let e = clamp(x.e, -378, 378);
    let third = exp2i(e / 3);
    return ((x.m * third) * exp2i(e - 2 * (e / 3))) * third;
}

// a / b with IEEE's results for zeros, infinities and NaN, which WGSL's division does not promise.
fn quotient(a: Wide, b: Wide) -> Wide {
    let x = wide(a.m);
    let y = wide(b.m);
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
    let x = wide(a.m);
    let y = wide(b.m);
    return Wide(x.m * y.m, x.e + a.e + y.e + b.e);
}

// A sum of squares of values scaled by 2^c: s = sum (v * 2^c)^2, with c = 0 where that is safe and else ±LIFT,
// as in Blue's and LAPACK's nrm2. NaN and infinity come with c = -LIFT.
struct Sum {
    s: f32,
    c: i32,
}

const LIFT = 96;
const SUM_LOW = 0x0f800000u; // 2^-96: what squares below 2^-126 lose is far below the rounding of the sum
const SUM_HIGH = 0x71800000u; // 2^100: 2^27 partial sums of that size still do not overflow

const EMPTY = Sum(0.0, LIFT);

// The c with which a sum of squares has to be formed, given the sum formed with c = 0.
fn lift(s: f32) -> i32 {
    let a = magnitude(s);
    return select(select(0, LIFT, a < SUM_LOW), -LIFT, a >= SUM_HIGH);
}

fn combine(a: Sum, b: Sum) -> Sum {
    let c = min(a.c, b.c);
    // Squares scale by 2^(2 * difference). At a difference of -2 LIFT nothing of the smaller sum is left anyway.
    let p = exp2i(max(c - a.c, -126));
    let q = exp2i(max(c - b.c, -126));
    return Sum((a.s * p) * p + (b.s * q) * q, c);
}

// The effective norm. The norm itself is sqrt(s) * 2^-c.
fn effective_norm(sum: Sum, policy: u32, eps: f32) -> Wide {
    let norm = Wide(sqrt(sum.s), -sum.c);
    if policy == EPS_INSIDE_SQRT {
        if sum.c == 0 {
            return Wide(sqrt(sum.s + eps), 0);
        }
        if sum.c < 0 {
            // eps * 2^(-2 LIFT) by its exponent: compilers make one factor of two constants, and 0 of that one. An eps
            // too small for it is nothing beside a sum of 2^(100 - 2 LIFT).
            let lowered = max(bitcast<u32>(eps), u32(2 * LIFT) << 23u) - (u32(2 * LIFT) << 23u);
            return Wide(sqrt(sum.s + select(bitcast<f32>(lowered), 0.0, lowered < SMALLEST)), LIFT);
        }
        // n² is below 2^-69 here. A larger eps swallows it, a smaller one is added at a scale that holds both.
        if eps >= exp2i(-40) {
            return Wide(sqrt(eps), 0);
        }
        return Wide(sqrt((sum.s * exp2i(40 - LIFT)) * exp2i(40 - LIFT) + eps * exp2i(80)), -40);
    }
    if policy == EPS_CLAMP && magnitude(narrow(norm)) < bitcast<u32>(eps) {
        return Wide(eps, 0);
    }
    if policy == EPS_AFTER {
        if sum.c < 0 {
            return Wide(norm.m + eps * exp2i(-LIFT), LIFT);
        }
        return Wide(narrow(norm) + eps, 0);
    }
    return norm;
}
