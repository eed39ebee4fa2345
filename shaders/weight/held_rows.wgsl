// w = g * v / n̂ in one dispatch, for contiguous rows of whole quads that a workgroup can hold: v is read once.
// slot access = weight/quads
// import weight/sums
//
// v and w have one storage type: the lanes of a row hold up to HELD quads of it each, in registers. Compiled without
// index checks: see src/unchecked.rs.

override IN_PLACE: bool = false; // v is w
override HELD: u32 = 16u; // up to MAX_HELD
override FULL: bool = false; // all lanes hold HELD quads of a row

const MAX_HELD = 16u;

// The quads of an invocation: registers, since only constants index it.
var<private> held: array<vec4<u32>, MAX_HELD>;

// What load and store go by: the quads first, first + run, .. of which `count` are the invocation's.
var<private> member: Member;
var<private> dtype: u32;
var<private> first: u32;
var<private> run: u32;
var<private> count: u32;
var<private> sum: vec4<f32>; // of squares
var<private> factor: f32;

fn quad_at(q: u32) -> vec4<u32> {
    if IN_PLACE {
        return w_quad(member.w, q);
    }
    return v_quad(member.v, q);
}

fn squares(words: vec4<u32>, scale: f32) -> vec4<f32> {
    let a = quad_low(words, dtype) * scale;
    if dtype == F32 {
        return a * a;
    }
    let b = quad_high(words, dtype) * scale;
    return a * a + b * b;
}

fn scaled_quad(words: vec4<u32>, scale: Scale) -> vec4<u32> {
    var high = vec4<f32>();
    if dtype != F32 {
        high = ((quad_high(words, dtype) * scale.t) * scale.m) * scale.t;
    }
    return quad_of(((quad_low(words, dtype) * scale.t) * scale.m) * scale.t, high, dtype);
}

fn plainly_scaled_quad(words: vec4<u32>) -> vec4<u32> {
    var high = vec4<f32>();
    if dtype != F32 {
        high = quad_high(words, dtype) * factor;
    }
    return quad_of(quad_low(words, dtype) * factor, high, dtype);
}

// Quad k: held, and its squares added up. Those behind the last one repeat the row's first one.
fn load(k: u32, row: u32) {
    if k < HELD {
        held[k] = quad_at(select(row, first + k * run, FULL || k < count));
        sum += select(vec4<f32>(), squares(held[k], 1.0), FULL || k < count);
    }
}

fn store(k: u32) {
    if k < HELD {
        if FULL || k < count {
            put_quad(member.w, first + k * run, plainly_scaled_quad(held[k]));
        }
    }
}

// All that an invocation holds. Written out, since drivers unroll a loop of such a length only by luck.
fn load_all(row: u32) {
    load(0u, row); load(1u, row); load(2u, row); load(3u, row);
    load(4u, row); load(5u, row); load(6u, row); load(7u, row);
    load(8u, row); load(9u, row); load(10u, row); load(11u, row);
    load(12u, row); load(13u, row); load(14u, row); load(15u, row);
}

fn store_all() {
    store(0u); store(1u); store(2u); store(3u);
    store(4u); store(5u); store(6u); store(7u);
    store(8u); store(9u); store(10u); store(11u);
    store(12u); store(13u); store(14u); store(15u);
}

@compute @workgroup_size(THREADS)
fn held_rows(
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
    member = item.member;
    dtype = type_of(member, OF_V, V_DTYPE);
    let quad = select(8u, 4u, dtype == F32); // elements
    let lanes = 1u << item.lane_bits;
    let lane = t & (lanes - 1u);
    let policy = policy_of(member);
    run = 1u << item.run_bits;
    // Lanes behind the last row come along with it, and write nothing.
    let exists = (t >> item.lane_bits) < item.count;
    let r = min(t >> item.lane_bits, item.count - 1u);
    let length = item.length / quad;
    let row = item.first / quad + r * length;
    let each = (length + lanes - 1u) >> item.lane_bits; // at most HELD
    let own = (lane >> item.run_bits) * (run * each) + (lane & (run - 1u));
    first = row + own;
    // Quads own, own + run, .. below the row's length, `each` of them at most.
    count = min(each, (max(length, own) - own + run - 1u) >> item.run_bits);
    sum = vec4<f32>();
    load_all(row);
    let plain_sum = sum_of_lanes(total_of(sum), t, lanes, 0u);
    let norm = plain_norm(plain_sum, policy, member.eps);
    factor = gain_of(member, item.norm + r) / norm;
    let is_plain = norm != 0.0 && is_normal(factor);
    if is_plain && exists {
        store_all();
    }
    if any_of_lanes(select(1u, 0u, is_plain || !exists), t) == 0u {
        return;
    }
    // Rarely, where a row is too near the ends of f32's range; lanes of other rows come along.
    let up = scale_exponent(plain_sum);
    var again = vec4<f32>();
    for (var k = 0u; k < count; k += 1u) { // HELD iterations
        again += squares(quad_at(first + k * run), exp2i(up));
    }
    let wide_sum = Wide(sum_of_lanes(total_of(again), t, lanes, 1u), -2 * up);
    let wide_norm = effective_norm(wide_sum, policy, member.eps);
    let scale = scale_of(quotient(wide_of(gain_of(member, item.norm + r)), wide_norm));
    for (var k = select(0u, count, is_plain || !exists); k < count; k += 1u) { // HELD iterations
        put_quad(member.w, first + k * run, scaled_quad(quad_at(first + k * run), scale));
    }
}
