// The gradient of snake in place: d, (image, channel, position), becomes d times the derivative of snake at x.
// An invocation has a word of d, one element or two.
// import numbers/storage
// import product/snake

struct Params {
    begin: u32, // words of d
    end: u32,
    count: u32, // elements
    channels: u32,
    positions: u32,
    x_first: u32, // the first elements within their bindings
    alpha_first: u32,
    d_first: u32,
}

var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> x: array<u32>; // words of X_DTYPE
@group(0) @binding(1) var<storage, read> alpha: array<u32>; // (channels), words of ALPHA_DTYPE
@group(0) @binding(2) var<storage, read_write> d: array<u32>; // words of D_DTYPE

override X_DTYPE: u32 = F32;
override ALPHA_DTYPE: u32 = F32;
override D_DTYPE: u32 = F32;

const THREADS = 128u;

fn slope(e: u32) -> f32 {
    let of_x = p.x_first + e;
    let of_alpha = p.alpha_first + e / p.positions % p.channels;
    let own = unpack(alpha[word_holding(of_alpha, ALPHA_DTYPE)], of_alpha, ALPHA_DTYPE);
    return snake_slope(vec4<f32>(unpack(x[word_holding(of_x, X_DTYPE)], of_x, X_DTYPE)), own).x;
}

@compute @workgroup_size(THREADS)
fn snake_gradient(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) index: u32,
) {
    let own = p.begin + flat(group, groups) * THREADS + ordered(index, THREADS);
    if own >= p.end {
        return;
    }
    if D_DTYPE == F32 {
        let at = p.d_first + own;
        d[at] = bitcast<u32>(bitcast<f32>(d[at]) * slope(own));
        return;
    }
    // A packed tensor starts with a whole word; behind its last element stays what is there.
    let at = p.d_first / 2u + own;
    let word = d[at];
    let low = pack(unpack(word, 0u, D_DTYPE) * slope(2u * own), D_DTYPE);
    var high = word >> 16u;
    if 2u * own + 1u < p.count {
        high = pack(unpack(word, 1u, D_DTYPE) * slope(2u * own + 1u), D_DTYPE);
    }
    d[at] = low | (high << 16u);
}
