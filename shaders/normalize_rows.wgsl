// w = g * v / n̂ in one dispatch, for contiguous rows of whole quads that a workgroup can hold: v is read once.
//
// Joined behind held.wgsl. v and w are (rows, length) quads: LANES invocations a row and HELD quads of it each,
// THREADS / LANES rows in a workgroup.

struct Params {
    count: u32,  // rows
    length: u32, // quads of a row, at most LANES * HELD
    firsts: u32, // 8 bits each: the first element of v, w, g within its binding
    policy: u32,
    eps: f32,
    has_gain: u32,
}

var<immediate> p: Params;

override LANES: u32 = 64u; // a power of two up to THREADS
override RUN: u32 = 64u; // neighbouring lanes that read neighbouring quads, see norms.wgsl
override HELD: u32 = 16u; // up to MAX_HELD; length where LANES is 1

var<workgroup> sums: array<f32, 2u * THREADS>;
var<workgroup> left: array<u32, THREADS>; // 1: the row was not plain
var<workgroup> any_left: u32;

alias Held = array<vec4<u32>, MAX_HELD>;

fn squares(words: vec4<u32>, scale: f32) -> vec4<f32> {
    let a = quad_low(words, V_DTYPE) * scale;
    if V_DTYPE == F32 {
        return a * a;
    }
    let b = quad_high(words, V_DTYPE) * scale;
    return a * a + b * b;
}

fn total_of(terms: vec4<f32>) -> f32 {
    return (terms.x + terms.y) + (terms.z + terms.w);
}

// The sum over the lanes of a row, the same in each; `half` is 0 and 1 in turn, so that nobody overwrites what a slower
// lane still reads.
fn sum_of_lanes(own: f32, t: u32, half: u32) -> f32 {
    if LANES == 1u {
        return own;
    }
    sums[half * THREADS + t] = own;
    workgroupBarrier();
    let begin = half * THREADS + t / LANES * LANES;
    if LANES == 2u {
        return sums[begin] + sums[begin + 1u];
    }
    var sum = vec4<f32>();
    for (var lane = begin; lane < begin + LANES; lane += 4u) { // LANES / 4 iterations
        sum += vec4<f32>(sums[lane], sums[lane + 1u], sums[lane + 2u], sums[lane + 3u]);
    }
    return total_of(sum);
}

fn scaled_quad(words: vec4<u32>, scale: Scale) -> vec4<u32> {
    var high = vec4<f32>();
    if V_DTYPE != F32 {
        high = ((quad_high(words, V_DTYPE) * scale.t) * scale.m) * scale.t;
    }
    return quad_of(((quad_low(words, V_DTYPE) * scale.t) * scale.m) * scale.t, high, V_DTYPE);
}

fn plainly_scaled_quad(words: vec4<u32>, factor: f32) -> vec4<u32> {
    var high = vec4<f32>();
    if V_DTYPE != F32 {
        high = quad_high(words, V_DTYPE) * factor;
    }
    return quad_of(quad_low(words, V_DTYPE) * factor, high, V_DTYPE);
}

// The quads of a lane: first, first + RUN, .. below end, HELD of them at most. Past the last row they are those of the
// last row, and not written.
struct Part {
    row: u32,
    exists: bool,
    first: u32,
    end: u32,
}

fn part_of(id: u32, t: u32) -> Part {
    let wanted = id * (THREADS / LANES) + t / LANES;
    let row = min(wanted, p.count - 1u);
    let lane = t % LANES;
    let first = row * p.length + lane / RUN * (RUN * HELD) + lane % RUN;
    return Part(row, wanted < p.count, first, (row + 1u) * p.length);
}

fn gain_of(row: u32) -> f32 {
    if p.has_gain == 0u {
        return 1.0;
    }
    return g[extractBits(p.firsts, 16u, 8u) + row];
}

fn squares_again(part: Part, scale: f32) -> f32 {
    var sum = vec4<f32>();
    for (var q = part.first; q < min(part.end, part.first + RUN * HELD); q += RUN) { // HELD iterations
        sum += squares(quad_at(q), scale);
    }
    return total_of(sum);
}

@compute @workgroup_size(THREADS)
fn normalize_rows(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) t: u32,
) {
    let part = part_of(flat(group, groups), t);
    var held: Held;
    var sum = vec4<f32>();
    for (var k = 0u; k < HELD; k += 1u) { // HELD iterations
        let q = part.first + k * RUN;
        if LANES == 1u {
            held[k] = quad_at(q);
            sum += squares(held[k], 1.0);
        } else {
            held[k] = quad_at(min(q, part.end - 1u));
            sum += select(vec4<f32>(), squares(held[k], 1.0), q < part.end);
        }
    }
    let norm = plain_norm(sum_of_lanes(total_of(sum), t, 0u), p.policy, p.eps);
    let factor = gain_of(part.row) / norm;
    let is_plain = norm != 0.0 && is_normal(factor);
    if is_plain && part.exists {
        for (var k = 0u; k < HELD; k += 1u) { // HELD iterations
            let q = part.first + k * RUN;
            if LANES == 1u || q < part.end {
                put(q, plainly_scaled_quad(held[k], factor));
            }
        }
    }

    // Rarely, and for all rows of the workgroup together: the ends of f32's range.
    let mine_left = select(1u, 0u, is_plain || !part.exists);
    left[t] = mine_left;
    workgroupBarrier();
    if t == 0u {
        var found = 0u;
        for (var i = 0u; i < THREADS; i += LANES) { // THREADS / LANES iterations
            found |= left[i];
        }
        any_left = found;
    }
    if workgroupUniformLoad(&any_left) == 0u {
        return;
    }
    let up = lift(sum_of_lanes(squares_again(part, 1.0), t, 1u));
    let again = sum_of_lanes(squares_again(part, exp2i(up)), t, 0u);
    let scale = scale_of(quotient(wide(gain_of(part.row)), effective_norm(Wide(again, -2 * up), p.policy, p.eps)));
    let end = select(0u, part.end, mine_left == 1u);
    for (var q = part.first; q < min(end, part.first + RUN * HELD); q += RUN) { // HELD iterations
        put(q, scaled_quad(quad_at(q), scale));
    }
}
