// The sum of dy over images and positions, channel j of (image, channel, position): dbias_j. With SNAKE that of dy
// times the derivative of snake at x by α_j: dα_j. A workgroup a channel.
// import numbers/storage
// import product/snake

struct Params {
    channels: u32, // in this dispatch, and so are positions and images
    positions: u32,
    images: u32,
    image: u32,    // elements from an image to the next
    channel: u32,  // and from a channel to the next
    dy_first: u32, // the first element within its binding
    out_first: u32,
    x_first: u32,
    alpha_first: u32,
}

var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> dy: array<u32>; // words of DY_DTYPE
@group(0) @binding(1) var<storage, read_write> out: array<f32>; // (channels)
@group(0) @binding(2) var<storage, read> x: array<u32>; // as dy, words of X_DTYPE
@group(0) @binding(3) var<storage, read> alpha: array<u32>; // (channels), words of ALPHA_DTYPE

override DY_DTYPE: u32 = F32;
override SNAKE: bool = false;
override X_DTYPE: u32 = F32;
override ALPHA_DTYPE: u32 = F32;
override ADD: bool = false; // add to what is there

const THREADS = 128u;
const PIECE = 32u; // terms that are added up before they meet the sum: a long sum of one sign loses bits with each

var<workgroup> sums: array<f32, THREADS>;

fn element(channel: u32, i: u32) -> f32 {
    let image = i / p.positions;
    let e = image * p.image + channel * p.channel + (i - image * p.positions);
    let at = p.dy_first + e;
    let d = unpack(dy[word_holding(at, DY_DTYPE)], at, DY_DTYPE);
    if !SNAKE {
        return d;
    }
    let of_x = p.x_first + e;
    let of_alpha = p.alpha_first + channel;
    let own = unpack(alpha[word_holding(of_alpha, ALPHA_DTYPE)], of_alpha, ALPHA_DTYPE);
    return d * snake_by_alpha(vec4<f32>(unpack(x[word_holding(of_x, X_DTYPE)], of_x, X_DTYPE)), own).x;
}

@compute @workgroup_size(THREADS)
fn channel_sums(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) index: u32,
) {
    let t = ordered(index, THREADS);
    let channel = flat(group, groups);
    if channel >= p.channels {
        return;
    }
    let count = p.images * p.positions;
    var total = 0.0;
    var piece = 0.0;
    var left = PIECE;
    for (var i = t; i < count; i += THREADS) { // count / THREADS iterations
        piece += element(channel, i);
        left -= 1u;
        if left == 0u {
            total += piece;
            piece = 0.0;
            left = PIECE;
        }
    }
    sums[t] = total + piece;
    for (var half = THREADS / 2u; half > 0u; half /= 2u) { // 7 iterations
        workgroupBarrier();
        if t < half {
            sums[t] += sums[t + half];
        }
    }
    if t == 0u {
        let before = select(0.0, out[p.out_first + channel], ADD);
        out[p.out_first + channel] = before + sums[0];
    }
}
