// The gradients of a weight in one dispatch, for contiguous rows that a workgroup can hold:
//
//   dg = sum dw * (v / n̂)        dv = g / n̂ * (dw - dg * (v / d))
//
// dw is the sum of some pieces, each shaped as v, that lie one after another. They are added up in that order and read
// once: the lanes of a row hold up to HELD units of the sum each, in registers. `out` is dg, w is dv.
// import weight/again
//
// Rows of whole units (WHOLE) are read in units. All others are read element by element, as units of one element, and
// dv is f32 and written word by word.

override HELD: u32 = 16u; // up to MAX_HELD
override HAS_DV: bool = true;

const MAX_HELD = 16u;

// Pieces that are on their way together.
override AHEAD: u32 = select(1u, 4u, HELD <= 4u);

// dw, of each unit of an invocation: registers, since only constants index them.
var<private> held: array<vec4<f32>, MAX_HELD>;
var<private> held_high: array<vec4<f32>, MAX_HELD>; // units of eight elements

// What the functions below go by: the units first, first + run, .. of which `count` are the invocation's. Those behind
// them repeat the row's first one, and count for nothing.
var<private> member: Member;
var<private> row: u32;
var<private> first: u32;
var<private> run: u32;
var<private> count: u32;
var<private> squares: vec4<f32>; // of v
var<private> products: vec4<f32>; // of dw and v
var<private> factors: NormFactors;

fn v_of(u: u32) -> Unit {
    if UNIT == 1u {
        return Unit(vec4<f32>(v_at(member, u), 0.0, 0.0, 0.0), vec4<f32>());
    }
    return v_unit(member, u);
}

fn dw_of(u: u32) -> Unit {
    if UNIT == 1u {
        return Unit(vec4<f32>(dw_at(member, u), 0.0, 0.0, 0.0), vec4<f32>());
    }
    return dw_unit(member, u);
}

fn dv_of(u: u32) -> Unit {
    if UNIT == 1u {
        return Unit(vec4<f32>(w_at(member, u), 0.0, 0.0, 0.0), vec4<f32>());
    }
    return w_unit(member, u);
}

fn put_dv(u: u32, x: Unit) {
    if UNIT == 1u {
        let which = vec4<u32>(0u, 1u, 2u, 3u) == vec4<u32>(u % 4u);
        put_words(member.w, u / 4u, vec4<u32>(bitcast<u32>(x.low.x)), which);
    } else {
        put_unit(member, u, x);
    }
}

fn unit_at(k: u32) -> u32 {
    return select(row, first + k * run, k < count);
}

// Unit k of a piece, which begins `piece` units behind the first one.
fn load(k: u32, piece: u32) {
    if k < HELD {
        let x = dw_of(piece + unit_at(k));
        held[k] += x.low;
        if UNIT == 8u {
            held_high[k] += x.high;
        }
    }
}

// All that an invocation holds. Written out, since drivers unroll a loop of such a length only by luck.
fn load_all(piece: u32) {
    load(0u, piece); load(1u, piece); load(2u, piece); load(3u, piece);
    load(4u, piece); load(5u, piece); load(6u, piece); load(7u, piece);
    load(8u, piece); load(9u, piece); load(10u, piece); load(11u, piece);
    load(12u, piece); load(13u, piece); load(14u, piece); load(15u, piece);
}

fn add_terms(v: vec4<f32>, dw: vec4<f32>, there: bool) {
    if !KNOWN {
        squares += select(vec4<f32>(), v * v, there);
    }
    products += select(vec4<f32>(), v * dw, there);
}

fn sum_up(k: u32) {
    if k < HELD {
        let x = v_of(unit_at(k));
        add_terms(x.low, held[k], k < count);
        if UNIT == 8u {
            add_terms(x.high, held_high[k], k < count);
        }
    }
}

fn sum_up_all() {
    sum_up(0u); sum_up(1u); sum_up(2u); sum_up(3u);
    sum_up(4u); sum_up(5u); sum_up(6u); sum_up(7u);
    sum_up(8u); sum_up(9u); sum_up(10u); sum_up(11u);
    sum_up(12u); sum_up(13u); sum_up(14u); sum_up(15u);
}

// What is read of a unit to write dv.
struct Inputs {
    v: Unit,
    dv: Unit, // as it stands
}

fn inputs_of(k: u32) -> Inputs {
    var found = Inputs();
    if k < HELD {
        found.v = v_of(unit_at(k));
        if ADD {
            found.dv = dv_of(unit_at(k));
        }
    }
    return found;
}

fn four_of_dv(dw: vec4<f32>, v: vec4<f32>, dv: vec4<f32>) -> vec4<f32> {
    let f = factors;
    let result = gradient_of_v(
        dw, v, vec4<f32>(f.a.t), vec4<f32>(f.a.m), vec4<f32>(f.share.t), vec4<f32>(f.share.m),
    );
    if ADD {
        return result + dv;
    }
    return result;
}

fn store(k: u32, x: Inputs) {
    if k < HELD {
        if k < count {
            var result = Unit(four_of_dv(held[k], x.v.low, x.dv.low), vec4<f32>());
            if UNIT == 8u {
                result.high = four_of_dv(held_high[k], x.v.high, x.dv.high);
            }
            put_dv(first + k * run, result);
        }
    }
}

// All that is read comes before all that is written, so that the reads are on their way together.
fn store_four(k: u32) {
    if k < HELD {
        let a = inputs_of(k);
        let b = inputs_of(k + 1u);
        let c = inputs_of(k + 2u);
        let d = inputs_of(k + 3u);
        store(k, a);
        store(k + 1u, b);
        store(k + 2u, c);
        store(k + 3u, d);
    }
}

// The invocation's squares once more, of v times `scale`.
fn squares_of_units(scale: f32) -> f32 {
    var sum = 0.0;
    for (var k = 0u; k < count; k += 1u) { // HELD iterations
        sum += squares_again(member, (first + k * run) * UNIT, 1u, UNIT, scale); // 8 iterations
    }
    return sum;
}

// And its products, each with an exponent of its own.
fn products_of_units(pieces: vec2<u32>) -> Wide {
    var sum = Wide(0.0, NOTHING);
    for (var k = 0u; k < count; k += 1u) { // HELD iterations, of those within
        let u = first + k * run;
        let x = v_of(u);
        var y = Unit();
        for (var s = 0u; s < pieces.x; s += 1u) { // as many iterations as pieces
            let piece = dw_of(u + s * pieces.y);
            y.low += piece.low;
            y.high += piece.high;
        }
        for (var i = 0u; i < 4u; i += 1u) { // 4 iterations
            sum = sum_of(sum, product_of(wide_of(x.low[i]), wide_of(y.low[i])));
            if UNIT == 8u {
                sum = sum_of(sum, product_of(wide_of(x.high[i]), wide_of(y.high[i])));
            }
        }
    }
    return sum;
}

@compute @workgroup_size(THREADS)
fn held_gradients(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) index: u32,
) {
    let t = ordered(index, THREADS);
    let id = flat(group, groups);
    if !is_item(id) {
        return;
    }
    let item = sum_item(id);
    let pieces = pieces_of_dw();
    member = item.member;
    let policy = policy_of(member);
    let lanes = 1u << item.lane_bits;
    let lane = t & (lanes - 1u);
    run = 1u << item.run_bits;
    // Lanes behind the last row come along with it, and write nothing.
    let exists = (t >> item.lane_bits) < item.count;
    let r = min(t >> item.lane_bits, item.count - 1u);
    let j = item.norm + r;
    let length = item.length / UNIT;
    row = item.first / UNIT + r * length;
    let each = (length + lanes - 1u) >> item.lane_bits; // at most HELD
    let own = (lane >> item.run_bits) * (run * each) + (lane & (run - 1u));
    first = row + own;
    // Units own, own + run, .. below the row's length, `each` of them at most.
    count = min(each, (max(length, own) - own + run - 1u) >> item.run_bits);

    var s = 0u;
    for (; AHEAD == 4u && s + 3u < pieces.x; s += 4u) { // pieces / 4 iterations
        load_all(s * pieces.y);
        load_all((s + 1u) * pieces.y);
        load_all((s + 2u) * pieces.y);
        load_all((s + 3u) * pieces.y);
    }
    for (; s < pieces.x; s += 1u) { // as many iterations as pieces
        load_all(s * pieces.y);
    }
    sum_up_all();

    // That products are to be formed again shows in the squares of all lanes, as in row_sums.wgsl.
    var own_squares = select(total_of(squares), 1.0, KNOWN);
    let own_products = total_of(products);
    if count > 0u && !is_safe(own_products) {
        own_squares = bitcast<f32>(INFINITY - 1u);
    }
    let plain_squares = sum_of_lanes(own_squares, t, lanes, 0u);
    var sums_of_row = WideSums(Wide(plain_squares, 0), Wide(sum_of_lanes(own_products, t, lanes, 1u), 0));
    let is_plain = scale_exponent(plain_squares) == 0;
    // Rarely, where a row is too near the ends of f32's range; lanes of other rows come along.
    if any_of_lanes(select(1u, 0u, is_plain || !exists), t) != 0u {
        // Which scale is safe, the squares alone say.
        var up = 0;
        var again = 0.0;
        for (var go = 0u; go < 2u; go += 1u) { // 2 iterations
            up = select(scale_exponent(again), 0, go == 0u);
            again = sum_of_lanes(squares_of_units(exp2i(up)), t, lanes, 2u + go);
        }
        let wide_products = combine_for_all(products_of_units(pieces), t, lanes);
        if !is_plain {
            sums_of_row = WideSums(Wide(again, -2 * up), wide_products);
        }
    }

    var d: Wide;
    if KNOWN {
        d = known_norm(member, j);
    } else {
        d = divisor_of(sums_of_row.squares, policy, member.eps);
    }
    factors = factors_of_products(sums_of_row.products, d, gain_of(member, j), policy, member.eps);
    if !exists {
        return;
    }
    if lane == 0u && (member.flags & HAS_BESIDE) != 0u {
        out[member.out + j] = select(0.0, out[member.out + j], ADD) + f32_of(factors.dg);
    }
    if HAS_DV {
        store_four(0u);
        store_four(4u);
        store_four(8u);
        store_four(12u);
    }
}
