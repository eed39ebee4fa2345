// Statistics down the columns of a (rows, columns) matrix, rows being the batch, and what is made of them:
// import numbers/norm
//
//   STATISTIC_DOTS     sum_b a[b,j]  and  sum_b a[b,j] * u[b,j]
//   STATISTIC_MOMENTS  mean_j and the population variance of column j, block by block as Welford and Chan merge them:
//                 never E[a²] - E[a]²
//
//   OUTCOME_SUMS      first[j] = sum a, second[j] = sum a * u, each added to what stands there if ACCUMULATE
//   OUTCOME_FACTORS   the same, and what gradient.wgsl wants of each norm: with dg = sum a * u, the Scale g / n̂ and
//                 the Scale dg / d (norm.wgsl), four f32 from means[4j] on, where `norms` holds d. dg has an exponent
//                 of its own here, for dv may be in the range of f32 where dg is not; where that exponent is far from
//                 0, or a t is not 1, the t of the second Scale is negative, which its square does not show
//   OUTCOME_MEANS     first[j] = sum a, as above; means[j] = sum a / rows; running mean second[j] += momentum * (its
//                 distance from means[j])
//   OUTCOME_SCALES    first[j] = 1 / σ_j, second[j] = -mean_j / σ_j; σ_j = 0 counts as 1. Data-dependent
//                 initialization: with first as gain and second as bias column j has mean 0 and variance 1
//
// `batch_sums` reads the matrix once; where its rows are split over workgroups it leaves a partial result of each split
// in `partials`, and `batch_finish` puts these together, in an order that depends on nothing but the sizes.
// No invocation loops more often than the host allows (kernel.rs, MAX_ITERATIONS).

struct Params {
    count: u32,        // columns
    rows: u32,         // rows in this dispatch; batch_finish: in all
    stride: u32,       // elements from a row to the next
    split_length: u32, // rows in a split
    splits: u32,       // in this dispatch; batch_finish: in all
    first_partial: u32, // where the partial results of this dispatch start
    offsets: u32,      // 8 bits each: the first element of a, u, first, second within its binding
    more_offsets: u32, // the same of means, g, norms
    flags: u32,        // HAS_
    rate: f32,         // OUTCOME_MEANS: 1 / rows
    momentum: f32,
    policy: u32,       // OUTCOME_FACTORS
    eps: f32,
}

var<immediate> p: Params;

@group(0) @binding(2) var<storage, read_write> partials: array<PartialStatistic>; // (splits, columns)
@group(0) @binding(3) var<storage, read_write> first: array<f32>; // (columns)
@group(0) @binding(4) var<storage, read_write> second: array<f32>; // (columns)
@group(0) @binding(5) var<storage, read_write> means: array<f32>; // (columns), OUTCOME_FACTORS (columns, 4)
@group(0) @binding(6) var<storage, read> g: array<u32>; // (columns), words of GAIN_DTYPE
@group(0) @binding(7) var<storage, read> norms: array<f32>; // (columns)

override A_DTYPE: u32 = F32;
override GAIN_DTYPE: u32 = F32;
override STATISTIC: u32 = STATISTIC_DOTS;
override OUTCOME: u32 = OUTCOME_SUMS;
override HAS_U: bool = true; // STATISTIC_DOTS: else the second sum is 0
override DIRECT: bool = true; // batch_sums: one split is all there is: write the end out
override CX: u32 = 32u; // neighbouring columns of a workgroup, a power of two up to THREADS

override CY: u32 = THREADS / CX; // invocations that share a column of a split
override WIDE: bool = OUTCOME == OUTCOME_FACTORS; // whether sum a * u has an exponent of its own

const THREADS = 64u;
const STATISTIC_DOTS = 0u;
const STATISTIC_MOMENTS = 1u;
const OUTCOME_SUMS = 0u;
const OUTCOME_MEANS = 1u;
const OUTCOME_SCALES = 2u;
const OUTCOME_FACTORS = 3u;
const HAS_FIRST = 1u;
const HAS_SECOND = 2u;
const ACCUMULATE = 4u;
const HAS_GAIN = 8u;

// STATISTIC_DOTS (sum a, sum a * u), STATISTIC_MOMENTS (mean, variance). A variance, unlike a sum of squares, stays in
// the range of f32 however many rows there are.
struct Stat {
    s: vec2<f32>,
    n: f32, // STATISTIC_MOMENTS: of so many rows; WIDE: sum a * u is s.y * 2^n
}

// A Stat in memory, (s.x, s.y, n of WIDE).
struct PartialStatistic {
    x: f32,
    y: f32,
    e: f32,
}

var<workgroup> stats: array<vec2<f32>, THREADS>;
var<workgroup> sizes: array<f32, THREADS>;

fn has(flag: u32) -> bool {
    return (p.flags & flag) != 0u;
}

fn dot_of(stat: Stat) -> Wide {
    return Wide(stat.s.y, i32(stat.n));
}

// sum + x * u
fn add_term(sum: Wide, x: f32, u: f32) -> Wide {
    return sum_of(sum, product_of(Wide(x, 0), Wide(u, 0)));
}

fn merge(x: Stat, y: Stat) -> Stat {
    if STATISTIC == STATISTIC_DOTS && WIDE {
        let sum = sum_of(dot_of(x), dot_of(y));
        return Stat(vec2<f32>(x.s.x + y.s.x, sum.m), f32(sum.e));
    }
    if STATISTIC == STATISTIC_DOTS {
        return Stat(x.s + y.s, 0.0);
    }
    if y.n == 0.0 {
        return x;
    }
    let n = x.n + y.n;
    let part_x = x.n / n;
    let part_y = y.n / n;
    let distance = y.s.x - x.s.x;
    let variance = x.s.y * part_x + y.s.y * part_y + (distance * part_x) * (distance * part_y);
    return Stat(vec2<f32>(x.s.x + distance * part_y, variance), n);
}

// Puts together what the CY invocations of each column have; the result is right in the first CX invocations.
fn combine_lanes(own: Stat, t: u32) -> Stat {
    var total = own;
    for (var step = CY / 2u; step > 0u; step /= 2u) { // at most 6 iterations
        // Nobody may overwrite what a slower lane still reads.
        workgroupBarrier();
        stats[t] = total.s;
        sizes[t] = total.n;
        workgroupBarrier();
        if t < step * CX {
            let other = t + step * CX;
            total = merge(total, Stat(stats[other], sizes[other]));
        }
    }
    return total;
}

fn write_factors(column: u32, dg: Wide) {
    var gain = 1.0;
    if has(HAS_GAIN) {
        let at = extractBits(p.more_offsets, 8u, 8u) + column;
        gain = unpack(g[word_holding(at, GAIN_DTYPE)], at, GAIN_DTYPE);
    }
    let d = wide_of(norms[extractBits(p.more_offsets, 16u, 8u) + column]);
    let factors = factors_of_dg(dg, d, gain, p.policy, p.eps);
    let size_of_dg = wide_of(dg.m).e + dg.e;
    let far = magnitude(dg.m) != 0u && abs(size_of_dg) >= 60;
    var share_t = factors.share.t;
    if far || factors.a.t != 1.0 || share_t != 1.0 {
        share_t = -share_t;
    }
    let at = extractBits(p.more_offsets, 0u, 8u) + 4u * column;
    means[at] = factors.a.t;
    means[at + 1u] = factors.a.m;
    means[at + 2u] = share_t;
    means[at + 3u] = factors.share.m;
}

fn write_end(column: u32, stat: Stat) {
    let at = extractBits(p.offsets, 16u, 8u) + column;
    let at_second = extractBits(p.offsets, 24u, 8u) + column;
    if OUTCOME == OUTCOME_SCALES {
        // A variance below 2^-126 counts as none.
        let constant = magnitude(stat.s.y) < SMALLEST;
        let scale = 1.0 / sqrt(select(stat.s.y, 1.0, constant));
        first[at] = scale;
        second[at_second] = -stat.s.x * scale;
        return;
    }
    if has(HAS_FIRST) {
        var sum = stat.s.x;
        if has(ACCUMULATE) {
            sum += first[at];
        }
        first[at] = sum;
    }
    if OUTCOME == OUTCOME_SUMS || OUTCOME == OUTCOME_FACTORS {
        if has(HAS_SECOND) {
            var sum = stat.s.y;
            if WIDE {
                sum = f32_of(dot_of(stat));
            }
            if has(ACCUMULATE) {
                sum += second[at_second];
            }
            second[at_second] = sum;
        }
        if OUTCOME == OUTCOME_FACTORS {
            write_factors(column, dot_of(stat));
        }
        return;
    }
    let mean = stat.s.x * p.rate;
    means[extractBits(p.more_offsets, 0u, 8u) + column] = mean;
    if has(HAS_SECOND) {
        let old = second[at_second];
        second[at_second] = old + p.momentum * (mean - old);
    }
}

// batch_sums over its partial results: splits for rows. A workgroup takes CX columns, its invocation t every CY-th
// split from t / CX on.
@compute @workgroup_size(THREADS)
fn batch_finish(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) index: u32,
) {
    let t = ordered(index, THREADS);
    let column = flat(group, groups) * CX + t % CX;
    var stat = Stat(vec2<f32>(), 0.0);
    if column < p.count {
        for (var split = t / CX; split < p.splits; split += CY) { // bounded by the host
            let own = partials[split * p.count + column];
            let rows = f32(min(p.split_length, p.rows - split * p.split_length));
            stat = merge(stat, Stat(vec2<f32>(own.x, own.y), select(rows, own.e, STATISTIC == STATISTIC_DOTS)));
        }
    }
    stat = combine_lanes(stat, t);
    if column < p.count && t < CX {
        write_end(column, stat);
    }
}
