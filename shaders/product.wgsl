// What every matrix product shares: C[m,n] = sum_k A[m,k] * B[n,k].
// Joined behind in_words.wgsl, in_pairs.wgsl or in_quads.wgsl, which read A and B, and in front of a family, tile.wgsl
// or lanes.wgsl, which multiplies (fn product), and of the ends, linear.wgsl or gradient.wgsl, which say what A and B
// are, what B is scaled by before it is multiplied (SCALED_B, fn step_scale, its parts t and m), whether its squares are added up beside the
// product (SQUARES), and what becomes of C.
//
// A is stored with k along its rows, (m, a_stride) or, with A_ALONG_K = false, (k, a_stride); B likewise.
//
// A workgroup computes BM by BN of C, an invocation TM neighbouring rows of it and, of each, quads of neighbouring columns
// that start at own_column(t) of the family and lie STEP apart. take_block of the family puts them into `sums` a block of
// rows at a time.
//
// Where a sum left the range in which f32 keeps it exact enough, the invocation that owns it forms it again with
// exponents of its own (redo_dot), without barriers. Nothing else pays for that.
// No invocation loops more often than the host allows (product.rs, Tile::max_length).

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

override A_DTYPE: u32 = F32;
override B_DTYPE: u32 = F32;
override A_ALONG_K: bool = true;
override B_ALONG_K: bool = true;

override WX: u32 = 8u; // invocations along the columns of C
override WY: u32 = 8u; // along its rows
override TM: u32 = 8u; // rows of an invocation
override TN: u32 = 8u; // its columns, 4 or 8

override THREADS: u32 = WX * WY;
override BM: u32 = WY * TM;
override BN: u32 = WX * TN;
override QUADS: u32 = TN / 4u;
override BLOCK: u32 = min(TM, 8u); // rows that are finished together
// Steps of k at a time where a sum is formed again: 4, 8 or 16. A CPU driver runs through them once for nothing, so few
// where the sum is short.
override REDO_STEPS: u32 = 16u;

// Sums outside of 2^-60 .. 2^60 are formed again. Norms and dot products then lie where their quotient is a normal
// number, and where nothing that matters was lost below 2^-126 or overflowed.
const SAFE_LOW = 0x21800000u;
const SAFE_HIGH = 0x5d800000u;

const WHOLE = select(4u, 1u, QUADS_MAY_END); // neighbouring elements of an operand that are there or not together

// The first row and column of a tile of C. Neighbouring tiles are those along the shorter side, so that what they share, rows
// of the larger operand, is still in the cache.
fn tile_origin(tile: u32) -> vec2<u32> {
    let tiles_m = (p.rows + BM - 1u) / BM;
    let tiles_n = (p.columns + BN - 1u) / BN;
    let down = vec2<u32>(tile % tiles_m, tile / tiles_m);
    let along = vec2<u32>(tile / tiles_n, tile % tiles_n);
    return select(along, down, p.rows < p.columns) * vec2<u32>(BM, BN);
}

fn tile_count() -> u32 {
    return ((p.rows + BM - 1u) / BM) * ((p.columns + BN - 1u) / BN);
}

fn a_place(m: u32, k: u32) -> u32 {
    return extractBits(p.firsts, 0u, 8u) + select(k * p.a_stride + m, m * p.a_stride + k, A_ALONG_K);
}

fn b_place(n: u32, k: u32) -> u32 {
    return extractBits(p.firsts, 8u, 8u) + select(k * p.b_stride + n, n * p.b_stride + k, B_ALONG_K);
}

// Scales of the steps k .. k + 3, which prepare_b of the family fetches.
var<private> step_t: vec4<f32>;
var<private> step_m: vec4<f32>;

// Four steps of a row of B, prepared.
fn scaled_along(four: vec4<f32>) -> vec4<f32> {
    if !SCALED_B {
        return four;
    }
    return ((four * step_t) * step_m) * step_t;
}

// Four columns of B at the given one of the prepared steps.
fn scaled_across(four: vec4<f32>, step: u32) -> vec4<f32> {
    if !SCALED_B {
        return four;
    }
    return ((four * step_t[step]) * step_m[step]) * step_t[step];
}

// How many of the elements i .. end - 1 there are, none unless `there`.
fn left_of(i: u32, end: u32, there: bool) -> u32 {
    return select(0u, end - i, i < end && there);
}

// A[m, k .. k + 3], zero from the `left`-th on, however A is stored. For what is rarely done: where k runs down the
// columns element by element, which keeps the code small.
fn a_along_k(m: u32, k: u32, left: u32) -> vec4<f32> {
    if A_ALONG_K && !QUADS_MAY_END {
        return a_four(a_place(m, k), left);
    }
    if left == 0u {
        return vec4<f32>();
    }
    let last = left - 1u;
    let four = vec4<f32>(
        a_at(a_place(m, k)), a_at(a_place(m, k + min(1u, last))),
        a_at(a_place(m, k + min(2u, last))), a_at(a_place(m, k + min(3u, last))),
    );
    return select(vec4<f32>(), four, vec4<u32>(0u, 1u, 2u, 3u) < vec4<u32>(left));
}

fn b_along_k(n: u32, k: u32, left: u32) -> vec4<f32> {
    if B_ALONG_K && !QUADS_MAY_END {
        return b_four(b_place(n, k), left);
    }
    if left == 0u {
        return vec4<f32>();
    }
    let last = left - 1u;
    let four = vec4<f32>(
        b_at(b_place(n, k)), b_at(b_place(n, k + min(1u, last))),
        b_at(b_place(n, k + min(2u, last))), b_at(b_place(n, k + min(3u, last))),
    );
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
    for (var k = k_first; k < k_end; k += REDO_STEPS) { // split_length / REDO_STEPS iterations
        sum = add_steps(sum, m, n, k, k_end);
        if REDO_STEPS > 4u {
            sum = add_steps(sum, m, n, k + 4u, k_end);
        }
        if REDO_STEPS > 8u {
            sum = add_steps(sum, m, n, k + 8u, k_end);
            sum = add_steps(sum, m, n, k + 12u, k_end);
        }
    }
    return sum;
}

fn add_steps(sum: Wide, m: u32, n: u32, k: u32, k_end: u32) -> Wide {
    let left = left_of(k, k_end, true);
    return add_terms(sum, a_along_k(m, k, left), b_along_k(n, k, left));
}

// How far the wildest of four numbers is from 2^-60 .. 2^20, zeros not counted.
fn wildness(four: vec4<f32>) -> u32 {
    let distance = unsafe_distance(four);
    let of_others = select(distance, vec4<u32>(), distance == vec4<u32>(ZERO));
    return max(max(of_others.x, of_others.y), max(of_others.z, of_others.w));
}

// Whether every element of A[m] is zero or within 2^-60 .. 2^20. No product of two such numbers underflows, and where
// they add up to zero (padding, dead units, sparse rows) zero is right; no sum of 2^20 products reaches 2^60.
fn a_is_calm(m: u32, k_first: u32, k_end: u32) -> bool {
    var wildest = 0u;
    for (var k = k_first; k < k_end; k += REDO_STEPS) { // split_length / REDO_STEPS iterations
        wildest = max(wildest, wildness(a_along_k(m, k, left_of(k, k_end, true))));
        if REDO_STEPS > 4u {
            wildest = max(wildest, wildness(a_along_k(m, k + 4u, left_of(k + 4u, k_end, true))));
        }
        if REDO_STEPS > 8u {
            wildest = max(wildest, wildness(a_along_k(m, k + 8u, left_of(k + 8u, k_end, true))));
            wildest = max(wildest, wildness(a_along_k(m, k + 12u, left_of(k + 12u, k_end, true))));
        }
    }
    return wildest < WILD;
}

fn b_is_calm(n: u32, k_first: u32, k_end: u32) -> bool {
    var wildest = 0u;
    for (var k = k_first; k < k_end; k += REDO_STEPS) { // split_length / REDO_STEPS iterations
        wildest = max(wildest, wildness(b_along_k(n, k, left_of(k, k_end, true))));
        if REDO_STEPS > 4u {
            wildest = max(wildest, wildness(b_along_k(n, k + 4u, left_of(k + 4u, k_end, true))));
        }
        if REDO_STEPS > 8u {
            wildest = max(wildest, wildness(b_along_k(n, k + 8u, left_of(k + 8u, k_end, true))));
            wildest = max(wildest, wildness(b_along_k(n, k + 12u, left_of(k + 12u, k_end, true))));
        }
    }
    return wildest < WILD;
}

// Distance of |a| from the safe range: below UNSAFE inside of it, from there on what is too large or no number, then ZERO
// for zero, and above that what is too small.
const UNSAFE = (SAFE_HIGH - SAFE_LOW) * 2u;
const ZERO = 0xffffffffu - 2u * SAFE_LOW + 1u;
const WILD = (0x49800000u - SAFE_LOW) * 2u; // of 2^20

fn unsafe_distance(a: vec4<f32>) -> vec4<u32> {
    return (bitcast<vec4<u32>>(a) << vec4<u32>(1u)) - vec4<u32>(2u * SAFE_LOW);
}

// The sums of a block of rows, [row][quad]; its length is that of the loops over it, which has drivers unroll them.
var<private> sums: array<vec4<f32>, 8>;
var<private> more_sums: array<vec4<f32>, 8>; // the second quads of a row

// Which sums of the invocation are out of the safe range: bit 4i + c of block b and quad q, at place QUADS b + q, stands
// for row i, column 4q + c. BIT_WORDS of the family: as many as its tiles have at most.
var<private> unsafe_bits: array<u32, BIT_WORDS>;
// The largest distance of them all. If it is ZERO, every one of these sums is zero, or too large for its row and its
// column both to be calm.
var<private> worst: u32;

fn sum_at(i: u32, q: u32) -> vec4<f32> {
    if q == 0u {
        return sums[i];
    }
    return more_sums[i];
}

fn any_bits(found: vec4<u32>) -> u32 {
    return (found.x | found.y) | (found.z | found.w);
}

// Which sums of row i and quad q of the block are unsafe, bits as in `unsafe_bits`. Called when they are written, row by
// row: looked at all together they would need twice the registers. The callers gather a quad's bits before they store
// them, since with a store for each row drivers take twice the time to compile.
fn look_at(i: u32, q: u32) -> u32 {
    let distance = unsafe_distance(sum_at(i, q));
    worst = max(worst, max(max(distance.x, distance.y), max(distance.z, distance.w)));
    let bits = vec4<u32>(1u, 2u, 4u, 8u) << vec4<u32>(4u * i);
    return any_bits(select(vec4<u32>(), bits, distance >= vec4<u32>(UNSAFE)));
}

// The first block in which to look for sums to form again: none if there are none. `bad_columns`: a bit for each column
// all of whose sums have to be.
fn first_block(bad_columns: u32) -> u32 {
    var any = bad_columns;
    for (var i = 0u; i < BIT_WORDS; i += 1u) { // 8 or 16 iterations
        any |= unsafe_bits[i];
    }
    return select(TM / BLOCK, 0u, any != 0u);
}

// Elements of a block, bits as above.
struct Elements {
    first: u32,  // of quad 0
    second: u32, // of quad 1
}

// Those of the block that lie within C; the invocation's first element is at (row, column).
fn elements_there(block: u32, row: u32, column: u32) -> Elements {
    let first_row = row + block * BLOCK;
    let rows = min(left_of(first_row, p.rows, true), BLOCK);
    let of_rows = select((1u << (4u * rows)) - 1u, 0xffffffffu, rows == 8u);
    let first = (1u << min(left_of(column, p.columns, true), 4u)) - 1u;
    let second = (1u << min(left_of(column + STEP, p.columns, true), 4u)) - 1u;
    return Elements(of_rows & (0x11111111u * first), of_rows & (0x11111111u * second));
}

fn elements_unsafe(block: u32, bad_columns: u32) -> Elements {
    let second = select(0u, unsafe_bits[QUADS * block + QUADS - 1u], QUADS == 2u);
    return Elements(
        unsafe_bits[QUADS * block] | (0x11111111u * (bad_columns & 0xfu)), second | (0x11111111u * (bad_columns >> 4u)),
    );
}

// Those whose sums may be zero for good, unless their column is bad.
fn elements_zero(block: u32, bad_columns: u32) -> Elements {
    let zero = elements_unsafe(block, 0u);
    let first = zero.first & ~(0x11111111u * (bad_columns & 0xfu));
    let second = zero.second & ~(0x11111111u * (bad_columns >> 4u));
    return Elements(select(0u, first, worst == ZERO), select(0u, second, worst == ZERO));
}

fn any_of(elements: Elements) -> bool {
    return (elements.first | elements.second) != 0u;
}

// The row and column of the lowest bit, within the block.
fn lowest(elements: Elements) -> vec2<u32> {
    let in_second = elements.first == 0u;
    let bit = countTrailingZeros(select(elements.first, elements.second, in_second));
    return vec2<u32>(bit / 4u, bit % 4u + select(0u, STEP, in_second));
}

fn without_lowest(elements: Elements) -> Elements {
    if elements.first != 0u {
        return Elements(elements.first & (elements.first - 1u), elements.second);
    }
    return Elements(0u, elements.second & (elements.second - 1u));
}

// Whether the bit of row at.x, column at.y is set.
fn holds(elements: Elements, at: vec2<u32>) -> bool {
    let bits = select(elements.first, elements.second, at.y >= 4u);
    return ((bits >> (4u * at.x + at.y % 4u)) & 1u) == 1u;
}

// Everything in a block that has to be formed again: the unsafe sums, but of those that may be zero only where not both
// the row of A and that of B are calm.
fn elements_to_redo(block: u32, row: u32, column: u32, bad_columns: u32, k_first: u32, k_end: u32) -> Elements {
    let there = elements_there(block, row, column);
    let found = elements_unsafe(block, bad_columns);
    let zero = elements_zero(block, bad_columns);
    var redo = Elements(there.first & found.first & ~zero.first, there.second & found.second & ~zero.second);
    let doubtful = Elements(there.first & zero.first, there.second & zero.second);
    // No loop at all without a doubtful zero.
    let rows = select(0u, BLOCK, any_of(doubtful));
    let columns = select(0u, TN, any_of(doubtful));
    var wild_rows = 0u;
    for (var i = 0u; i < rows; i += 1u) { // BLOCK iterations
        if row + block * BLOCK + i < p.rows && !a_is_calm(row + block * BLOCK + i, k_first, k_end) {
            wild_rows |= 0xfu << (4u * i);
        }
    }
    for (var c = 0u; c < columns; c += 1u) { // TN iterations
        let n = column + c / 4u * STEP + c % 4u;
        if n < p.columns {
            var wild = wild_rows;
            if !b_is_calm(n, k_first, k_end) {
                wild = 0xffffffffu;
            }
            let of_column = wild & (0x11111111u << (c % 4u));
            if c < 4u {
                redo.first |= doubtful.first & of_column;
            } else {
                redo.second |= doubtful.second & of_column;
            }
        }
    }
    return redo;
}
