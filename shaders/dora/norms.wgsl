// Effective norms of the rows of W = W0 + s B·A, which stands nowhere: of DoRA.
// import numbers/lanes
// import numbers/norm
//
// `lanes` invocations have a row j, and a workgroup THREADS / lanes of them. With n0 its norm in W0, β = s B_j / n0,
// C_r = (W0_j · A_r) / n0 and G = A·Aᵀ
//
//   n_j² = n0² (1 + sum_r β_r (2 C_r + h_r))        h_r = sum_q G[r,q] β_q
//
// which loses digits where row j of W is much shorter than W0_j and s (B·A)_j. Where n_j² is below a 64th of
// n0² (1 + sum_r β_r h_r), or n0 is no safe number to divide by, the row is formed, element by element, and its squares
// are added up.

struct Params {
    rows: u32,         // in this dispatch
    columns: u32,
    rank: u32,
    stride: u32,       // rows of W0 in all
    offsets: u32,      // 8 bits each: the first element within its binding of W0, of A, of B, of the dots
    more_offsets: u32, // of G, of n0, of the norms; the logarithm of `lanes`
    scaling: f32,
    policy: u32,
    eps: f32,
}

var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> base: array<u32>; // W0, (rows, columns), words of BASE_DTYPE
@group(0) @binding(1) var<storage, read> a: array<u32>; // (rank, columns), words of A_DTYPE
@group(0) @binding(2) var<storage, read> b: array<u32>; // (rows, rank), words of B_DTYPE
@group(0) @binding(3) var<storage, read> dots: array<f32>; // C, (rank, stride)
@group(0) @binding(4) var<storage, read> gram: array<f32>; // G, (rank, rank)
@group(0) @binding(5) var<storage, read> base_norms: array<f32>; // n0, (rows)
@group(0) @binding(6) var<storage, read_write> norms: array<f32>; // (rows)

override BASE_DTYPE: u32 = F32;
override A_DTYPE: u32 = F32;
override B_DTYPE: u32 = F32;

const LEAST = 1e-12; // of n0, as the host clamps it

fn base_at(e: u32) -> f32 {
    let at = extractBits(p.offsets, 0u, 8u) + e;
    return unpack(base[word_holding(at, BASE_DTYPE)], at, BASE_DTYPE);
}

fn a_at(e: u32) -> f32 {
    let at = extractBits(p.offsets, 8u, 8u) + e;
    return unpack(a[word_holding(at, A_DTYPE)], at, A_DTYPE);
}

fn b_at(e: u32) -> f32 {
    let at = extractBits(p.offsets, 16u, 8u) + e;
    return unpack(b[word_holding(at, B_DTYPE)], at, B_DTYPE);
}

// The sum of squares of what lane t of some has of row j, of the first `count` columns, scaled by 2^up.
fn squares_of(j: u32, count: u32, up: i32, t: u32, lanes: u32) -> f32 {
    let four = vec4<u32>(0u, lanes, 2u * lanes, 3u * lanes);
    var sum = vec4<f32>();
    for (var k = t; k < count; k += 4u * lanes) { // columns / (4 lanes) iterations
        let at = vec4<u32>(k) + four;
        let there = at < vec4<u32>(p.columns);
        let e = min(at, vec4<u32>(p.columns - 1u));
        var low = vec4<f32>();
        for (var r = 0u; r < p.rank; r += 1u) { // rank iterations
            let row = vec4<u32>(r * p.columns) + e;
            low += b_at(j * p.rank + r) * vec4<f32>(a_at(row.x), a_at(row.y), a_at(row.z), a_at(row.w));
        }
        let of_base = vec4<u32>(j * p.columns) + e;
        let old = vec4<f32>(base_at(of_base.x), base_at(of_base.y), base_at(of_base.z), base_at(of_base.w));
        let w = select(vec4<f32>(), (old + p.scaling * low) * exp2i(up), there);
        sum += w * w;
    }
    return (sum.x + sum.y) + (sum.z + sum.w);
}

@compute @workgroup_size(THREADS)
fn dora_norms(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) index: u32,
) {
    let thread = ordered(index, THREADS);
    let lane_bits = extractBits(p.more_offsets, 24u, 8u);
    let lanes = 1u << lane_bits;
    let t = thread & (lanes - 1u);
    let own_row = flat(workgroup, workgroups) * (THREADS >> lane_bits) + (thread >> lane_bits);
    // Past the end the last row once more, since all meet at the barriers.
    let j = min(own_row, p.rows - 1u);
    let n0 = base_norms[extractBits(p.more_offsets, 8u, 8u) + j];
    let raise = p.scaling / n0;
    var cross = 0.0;
    var own = 0.0;
    for (var r = t; r < p.rank; r += lanes) { // rank / lanes iterations
        var h = 0.0;
        for (var q = 0u; q < p.rank; q += 1u) { // rank iterations
            h += gram[extractBits(p.more_offsets, 0u, 8u) + r * p.rank + q] * (b_at(j * p.rank + q) * raise);
        }
        let beta = b_at(j * p.rank + r) * raise;
        cross += beta * (2.0 * dots[extractBits(p.offsets, 24u, 8u) + r * p.stride + j] + h);
        own += beta * h;
    }
    let part = 1.0 + sum_of_lanes(cross, thread, lanes, 0u);
    let size = 1.0 + sum_of_lanes(own, thread, lanes, 1u);
    // By bits, for NaN and infinity.
    let in_range = max(magnitude(part), magnitude(size)) < SUM_HIGH && magnitude(n0) < INFINITY && n0 > LEAST;
    let kept = in_range && part * 64.0 >= size;

    let count = select(p.columns, 0u, kept);
    let plain = sum_of_lanes(squares_of(j, count, 0, t, lanes), thread, lanes, 2u);
    let up = select(scale_exponent(plain), 0, kept);
    let again = sum_of_lanes(squares_of(j, select(count, 0u, up == 0), up, t, lanes), thread, lanes, 3u);
    if t > 0u || own_row >= p.rows {
        return;
    }
    var square = Wide(select(again, plain, up == 0), -2 * up);
    if kept {
        square = product_of(product_of(wide_of(n0), wide_of(n0)), wide_of(part));
    }
    norms[extractBits(p.more_offsets, 16u, 8u) + j] = f32_of(effective_norm(square, p.policy, p.eps));
}
