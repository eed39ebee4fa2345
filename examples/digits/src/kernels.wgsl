// The example's own kernels, beside those of the crate: the choice of a batch, and the loss. All is f32: the numbers of
// images, and labels, are whole numbers in it. The bindings hold exactly what is named.

// x[b] = images[batch[b]]. One invocation a pixel.

const PIXELS = 64u;

@group(0) @binding(0) var<storage, read> images: array<f32>;
@group(0) @binding(1) var<storage, read> chosen: array<f32>;
@group(0) @binding(2) var<storage, read_write> x: array<f32>;

@compute @workgroup_size(64)
fn gather(@builtin(global_invocation_id) id: vec3<u32>) {
    if id.x < arrayLength(&x) {
        x[id.x] = images[u32(chosen[id.x / PIXELS]) * PIXELS + id.x % PIXELS];
    }
}

// Softmax and cross-entropy: result = [mean over b of -log p[b, label], the share of images whose label has the largest
// logit], d_logits = (p - one-hot) / B. One workgroup, which sums up in the same order every time.

const CLASSES = 10u;
const THREADS = 64u;

@group(0) @binding(0) var<storage, read> logits: array<f32>;
@group(0) @binding(1) var<storage, read> labels: array<f32>;
@group(0) @binding(2) var<storage, read> batch: array<f32>;
@group(0) @binding(3) var<storage, read_write> d_logits: array<f32>;
@group(0) @binding(4) var<storage, read_write> result: array<f32>;

var<workgroup> sums: array<vec2<f32>, THREADS>;

@compute @workgroup_size(THREADS)
fn loss(@builtin(local_invocation_index) thread: u32) {
    let count = arrayLength(&batch);
    var sum = vec2<f32>();
    for (var b = thread; b < count; b += THREADS) {
        let first = b * CLASSES;
        let label = u32(labels[u32(batch[b])]);
        var most = logits[first];
        for (var j = 1u; j < CLASSES; j++) {
            most = max(most, logits[first + j]);
        }
        var total = 0.0;
        var larger = 0u;
        for (var j = 0u; j < CLASSES; j++) {
            total += exp(logits[first + j] - most);
            // Of a NaN no comparison is true: such an image is not told right.
            larger += select(1u, 0u, j == label || logits[first + j] < logits[first + label]);
        }
        for (var j = 0u; j < CLASSES; j++) {
            let p = exp(logits[first + j] - most) / total;
            d_logits[first + j] = (p - select(0.0, 1.0, j == label)) / f32(count);
        }
        sum += vec2<f32>(log(total) + most - logits[first + label], select(0.0, 1.0, larger == 0u));
    }
    sums[thread] = sum;
    for (var half = THREADS / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if thread < half {
            sums[thread] += sums[thread + half];
        }
    }
    if thread == 0u {
        result[0] = sums[0].x / f32(count);
        result[1] = sums[0].y / f32(count);
    }
}
