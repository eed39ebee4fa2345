// Sums of a product that left the range in which f32 keeps them exact enough: the invocation that owns one forms it
// again with an exponent of its own (exact_dot), without barriers. Nothing else pays for that.
// import product/shape
// import numbers/wide
//
// An invocation finishes its rows in blocks: its family puts the sums of a block here (take_block), and the epilogue
// looks at each as it writes it (look_at). Where some are unsafe it goes through the blocks once more and forms
// again what elements_to_redo names. Of several blocks it takes each anew for that (look_at_all); one alone has been
// looked at, and its sums need be in no register any more.

// Steps of k at a time where a sum is formed again: 4, 8 or 16. A software driver runs through them once for
// nothing, so few where the sum is short.
override REDO_STEPS: u32 = 16u;

// Sums outside of 2^-60 .. 2^60 are formed again. Norms and dot products then lie where their quotient is a normal
// number, and where nothing that matters was lost below 2^-126 or overflowed.
const SAFE_LOW = 0x21800000u;
const SAFE_HIGH = 0x5d800000u;

// The sums of a block of rows, [row][quad]; its length is that of the loops over it, which has drivers unroll them.
var<private> sums: array<vec4<f32>, 8>;
var<private> more_sums: array<vec4<f32>, 8>; // the second quads of a row

// Which sums of the block are out of the safe range: bit 4i + c of quad q stands for row i, column 4q + c.
var<private> unsafe_bits: array<u32, 2>;
// The largest distance of them all from the safe range. If it is ZERO, every one of these sums is zero, or too large
// for its row and its column both to be in range.
var<private> worst: u32;

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

fn add_steps(sum: Wide, m: u32, n: u32, k: u32, k_end: u32) -> Wide {
    let left = left_of(k, k_end, true);
    return add_terms(sum, a_along_k(m, k, left), b_along_k(n, k, left));
}

// A[m]·B[n] over k_first .. k_end - 1, whatever the exponents.
fn exact_dot(m: u32, n: u32, k_first: u32, k_end: u32) -> Wide {
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

fn squares_of_steps(n: u32, k: u32, k_end: u32, scale: f32) -> vec4<f32> {
    let four = b_along_k(n, k, left_of(k, k_end, true)) * scale;
    return four * four;
}

// The sum of squares of B[n] over k_first .. k_end - 1, scaled by 2^c.
fn exact_squares(n: u32, k_first: u32, k_end: u32, c: i32) -> f32 {
    let scale = exp2i(c);
    var s = vec4<f32>();
    for (var k = k_first; k < k_end; k += REDO_STEPS) { // split_length / REDO_STEPS iterations
        s += squares_of_steps(n, k, k_end, scale);
        if REDO_STEPS > 4u {
            s += squares_of_steps(n, k + 4u, k_end, scale);
        }
        if REDO_STEPS > 8u {
            s += squares_of_steps(n, k + 8u, k_end, scale) + squares_of_steps(n, k + 12u, k_end, scale);
        }
    }
    return (s.x + s.y) + (s.z + s.w);
}

fn row_squares_of_steps(m: u32, k: u32, k_end: u32, scale: f32) -> vec4<f32> {
    let four = a_along_k(m, k, left_of(k, k_end, true)) * scale;
    return four * four;
}

// The same of A[m].
fn exact_row_squares(m: u32, k_first: u32, k_end: u32, c: i32) -> f32 {
    let scale = exp2i(c);
    var s = vec4<f32>();
    for (var k = k_first; k < k_end; k += REDO_STEPS) { // split_length / REDO_STEPS iterations
        s += row_squares_of_steps(m, k, k_end, scale);
        if REDO_STEPS > 4u {
            s += row_squares_of_steps(m, k + 4u, k_end, scale);
        }
        if REDO_STEPS > 8u {
            s += row_squares_of_steps(m, k + 8u, k_end, scale) + row_squares_of_steps(m, k + 12u, k_end, scale);
        }
    }
    return (s.x + s.y) + (s.z + s.w);
}

// Distance of |a| from the safe range: below UNSAFE inside of it, from there on what is too large or no number, then
// ZERO for zero, and above that what is too small.
const UNSAFE = (SAFE_HIGH - SAFE_LOW) * 2u;
const ZERO = 0xffffffffu - 2u * SAFE_LOW + 1u;
const OUT_OF_RANGE = (0x49800000u - SAFE_LOW) * 2u; // from 2^20 on

fn unsafe_distance(a: vec4<f32>) -> vec4<u32> {
    return (bitcast<vec4<u32>>(a) << vec4<u32>(1u)) - vec4<u32>(2u * SAFE_LOW);
}

// How far the furthest of four numbers is from 2^-60 .. 2^20, zeros not counted.
fn range_distance(four: vec4<f32>) -> u32 {
    let distance = unsafe_distance(four);
    let of_others = select(distance, vec4<u32>(), distance == vec4<u32>(ZERO));
    return max(max(of_others.x, of_others.y), max(of_others.z, of_others.w));
}

// Whether every element of A[m] is zero or within 2^-60 .. 2^20. No product of two such numbers underflows, and where
// they add up to zero (padding, dead units, sparse rows) zero is right; no sum of 2^20 products reaches 2^60.
fn a_in_range(m: u32, k_first: u32, k_end: u32) -> bool {
    var furthest = 0u;
    for (var k = k_first; k < k_end; k += REDO_STEPS) { // split_length / REDO_STEPS iterations
        furthest = max(furthest, range_distance(a_along_k(m, k, left_of(k, k_end, true))));
        if REDO_STEPS > 4u {
            furthest = max(furthest, range_distance(a_along_k(m, k + 4u, left_of(k + 4u, k_end, true))));
        }
        if REDO_STEPS > 8u {
            furthest = max(furthest, range_distance(a_along_k(m, k + 8u, left_of(k + 8u, k_end, true))));
            furthest = max(furthest, range_distance(a_along_k(m, k + 12u, left_of(k + 12u, k_end, true))));
        }
    }
    return furthest < OUT_OF_RANGE;
}

fn b_in_range(n: u32, k_first: u32, k_end: u32) -> bool {
    var furthest = 0u;
    for (var k = k_first; k < k_end; k += REDO_STEPS) { // split_length / REDO_STEPS iterations
        furthest = max(furthest, range_distance(b_along_k(n, k, left_of(k, k_end, true))));
        if REDO_STEPS > 4u {
            furthest = max(furthest, range_distance(b_along_k(n, k + 4u, left_of(k + 4u, k_end, true))));
        }
        if REDO_STEPS > 8u {
            furthest = max(furthest, range_distance(b_along_k(n, k + 8u, left_of(k + 8u, k_end, true))));
            furthest = max(furthest, range_distance(b_along_k(n, k + 12u, left_of(k + 12u, k_end, true))));
        }
    }
    return furthest < OUT_OF_RANGE;
}

fn sum_at(i: u32, q: u32) -> vec4<f32> {
    if q == 0u {
        return sums[i];
    }
    return more_sums[i];
}

fn any_bits(found: vec4<u32>) -> u32 {
    return (found.x | found.y) | (found.z | found.w);
}

// A bit for each of four that is true.
fn bits_of(four: vec4<bool>) -> u32 {
    return any_bits(select(vec4<u32>(), vec4<u32>(1u, 2u, 4u, 8u), four));
}

// Which sums of row i and quad q of the block are unsafe, bits as in `unsafe_bits`. Called when they are written,
// row by row: looked at all together they would need twice the registers.
fn look_at(i: u32, q: u32) -> u32 {
    let distance = unsafe_distance(sum_at(i, q));
    worst = max(worst, max(max(distance.x, distance.y), max(distance.z, distance.w)));
    return bits_of(distance >= vec4<u32>(UNSAFE)) << (4u * i);
}

// Looks at the sums of a block, which are taken.
fn look_at_all() {
    worst = 0u;
    for (var q = 0u; q < QUADS; q += 1u) {
        var found = 0u;
        for (var i = 0u; i < BLOCK; i += 1u) {
            found |= look_at(i, q);
        }
        unsafe_bits[q] = found;
    }
}

// The first block to go through once more: behind the last one if nothing was found. (With a loop from there on,
// since some drivers run all code between the braces of an `if`, and throw it away.)
fn first_block(found: u32) -> u32 {
    return select(TM / BLOCK, 0u, found != 0u);
}

// Elements of a block, bits as above.
struct Elements {
    first: u32,  // of quad 0
    second: u32, // of quad 1
}

// Those of the block that lie within C; the block's first element is at (row, column).
fn elements_there(row: u32, column: u32) -> Elements {
    let rows = min(left_of(row, p.rows, true), BLOCK);
    let of_rows = select((1u << (4u * rows)) - 1u, 0xffffffffu, rows == 8u);
    let first = (1u << min(left_of(column, p.columns, true), 4u)) - 1u;
    let second = (1u << min(left_of(column + STEP, p.columns, true), 4u)) - 1u;
    return Elements(of_rows & (0x11111111u * first), of_rows & (0x11111111u * second));
}

// Those whose sums are unsafe, and all of the bad columns: a bit for each column.
fn elements_unsafe(bad_columns: u32) -> Elements {
    let second = select(0u, unsafe_bits[QUADS - 1u], QUADS == 2u);
    return Elements(
        unsafe_bits[0] | (0x11111111u * (bad_columns & 0xfu)), second | (0x11111111u * (bad_columns >> 4u)),
    );
}

// Those whose sums may be zero for good, unless their column is bad.
fn elements_zero(bad_columns: u32) -> Elements {
    let zero = elements_unsafe(0u);
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

// Columns 2i and 2i + 1 wherever there is one of them.
fn in_pairs(elements: Elements) -> Elements {
    let first = (elements.first | (elements.first >> 1u)) & 0x55555555u;
    let second = (elements.second | (elements.second >> 1u)) & 0x55555555u;
    return Elements(first * 3u, second * 3u);
}

// Whole quads wherever there is one of their columns.
fn in_quads(elements: Elements) -> Elements {
    let first = (elements.first | (elements.first >> 1u)) & 0x33333333u;
    let second = (elements.second | (elements.second >> 1u)) & 0x33333333u;
    return Elements(((first | (first >> 2u)) & 0x11111111u) * 15u, ((second | (second >> 2u)) & 0x11111111u) * 15u);
}

// Those quads of which all columns are there.
fn of_whole_quads(elements: Elements) -> Elements {
    let first = elements.first & (elements.first >> 1u);
    let second = elements.second & (elements.second >> 1u);
    return Elements((first & (first >> 2u) & 0x11111111u) * 15u, (second & (second >> 2u) & 0x11111111u) * 15u);
}

// Whether the bit of row at.x, column at.y is set.
fn holds(elements: Elements, at: vec2<u32>) -> bool {
    let bits = select(elements.first, elements.second, at.y >= 4u);
    return ((bits >> (4u * at.x + at.y % 4u)) & 1u) == 1u;
}

// Everything in a block that has to be formed again: the unsafe sums, but of those that may be zero only where not both
// the row of A and that of B are in range.
fn elements_to_redo(row: u32, column: u32, bad_columns: u32, k_first: u32, k_end: u32) -> Elements {
    let there = elements_there(row, column);
    let found = elements_unsafe(bad_columns);
    let zero = elements_zero(bad_columns);
    var redo = Elements(there.first & found.first & ~zero.first, there.second & found.second & ~zero.second);
    let doubtful = Elements(there.first & zero.first, there.second & zero.second);
    // No loop at all without a doubtful zero.
    let rows = select(0u, BLOCK, any_of(doubtful));
    let columns = select(0u, TN, any_of(doubtful));
    var bad_rows = 0u;
    for (var i = 0u; i < rows; i += 1u) { // BLOCK iterations
        if row + i < p.rows && !a_in_range(row + i, k_first, k_end) {
            bad_rows |= 0xfu << (4u * i);
        }
    }
    for (var c = 0u; c < columns; c += 1u) { // TN iterations
        let n = column + c / 4u * STEP + c % 4u;
        if n < p.columns {
            let bad = select(0xffffffffu, bad_rows, b_in_range(n, k_first, k_end));
            let of_column = bad & (0x11111111u << (c % 4u));
            if c < 4u {
                redo.first |= doubtful.first & of_column;
            } else {
                redo.second |= doubtful.second & of_column;
            }
        }
    }
    return redo;
}
