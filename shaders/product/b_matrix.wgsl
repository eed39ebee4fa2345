// Operand B of a product as a matrix: with k along its rows, (n, stride) or, with B_ALONG_K = false, (k, stride).
// slot params = product/params
// slot b = product/b_scalar
// import product/block

override B_ALONG_K: bool = true;

const B_WHOLE = select(4u, 1u, B_MAY_END); // elements that are there or not together
// The places that an invocation reads are found once, before the loop.
override B_FOUND: bool = WHOLE_STEPS && !B_MAY_END;

fn b_place(n: u32, k: u32) -> u32 {
    let row = b_rows(vec4<u32>(n)).x;
    return extractBits(p.offsets, 8u, 8u) + select(k * b_stride() + row, row * b_stride() + k, B_ALONG_K);
}

// B[n .. n + 3, k .. k + 3]; past the edges anything. Without branches, so that the reads do not wait for each other.
fn b_block(n: u32, k: u32, k_end: u32) -> Block {
    if B_ALONG_K {
        let last = p.columns - 1u;
        let at = min(k, k_end - B_WHOLE);
        let left = k_end - at;
        return Block(
            b_raw(b_place(min(n, last), at), left), b_raw(b_place(min(n + 1u, last), at), left),
            b_raw(b_place(min(n + 2u, last), at), left), b_raw(b_place(min(n + 3u, last), at), left),
        );
    }
    let last = k_end - 1u;
    let at = min(n, p.columns - B_WHOLE);
    let left = p.columns - at;
    return Block(
        b_raw(b_place(at, min(k, last)), left), b_raw(b_place(at, min(k + 1u, last)), left),
        b_raw(b_place(at, min(k + 2u, last)), left), b_raw(b_place(at, min(k + 3u, last)), left),
    );
}

// Called once for the invocation's block `stage` of a tile: its rows from n on, its steps from dk on in every round.
// Rows past the edge repeat the last ones.
fn b_begin(stage: u32, n: u32, dk: u32) {
    if !B_FOUND {
        return;
    }
    let four = vec4<u32>(0u, 1u, 2u, 3u);
    if B_ALONG_K {
        places[stage] = b_rows(min(vec4<u32>(n) + four, vec4<u32>(p.columns - 1u))) * b_stride() + dk;
    } else {
        places[stage] = (dk + four) * b_stride() + b_rows(vec4<u32>(min(n, p.columns - 4u)));
    }
    places[stage] += extractBits(p.offsets, 8u, 8u);
}

// Reads the block in the round from k0 on, as it is stored; past the edges anything.
fn b_fetch(stage: u32, n: u32, dk: u32, k0: u32, k_end: u32) -> Block {
    if !B_FOUND {
        return b_block(n, k0 + dk, k_end);
    }
    let at = places[stage] + min(k0, k_end - BK) * select(b_stride(), 1u, B_ALONG_K);
    return Block(b_raw(at.x, 4u), b_raw(at.y, 4u), b_raw(at.z, 4u), b_raw(at.w, 4u));
}

// What was read: a column for each step, across four rows.
fn b_steps(stage: u32, block: Block) -> mat4x4<f32> {
    let read = mat4x4<f32>(b_values(block[0]), b_values(block[1]), b_values(block[2]), b_values(block[3]));
    if B_ALONG_K {
        return transpose(read);
    }
    return read;
}

fn b_along_k(n: u32, k: u32, left: u32) -> vec4<f32> {
    if B_ALONG_K && !B_MAY_END {
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

var<private> b_from: array<u32, 8>; // of the columns of a lane of subgroup.wgsl

fn b_lane_begin(c: u32, n: u32) {
    b_from[c] = b_place(min(n, p.columns - select(B_WHOLE, 1u, B_ALONG_K)), 0u);
}

// Steps k to k + 3, of which `left` are there, of the lane's four columns from its c-th on, which is column n.
fn b_lane_steps(c: u32, n: u32, k: u32, left: u32) -> mat4x4<f32> {
    if B_ALONG_K {
        let along = select(4u, left, B_MAY_END);
        return transpose(mat4x4<f32>(
            b_four(b_from[c] + k, along), b_four(b_from[c + 1u] + k, along),
            b_four(b_from[c + 2u] + k, along), b_four(b_from[c + 3u] + k, along),
        ));
    }
    let there = select(4u, select(0u, p.columns - n, n < p.columns), B_MAY_END);
    let start = b_from[c] + k * b_stride();
    return mat4x4<f32>(
        b_four(start, select(0u, there, 0u < left)),
        b_four(start + b_stride(), select(0u, there, 1u < left)),
        b_four(start + 2u * b_stride(), select(0u, there, 2u < left)),
        b_four(start + 3u * b_stride(), select(0u, there, 3u < left)),
    );
}
