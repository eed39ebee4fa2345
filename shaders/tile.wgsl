// The matrix product that every layer is made of: C[m,n] = sum_k A[m,k] * B[n,k], in register tiles.
// Joined in front of linear.wgsl and gradient.wgsl, which say what A and B are, what is done to four elements of B
// before they are multiplied (fn staged_b), and what becomes of C.
//
// A is stored with k along its rows, (m, a_stride) or, with A_ALONG_K = false, (k, a_stride); B likewise.
//
// A workgroup computes BM by BN of C, an invocation TM by TN neighbouring elements. BK steps of k are staged in
// workgroup memory at a time.
//
// Where a sum left the range in which f32 keeps it exact enough, the invocation that owns it forms it again with
// exponents of its own (redo_dot), without barriers. Nothing else pays for that.
// No invocation loops more often than the host allows (linear.rs, Tile::max_length).

struct Params {
    rows: u32,         // of C in this dispatch
    columns: u32,      // of C in this dispatch
    depth: u32,        // steps of k in this dispatch
    a_stride: u32,     // elements from a row of A, as stored, to the next
    b_stride: u32,     // the same of B
    c_stride: u32,     // the same of C
    split_length: u32, // steps of k in a split
    split_first: u32,  // the number of the first split in this dispatch
    splits: u32,       // of all dispatches
    firsts: u32,       // 8 bits each: the first element within its binding of A, of B; the others are the ends'
    more_firsts: u32,  // 8 bits each: the ends'
    policy: u32,
    eps: f32,
    slope: f32,
}

var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> a_words: array<u32>; // A, words of A_DTYPE
@group(0) @binding(1) var<storage, read> b_words: array<u32>; // B, words of B_DTYPE

override A_DTYPE: u32 = F32;
override B_DTYPE: u32 = F32;
override A_ALONG_K: bool = true;
override B_ALONG_K: bool = true;

override WX: u32 = 8u; // invocations along the columns of C
override WY: u32 = 8u; // along its rows
override TM: u32 = 8u; // rows of an invocation, at most 8
override TN: u32 = 8u; // its columns, 4 or 8

override THREADS: u32 = WX * WY;
override BM: u32 = WY * TM;
override BN: u32 = WX * TN;
override QUADS: u32 = TN / 4u;
override A_STAGES: u32 = (BM * BK / 4u + THREADS - 1u) / THREADS;
override B_STAGES: u32 = (BN * BK / 4u + THREADS - 1u) / THREADS; // at most 4

// Sizes of workgroup memory have names, since naga 30 panics where an override is declared behind an array whose size
// is an expression of overrides.
override A_STAGED: u32 = BM * BK;
override B_STAGED: u32 = BN * BK;

const BK = 16u;
const BK4 = BK / 4u;

// Sums outside of 2^-60 .. 2^60 are formed again. Norms and dot products then lie where their quotient is a normal
// number, and where nothing that matters was lost below 2^-126 or overflowed.
const SAFE_LOW = 0x21800000u;
const SAFE_HIGH = 0x5d800000u;

var<workgroup> staged_as: array<f32, A_STAGED>; // [k][m]
var<workgroup> staged_bs: array<f32, B_STAGED>; // [k][n]

var<private> acc: array<vec4<f32>, 16>; // [m][quad of n]

// Four elements of A from e on, zero from the `left`-th on.
fn a_four(e: u32, left: u32) -> vec4<f32> {
    if left == 0u {
        return vec4<f32>();
    }
    let last = e + min(left, 4u) - 1u;
    var four: vec4<f32>;
    if A_DTYPE == F32 {
        four = bitcast<vec4<f32>>(vec4<u32>(
            a_words[e], a_words[min(e + 1u, last)], a_words[min(e + 2u, last)], a_words[min(e + 3u, last)],
        ));
    } else {
        let w = e >> 1u;
        let z = last >> 1u;
        let words = vec3<u32>(a_words[w], a_words[min(w + 1u, z)], a_words[min(w + 2u, z)]);
        four = unpack_quad(words, (e & 1u) == 1u, A_DTYPE);
    }
    return select(vec4<f32>(), four, vec4<u32>(0u, 1u, 2u, 3u) < vec4<u32>(left));
}

// The same of B.
fn b_four(e: u32, left: u32) -> vec4<f32> {
    if left == 0u {
        return vec4<f32>();
    }
    let last = e + min(left, 4u) - 1u;
    var four: vec4<f32>;
    if B_DTYPE == F32 {
        four = bitcast<vec4<f32>>(vec4<u32>(
            b_words[e], b_words[min(e + 1u, last)], b_words[min(e + 2u, last)], b_words[min(e + 3u, last)],
        ));
    } else {
        let w = e >> 1u;
        let z = last >> 1u;
        let words = vec3<u32>(b_words[w], b_words[min(w + 1u, z)], b_words[min(w + 2u, z)]);
        four = unpack_quad(words, (e & 1u) == 1u, B_DTYPE);
    }
    return select(vec4<f32>(), four, vec4<u32>(0u, 1u, 2u, 3u) < vec4<u32>(left));
}

fn a_place(m: u32, k: u32) -> u32 {
    return extractBits(p.firsts, 0u, 8u) + select(k * p.a_stride + m, m * p.a_stride + k, A_ALONG_K);
}

fn b_place(n: u32, k: u32) -> u32 {
    return extractBits(p.firsts, 8u, 8u) + select(k * p.b_stride + n, n * p.b_stride + k, B_ALONG_K);
}

// How many of the elements i .. end - 1 there are, none unless `there`.
fn left_of(i: u32, end: u32, there: bool) -> u32 {
    return select(0u, end - i, i < end && there);
}

// acc = A·Bᵀ over k_first .. k_end - 1 for the tile at (row0, column0).
fn product(row0: u32, column0: u32, k_first: u32, k_end: u32, t: u32) {
    let own_row = t / WX * TM;
    let own_column = t % WX * TN;
    for (var i = 0u; i < TM * QUADS; i += 1u) {
        acc[i] = vec4<f32>();
    }
    for (var k0 = k_first; k0 < k_end; k0 += BK) { // split_length / BK iterations
        for (var stage = 0u; stage < A_STAGES; stage += 1u) {
            let quad = stage * THREADS + t;
            if quad < BM * BK4 {
                if A_ALONG_K {
                    let m = quad / BK4;
                    let k = quad % BK4 * 4u;
                    let left = left_of(k0 + k, k_end, row0 + m < p.rows);
                    let four = a_four(a_place(row0 + m, k0 + k), left);
                    let at = k * BM + m;
                    staged_as[at] = four.x;
                    staged_as[at + BM] = four.y;
                    staged_as[at + 2u * BM] = four.z;
                    staged_as[at + 3u * BM] = four.w;
                } else {
                    let k = quad / (BM / 4u);
                    let m = quad % (BM / 4u) * 4u;
                    let left = left_of(row0 + m, p.rows, k0 + k < k_end);
                    let four = a_four(a_place(row0 + m, k0 + k), left);
                    let at = k * BM + m;
                    staged_as[at] = four.x;
                    staged_as[at + 1u] = four.y;
                    staged_as[at + 2u] = four.z;
                    staged_as[at + 3u] = four.w;
                }
            }
        }
        for (var stage = 0u; stage < B_STAGES; stage += 1u) {
            let quad = stage * THREADS + t;
            if quad < BN * BK4 {
                if B_ALONG_K {
                    let n = quad / BK4;
                    let k = quad % BK4 * 4u;
                    let left = left_of(k0 + k, k_end, column0 + n < p.columns);
                    let four = staged_b(b_four(b_place(column0 + n, k0 + k), left), stage, k0 + k, left);
                    let at = k * BN + n;
                    staged_bs[at] = four.x;
                    staged_bs[at + BN] = four.y;
                    staged_bs[at + 2u * BN] = four.z;
                    staged_bs[at + 3u * BN] = four.w;
                } else {
                    let k = quad / (BN / 4u);
                    let n = quad % (BN / 4u) * 4u;
                    let left = left_of(column0 + n, p.columns, k0 + k < k_end);
                    let four = staged_b(b_four(b_place(column0 + n, k0 + k), left), stage, k0 + k, left);
                    let at = k * BN + n;
                    staged_bs[at] = four.x;
                    staged_bs[at + 1u] = four.y;
                    staged_bs[at + 2u] = four.z;
                    staged_bs[at + 3u] = four.w;
                }
            }
        }
        workgroupBarrier();
        for (var k = 0u; k < BK; k += 1u) { // BK iterations
            var b: array<vec4<f32>, 2>;
            for (var q = 0u; q < QUADS; q += 1u) {
                let at = k * BN + own_column + 4u * q;
                b[q] = vec4<f32>(staged_bs[at], staged_bs[at + 1u], staged_bs[at + 2u], staged_bs[at + 3u]);
            }
            for (var i = 0u; i < TM; i += 1u) {
                let a = staged_as[k * BM + own_row + i];
                for (var q = 0u; q < QUADS; q += 1u) {
                    acc[i * QUADS + q] += a * b[q];
                }
            }
        }
        // The next step overwrites what slower invocations still read.
        workgroupBarrier();
    }
}

fn a_at(e: u32) -> f32 {
    return unpack(a_words[select(e >> 1u, e, A_DTYPE == F32)], e, A_DTYPE);
}

// A[m, k .. k + 3], zero from the `left`-th on, however A is stored.
fn a_along_k(m: u32, k: u32, left: u32) -> vec4<f32> {
    let e = a_place(m, k);
    if A_ALONG_K || left == 0u {
        return a_four(e, left);
    }
    let steps = min(vec4<u32>(0u, 1u, 2u, 3u), vec4<u32>(left - 1u)) * p.a_stride + e;
    let four = vec4<f32>(a_at(steps.x), a_at(steps.y), a_at(steps.z), a_at(steps.w));
    return select(vec4<f32>(), four, vec4<u32>(0u, 1u, 2u, 3u) < vec4<u32>(left));
}

fn b_at(e: u32) -> f32 {
    return unpack(b_words[select(e >> 1u, e, B_DTYPE == F32)], e, B_DTYPE);
}

fn b_along_k(n: u32, k: u32, left: u32) -> vec4<f32> {
    let e = b_place(n, k);
    if B_ALONG_K || left == 0u {
        return b_four(e, left);
    }
    let steps = min(vec4<u32>(0u, 1u, 2u, 3u), vec4<u32>(left - 1u)) * p.b_stride + e;
    let four = vec4<f32>(b_at(steps.x), b_at(steps.y), b_at(steps.z), b_at(steps.w));
    return select(vec4<f32>(), four, vec4<u32>(0u, 1u, 2u, 3u) < vec4<u32>(left));
}

// Exponents of four numbers; 0 for zero, subnormals, infinity and NaN.
fn exponents(four: vec4<f32>) -> vec4<i32> {
    let field = (bitcast<vec4<u32>>(four) & vec4<u32>(MAGNITUDE)) >> vec4<u32>(23u);
    let normal = field - 1u < vec4<u32>(254u);
    return select(vec4<i32>(), vec4<i32>(field) - 127, normal);
}

// What the exponents leave. Subnormals count as zero here.
fn mantissas(four: vec4<f32>) -> vec4<f32> {
    let bits = bitcast<vec4<u32>>(four);
    let field = (bits & vec4<u32>(MAGNITUDE)) >> vec4<u32>(23u);
    let normal = bitcast<vec4<f32>>((bits & vec4<u32>(0x807fffffu)) | vec4<u32>(0x3f800000u));
    return select(select(four, normal, field < vec4<u32>(255u)), vec4<f32>(), field == vec4<u32>());
}

fn exp2i_down(e: vec4<i32>) -> vec4<f32> {
    return bitcast<vec4<f32>>(vec4<u32>(clamp(e, vec4<i32>(-126), vec4<i32>()) + 127) << vec4<u32>(23u));
}

// sum + a·b, the exponent of the sum following the largest term.
fn add_terms(sum: Wide, a: vec4<f32>, b: vec4<f32>) -> Wide {
    let m = mantissas(a) * mantissas(b);
    let zero = (bitcast<vec4<u32>>(m) & vec4<u32>(MAGNITUDE)) == vec4<u32>();
    let e = select(exponents(a) + exponents(b), vec4<i32>(NOTHING), zero);
    let top = max(max(max(e.x, e.y), max(e.z, e.w)), sum.e);
    let terms = m * exp2i_down(e - top);
    let old = sum.m * exp2i(clamp(sum.e - top, -126, 0));
    return Wide(old + ((terms.x + terms.y) + (terms.z + terms.w)), top);
}

// A[m]·B[n] over k_first .. k_end - 1, whatever the exponents.
fn redo_dot(m: u32, n: u32, k_first: u32, k_end: u32) -> Wide {
    var sum = Wide(0.0, NOTHING);
    for (var k = k_first; k < k_end; k += 16u) { // split_length / 16 iterations
        let a = left_of(k, k_end, true);
        let b = left_of(k + 4u, k_end, true);
        let c = left_of(k + 8u, k_end, true);
        let d = left_of(k + 12u, k_end, true);
        sum = add_terms(sum, a_along_k(m, k, a), b_along_k(n, k, a));
        sum = add_terms(sum, a_along_k(m, k + 4u, b), b_along_k(n, k + 4u, b));
        sum = add_terms(sum, a_along_k(m, k + 8u, c), b_along_k(n, k + 8u, c));
        sum = add_terms(sum, a_along_k(m, k + 12u, d), b_along_k(n, k + 12u, d));
    }
    return sum;
}

// The smallest magnitude of four numbers, one less and doubled, zeros not counted.
fn smallest(four: vec4<f32>) -> u32 {
    let m = (bitcast<vec4<u32>>(four) << vec4<u32>(1u)) - vec4<u32>(1u);
    return min(min(m.x, m.y), min(m.z, m.w));
}

// Whether every element of A[m] is zero or at least 2^-60: no product of two such numbers underflows, and where they
// add up to zero (padding, dead units, sparse rows) zero is right.
fn a_is_calm(m: u32, k_first: u32, k_end: u32) -> bool {
    var least = 0xffffffffu;
    for (var k = k_first; k < k_end; k += 16u) { // split_length / 16 iterations
        least = min(least, smallest(a_along_k(m, k, left_of(k, k_end, true))));
        least = min(least, smallest(a_along_k(m, k + 4u, left_of(k + 4u, k_end, true))));
        least = min(least, smallest(a_along_k(m, k + 8u, left_of(k + 8u, k_end, true))));
        least = min(least, smallest(a_along_k(m, k + 12u, left_of(k + 12u, k_end, true))));
    }
    return least >= 2u * SAFE_LOW - 1u;
}

fn b_is_calm(n: u32, k_first: u32, k_end: u32) -> bool {
    var least = 0xffffffffu;
    for (var k = k_first; k < k_end; k += 16u) { // split_length / 16 iterations
        least = min(least, smallest(b_along_k(n, k, left_of(k, k_end, true))));
        least = min(least, smallest(b_along_k(n, k + 4u, left_of(k + 4u, k_end, true))));
        least = min(least, smallest(b_along_k(n, k + 8u, left_of(k + 8u, k_end, true))));
        least = min(least, smallest(b_along_k(n, k + 12u, left_of(k + 12u, k_end, true))));
    }
    return least >= 2u * SAFE_LOW - 1u;
}

// Distance of |a| from the safe range: below UNSAFE inside of it, ZERO for zero.
const UNSAFE = (SAFE_HIGH - SAFE_LOW) * 2u;
const ZERO = 0xffffffffu - 2u * SAFE_LOW + 1u;

fn unsafe_distance(a: vec4<f32>) -> vec4<u32> {
    return (bitcast<vec4<u32>>(a) << vec4<u32>(1u)) - vec4<u32>(2u * SAFE_LOW);
}

// Elements of an invocation, a bit each: bit 4i + c of quad q stands for row i, column 4q + c.
struct Elements {
    first: u32,  // of quad 0
    second: u32, // of quad 1
}

// Which elements of acc have to be formed again, and which are zero and may have to be.
struct Doubtful {
    bad: Elements,
    zero: Elements,
}

fn four_bits(four: vec4<bool>) -> u32 {
    let bits = select(vec4<u32>(), vec4<u32>(1u, 2u, 4u, 8u), four);
    return (bits.x | bits.y) | (bits.z | bits.w);
}

// The doubtful elements at (row, column). All of those in `bad_columns` are bad.
fn doubtful_elements(row: u32, column: u32, bad_columns: array<vec4<bool>, 2>) -> Doubtful {
    var worst = vec4<u32>();
    for (var i = 0u; i < TM; i += 1u) {
        for (var q = 0u; q < QUADS; q += 1u) {
            worst = max(worst, select(unsafe_distance(acc[i * QUADS + q]), vec4<u32>(0xffffffffu), bad_columns[q]));
        }
    }
    var found = Doubtful(Elements(0u, 0u), Elements(0u, 0u));
    if max(max(worst.x, worst.y), max(worst.z, worst.w)) < UNSAFE {
        return found;
    }
    for (var i = 0u; i < TM; i += 1u) {
        for (var q = 0u; q < QUADS; q += 1u) {
            let distance = unsafe_distance(acc[i * QUADS + q]);
            let in_columns = vec4<u32>(0u, 1u, 2u, 3u) + (column + 4u * q) < vec4<u32>(p.columns);
            let there = in_columns & vec4<bool>(row + i < p.rows);
            let zero = (distance == vec4<u32>(ZERO)) & !bad_columns[q];
            let bad = ((distance >= vec4<u32>(UNSAFE)) | bad_columns[q]) & !zero;
            if q == 0u {
                found.bad.first |= four_bits(bad & there) << (4u * i);
                found.zero.first |= four_bits(zero & there) << (4u * i);
            } else {
                found.bad.second |= four_bits(bad & there) << (4u * i);
                found.zero.second |= four_bits(zero & there) << (4u * i);
            }
        }
    }
    return found;
}

fn any_of(elements: Elements) -> bool {
    return (elements.first | elements.second) != 0u;
}

// The row and column of the lowest bit, within the invocation's.
fn lowest(elements: Elements) -> vec2<u32> {
    let in_second = elements.first == 0u;
    let bit = countTrailingZeros(select(elements.first, elements.second, in_second));
    return vec2<u32>(bit / 4u, bit % 4u + select(0u, 4u, in_second));
}

fn without_lowest(elements: Elements) -> Elements {
    if elements.first != 0u {
        return Elements(elements.first & (elements.first - 1u), elements.second);
    }
    return Elements(0u, elements.second & (elements.second - 1u));
}

// Everything that has to be formed again: the bad ones, and the zeros whose row of A and of B are not both calm.
fn elements_to_redo(found: Doubtful, row: u32, column: u32, k_first: u32, k_end: u32) -> Elements {
    var redo = found.bad;
    if !any_of(found.zero) {
        return redo;
    }
    var wild_rows = 0u;
    for (var i = 0u; i < TM; i += 1u) { // TM iterations
        if row + i < p.rows && !a_is_calm(row + i, k_first, k_end) {
            wild_rows |= 0xfu << (4u * i);
        }
    }
    for (var c = 0u; c < TN; c += 1u) { // TN iterations
        if column + c < p.columns {
            var wild = wild_rows;
            if !b_is_calm(column + c, k_first, k_end) {
                wild = 0xffffffffu;
            }
            let of_column = wild & (0x11111111u << (c % 4u));
            if c < 4u {
                redo.first |= found.zero.first & of_column;
            } else {
                redo.second |= found.zero.second & of_column;
            }
        }
    }
    return redo;
}
