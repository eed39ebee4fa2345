// Number formats and number ranges, joined in front of every kernel.

// The number of a workgroup. A dispatch is spread over three dimensions, since each of them is limited.
fn flat(group: vec3<u32>, groups: vec3<u32>) -> u32 {
    return (group.z * groups.y + group.y) * groups.x + group.x;
}

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

// The word that holds element e of a vector.
fn word_holding(e: u32, dtype: u32) -> u32 {
    return select(e >> 1u, e, dtype == F32);
}

// Both elements of a packed word.
fn unpack_pair(word: u32, dtype: u32) -> vec2<f32> {
    if dtype == F16 {
        return unpack2x16float(word);
    }
    return vec2<f32>(bitcast<f32>(word << 16u), bitcast<f32>(word & 0xffff0000u));
}

// The elements of four words: all of f32; of the packed types the lower halves, and in quad_high the upper ones.
fn quad_low(words: vec4<u32>, dtype: u32) -> vec4<f32> {
    if dtype == F32 {
        return bitcast<vec4<f32>>(words);
    }
    if dtype == BF16 {
        return bitcast<vec4<f32>>(words << vec4<u32>(16u));
    }
    return vec4<f32>(
        unpack2x16float(words.x).x,
        unpack2x16float(words.y).x,
        unpack2x16float(words.z).x,
        unpack2x16float(words.w).x,
    );
}

fn quad_high(words: vec4<u32>, dtype: u32) -> vec4<f32> {
    if dtype == BF16 {
        return bitcast<vec4<f32>>(words & vec4<u32>(0xffff0000u));
    }
    return vec4<f32>(
        unpack2x16float(words.x).y,
        unpack2x16float(words.y).y,
        unpack2x16float(words.z).y,
        unpack2x16float(words.w).y,
    );
}

// Four packed elements in two words, out of the words that hold them; `odd` when the first one is an upper half.
fn packed_quad(words: vec3<u32>, odd: bool) -> vec2<u32> {
    return select(words.xy, (words.xy >> vec2<u32>(16u)) | (words.yz << vec2<u32>(16u)), odd);
}

fn unpack_quad(words: vec3<u32>, odd: bool, dtype: u32) -> vec4<f32> {
    let quad = packed_quad(words, odd);
    return vec4<f32>(unpack_pair(quad.x, dtype), unpack_pair(quad.y, dtype));
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

// pack() of four, without branches.
fn pack_four(x: vec4<f32>, dtype: u32) -> vec4<u32> {
    let bits = bitcast<vec4<u32>>(x);
    let a = bits & vec4<u32>(MAGNITUDE);
    let upper = bits >> vec4<u32>(16u);
    if dtype == BF16 {
        let rounded = (bits + 0x7fffu + (upper & vec4<u32>(1u))) >> vec4<u32>(16u);
        return select(rounded, upper | vec4<u32>(0x40u), a > vec4<u32>(INFINITY));
    }
    // The constant is 0xfff - 0x38000000. 65520 and above round to infinity, or a larger number.
    let normal = (a + ((a >> vec4<u32>(13u)) & vec4<u32>(1u)) + 0xc8000fffu) >> vec4<u32>(13u);
    // Subnormal: a multiple of 2^-24, the place of the last bit of numbers from 0.5 to 1.
    let subnormal = bitcast<vec4<u32>>(bitcast<vec4<f32>>(a) + 0.5) - vec4<u32>(0x3f000000u);
    var result = select(min(normal, vec4<u32>(0x7c00u)), subnormal, a < vec4<u32>(0x38800000u));
    result = select(result, vec4<u32>(0x7e00u), a > vec4<u32>(INFINITY));
    return result | (upper & vec4<u32>(0x8000u));
}

// Four words out of their elements, quad_low and quad_high.
fn quad_of(low: vec4<f32>, high: vec4<f32>, dtype: u32) -> vec4<u32> {
    if dtype == F32 {
        return bitcast<vec4<u32>>(low);
    }
    return pack_four(low, dtype) | (pack_four(high, dtype) << vec4<u32>(16u));
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
    // Without branches: some compilers take minutes over this function's many copies otherwise.
    let a = magnitude(x);
    let normal = a - SMALLEST < INFINITY - SMALLEST;
    let m = bitcast<f32>((bitcast<u32>(x) & 0x807fffffu) | 0x3f800000u);
    return Wide(select(x, m, normal), select(0, i32(a >> 23u) - 127, normal));
}

// m * 2^e in three steps of one direction, so that no step leaves the range unless the result does.
// (A Wide of exponent NOTHING is zero.)
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

// a + b, rounded once.
fn sum_of(a: Wide, b: Wide) -> Wide {
    let x = wide(a.m);
    let y = wide(b.m);
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

fn wide_scale(scale: Scale) -> Wide {
    let t = wide(scale.t);
    let m = wide(scale.m);
    return Wide(m.m, m.e + 2 * t.e);
}

// Sums of squares: of values scaled by 2^c, with c = 0 where that is safe and else ±LIFT, as in Blue's and LAPACK's
// nrm2. They are wide numbers then, s * 2^(-2c). NaN and infinity come with c = -LIFT.
const LIFT = 96;
const SUM_LOW = 0x0f800000u; // 2^-96: what squares below 2^-126 lose is far below the rounding of the sum
const SUM_HIGH = 0x71800000u; // 2^100

// The c with which a sum of squares has to be formed, given the sum formed with c = 0.
fn lift(s: f32) -> i32 {
    let a = magnitude(s);
    return select(select(0, LIFT, a < SUM_LOW), -LIFT, a >= SUM_HIGH);
}

// x with an exponent of 0 if f32 holds it safely.
fn settled(x: Wide) -> Wide {
    let value = narrow(x);
    let a = magnitude(value);
    if a >= SUM_LOW && a < SUM_HIGH {
        return Wide(value, 0);
    }
    return x;
}

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

fn is_normal(x: f32) -> bool {
    return magnitude(x) - SMALLEST < INFINITY - SMALLEST;
}

// Dot products outside of 2^-60 .. 2^60 are formed again with exponents of their own.
fn is_safe(s: f32) -> bool {
    return magnitude(s) - 0x21800000u < 0x5d800000u - 0x21800000u;
}
