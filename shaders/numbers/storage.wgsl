// Workgroups and invocations by number, and the storage types f32, f16 and bf16.

// The number of a workgroup. A dispatch is spread over three dimensions, since each of them is limited.
fn flat(group: vec3<u32>, groups: vec3<u32>) -> u32 {
    return (group.z * groups.y + group.y) * groups.x + group.x;
}

// The number of an invocation in a workgroup of `size`. Software drivers run invocations in order; with REVERSED they
// run them in the other one, so that tests see a barrier that is missing. Not for kernels whose lanes are those of a
// subgroup.
override REVERSED: bool = false;

fn ordered(index: u32, size: u32) -> u32 {
    return select(index, size - 1u - index, REVERSED);
}

// Storage types (DType::code). f16 and bf16 lie two to a word, the lower half first.
const F32 = 0u;
const F16 = 1u;
const BF16 = 2u;

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
