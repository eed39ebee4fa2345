// Operand A of a product as a matrix: with k along its rows, (m, stride) or, with A_ALONG_K = false, (k, stride).
// slot params = product/params
// slot a = product/a_scalar
// import product/block

override A_ALONG_K: bool = true;

const A_WHOLE = select(4u, 1u, A_MAY_END); // elements that are there or not together
// The places that an invocation reads are found once, before the loop.
override A_FOUND: bool = WHOLE_STEPS && !A_MAY_END;

fn a_place(m: u32, k: u32) -> u32 {
    return extractBits(p.offsets, 0u, 8u) + select(k * p.a_stride + m, m * p.a_stride + k, A_ALONG_K);
}

// A[m .. m + 3, k .. k + 3]; past the edges anything. Without branches, so that the reads do not wait for each other.
fn a_block(m: u32, k: u32, k_end: u32) -> Block {
    if A_ALONG_K {
        let last = p.rows - 1u;
        let at = min(k, k_end - A_WHOLE);
        let left = k_end - at;
        return Block(
            a_raw(a_place(min(m, last), at), left), a_raw(a_place(min(m + 1u, last), at), left),
            a_raw(a_place(min(m + 2u, last), at), left), a_raw(a_place(min(m + 3u, last), at), left),
        );
    }
    let last = k_end - 1u;
    let at = min(m, p.rows - A_WHOLE);
    let left = p.rows - at;
    return Block(
        a_raw(a_place(at, min(k, last)), left), a_raw(a_place(at, min(k + 1u, last)), left),
        a_raw(a_place(at, min(k + 2u, last)), left), a_raw(a_place(at, min(k + 3u, last)), left),
    );
}

// Called once for the invocation's block `stage` of a tile: its rows from m on, its steps from dk on in every round.
// Rows past the edge repeat the last ones.
fn a_begin(stage: u32, m: u32, dk: u32) {
    if !A_FOUND {
        return;
    }
    let four = vec4<u32>(0u, 1u, 2u, 3u);
    if A_ALONG_K {
        places[stage] = min(vec4<u32>(m) + four, vec4<u32>(p.rows - 1u)) * p.a_stride + dk;
    } else {
        places[stage] = (dk + four) * p.a_stride + min(m, p.rows - 4u);
    }
    places[stage] += extractBits(p.offsets, 0u, 8u);
}

// Reads the block in the round from k0 on, as it is stored; past the edges anything.
fn a_fetch(stage: u32, m: u32, dk: u32, k0: u32, k_end: u32) -> Block {
    if !A_FOUND {
        return a_block(m, k0 + dk, k_end);
    }
    let at = places[stage] + min(k0, k_end - BK) * select(p.a_stride, 1u, A_ALONG_K);
    return Block(a_raw(at.x, 4u), a_raw(at.y, 4u), a_raw(at.z, 4u), a_raw(at.w, 4u));
}

// What was read: a column for each step, across four rows.
fn a_steps(stage: u32, block: Block) -> mat4x4<f32> {
    let read = mat4x4<f32>(a_values(block[0]), a_values(block[1]), a_values(block[2]), a_values(block[3]));
    if A_ALONG_K {
        return transpose(read);
    }
    return read;
}

// Where a lane of subgroup.wgsl reads; past the edge the last rows.
var<private> a_from: array<u32, 8>;

// The rows of a lane's read r, from m on, at the step that it reads first.
fn a_lane_begin(r: u32, m: u32, step: u32) {
    a_from[r] = a_place(m, step);
}

// Across: the read's four rows, of which `there` are there, `k` steps on. `step` is the lane's own step.
fn a_lane_across(r: u32, k: u32, step: u32, there: u32) -> vec4<f32> {
    return a_four(a_from[r] + k * p.a_stride, there);
}

// Along k: four steps of the read's row, of which `left` are there.
fn a_lane_along(r: u32, k: u32, left: u32) -> vec4<f32> {
    return a_four(a_from[r] + k, left);
}

// A[m, k .. k + 3], zero from the `left`-th on, however A is stored. For what is rarely done: where k runs down the
// columns element by element, which keeps the code small.
fn a_along_k(m: u32, k: u32, left: u32) -> vec4<f32> {
    if A_ALONG_K && !A_MAY_END {
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
