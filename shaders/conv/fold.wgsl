// dx of a convolution whose padding is not zeros, out of the gradient of its padded input: each element is the sum, in
// order, over all padded positions at which it was read.
// slot result = product/result_scalar
// import numbers/storage

// Of planes (height, width), one after another.
struct Params {
    begin: u32, // the elements of dx in this dispatch, counted from the first one that is bound
    end: u32,
    height: u32,
    width: u32,
    padded_height: u32,
    padded_width: u32,
    before_y: u32, // padded positions before the first one
    before_x: u32,
    padded_first: u32, // the first element within its binding
    dx_first: u32,
}

var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> padded: array<f32>;

override REPLICATED: bool = false; // else reflected

const THREADS = 64u;

// The positions along an axis that are read at one of its own: behind each other, or in up to three places, the
// mirror's images before and behind it.
struct Run {
    first: u32,
    count: u32,
}

fn run(at: u32, size: u32, before: u32, padded_size: u32) -> Run {
    let own = before + at;
    if REPLICATED {
        let first = select(own, 0u, at == 0u);
        return Run(first, select(own, padded_size - 1u, at + 1u == size) + 1u - first);
    }
    let is_left = at > 0u && at <= before;
    let is_right = at + 1u < size && before + 2u * (size - 1u) - at < padded_size;
    return Run(select(own, before - at, is_left), 1u + u32(is_left) + u32(is_right));
}

// The i-th of them.
fn place(r: Run, i: u32, at: u32, size: u32, before: u32) -> u32 {
    let own = before + at;
    if REPLICATED {
        return r.first + i;
    }
    if i == 0u {
        return r.first;
    }
    return select(before + 2u * (size - 1u) - at, own, i == 1u && r.first < own);
}

@compute @workgroup_size(THREADS)
fn fold(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) index: u32,
) {
    let e = p.begin + flat(group, groups) * THREADS + ordered(index, THREADS);
    if e >= p.end {
        return;
    }
    let plane = e / (p.height * p.width);
    let at = e - plane * (p.height * p.width);
    let y = at / p.width;
    let x = at - y * p.width;
    let rows = run(y, p.height, p.before_y, p.padded_height);
    let columns = run(x, p.width, p.before_x, p.padded_width);
    var sum = 0.0;
    for (var i = 0u; i < rows.count; i += 1u) { // rows.count * (1 + columns.count) iterations, MAX_ITERATIONS at most
        let row = plane * p.padded_height + place(rows, i, y, p.height, p.before_y);
        for (var j = 0u; j < columns.count; j += 1u) {
            sum += padded[p.padded_first + row * p.padded_width + place(columns, j, x, p.width, p.before_x)];
        }
    }
    put_element(p.dx_first + e, sum);
}
