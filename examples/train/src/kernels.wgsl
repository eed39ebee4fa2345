// The example's own kernels, beside those of the crate. A matrix is row-major, a row for each point of the batch; the
// bindings hold exactly the matrices. The shape of the world: points are (r, x, y, z), r the latent number.

override POINTS: u32;

// joined[p] = [h[p], x[p]], the skip connection. One invocation an element.

@group(0) @binding(0) var<storage, read> join_h: array<f32>;
@group(0) @binding(1) var<storage, read> join_x: array<f32>;
@group(0) @binding(2) var<storage, read_write> joined: array<f32>;

@compute @workgroup_size(64)
fn join(@builtin(global_invocation_id) id: vec3<u32>) {
    if id.x >= arrayLength(&joined) {
        return;
    }
    let h_width = arrayLength(&join_h) / POINTS;
    let x_width = arrayLength(&join_x) / POINTS;
    let point = id.x / (h_width + x_width);
    let column = id.x % (h_width + x_width);
    if column < h_width {
        joined[id.x] = join_h[point * h_width + column];
    } else {
        joined[id.x] = join_x[point * x_width + column - h_width];
    }
}

// h = max(h, 0) in place, after a batch normalization. (After a product the crate does it at the product's end.)

@group(0) @binding(0) var<storage, read_write> relu_h: array<f32>;

@compute @workgroup_size(64)
fn relu(@builtin(global_invocation_id) id: vec3<u32>) {
    if id.x < arrayLength(&relu_h) {
        // By the bits: of NaN a comparison may make 0, and hide it.
        let bits = bitcast<u32>(relu_h[id.x]);
        relu_h[id.x] = select(relu_h[id.x], 0.0, bits - 0x80000000u <= 0x7f800000u);
    }
}

// The gradient of h alone, of that of joined = [h, x]: no gradient is wanted of the network's input.

@group(0) @binding(0) var<storage, read> joined_gradient: array<f32>;
@group(0) @binding(1) var<storage, read_write> h_gradient: array<f32>;

@compute @workgroup_size(64)
fn join_backward(@builtin(global_invocation_id) id: vec3<u32>) {
    if id.x >= arrayLength(&h_gradient) {
        return;
    }
    let h_width = arrayLength(&h_gradient) / POINTS;
    let width = arrayLength(&joined_gradient) / POINTS;
    h_gradient[id.x] = joined_gradient[id.x / h_width * width + id.x % h_width];
}

// The loss |f - d|, its mean over the points, and the gradient. d is the distance to the round cross, the union of three
// orthogonal cylinders of radius r, clamped. One workgroup, which sums up in the same order every time.

const THREADS = 64u;
const CLAMP = 0.1;

@group(0) @binding(0) var<storage, read> loss_x: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> loss_f: array<f32>;
@group(0) @binding(2) var<storage, read_write> loss_df: array<f32>;
@group(0) @binding(3) var<storage, read_write> mean_loss: array<f32>;

var<workgroup> sums: array<f32, THREADS>;

@compute @workgroup_size(THREADS)
fn loss(@builtin(local_invocation_index) thread: u32) {
    var sum = 0.0;
    for (var p = thread; p < POINTS; p += THREADS) {
        let point = loss_x[p];
        let square = point.yzw * point.yzw;
        let nearest = min(square.y + square.z, min(square.x + square.z, square.x + square.y));
        let distance = clamp(sqrt(nearest) - point.x, -CLAMP, CLAMP);
        let error = loss_f[p] - distance;
        sum += abs(error);
        loss_df[p] = sign(error) / f32(POINTS);
    }
    sums[thread] = sum;
    for (var half = THREADS / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if thread < half {
            sums[thread] += sums[thread + half];
        }
    }
    if thread == 0u {
        mean_loss[0] = sums[0] / f32(POINTS);
    }
}
