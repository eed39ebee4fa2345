// The example's own kernels, beside those of the crate: what a step reads of the text, the loss, and the clipping of
// the gradients. All is f32: codes of characters, and places in the text, are whole numbers in it. The bindings hold
// exactly what is named. A row of x is (step of the sequence, sequence).

override CLASSES: u32 = 1u;
override SEQUENCES: u32 = 1u;

// x: a one at the character of each row. next: the character behind it. The part of the text that is read is a ring,
// and the sequences start in it one after another. One invocation an element of x.

@group(0) @binding(0) var<storage, read> text: array<f32>;
// Where the part starts in the text, its characters, those from one sequence to the next, and which step it is.
@group(0) @binding(1) var<storage, read> part: array<f32>;
@group(0) @binding(2) var<storage, read_write> x: array<f32>;
@group(0) @binding(3) var<storage, read_write> next: array<f32>;

@compute @workgroup_size(64)
fn gather(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let at = id.y * groups.x * 64u + id.x;
    if at >= arrayLength(&x) {
        return;
    }
    let row = at / CLASSES;
    let code = at % CLASSES;
    let first = u32(part[0]);
    let count = u32(part[1]);
    let steps = arrayLength(&next) / SEQUENCES;
    let place = row % SEQUENCES * u32(part[2]) + u32(part[3]) * steps + row / SEQUENCES;
    x[at] = select(0.0, 1.0, u32(text[first + place % count]) == code);
    if code == 0u {
        next[row] = text[first + (place + 1u) % count];
    }
}

// Softmax and cross-entropy: losses = -log p[next], d_logits = (p - one-hot) / rows. One invocation a row.

@group(0) @binding(0) var<storage, read> logits: array<f32>;
@group(0) @binding(1) var<storage, read> labels: array<f32>;
@group(0) @binding(2) var<storage, read_write> d_logits: array<f32>;
@group(0) @binding(3) var<storage, read_write> losses: array<f32>;

@compute @workgroup_size(64)
fn loss(@builtin(global_invocation_id) id: vec3<u32>) {
    let row = id.x;
    let rows = arrayLength(&losses);
    if row >= rows {
        return;
    }
    let first = row * CLASSES;
    let label = u32(labels[row]);
    var most = logits[first];
    for (var j = 1u; j < CLASSES; j++) {
        most = max(most, logits[first + j]);
    }
    var total = 0.0;
    for (var j = 0u; j < CLASSES; j++) {
        total += exp(logits[first + j] - most);
    }
    for (var j = 0u; j < CLASSES; j++) {
        let p = exp(logits[first + j] - most) / total;
        d_logits[first + j] = (p - select(0.0, 1.0, j == label)) / f32(rows);
    }
    losses[row] = log(total) + most - logits[first + label];
}

// result[0] = the mean of the losses. One workgroup, which sums up in the same order every time.

const THREADS = 64u;

@group(0) @binding(0) var<storage, read> all_losses: array<f32>;
@group(0) @binding(1) var<storage, read_write> mean_loss: array<f32>;

var<workgroup> sums: array<f32, THREADS>;

@compute @workgroup_size(THREADS)
fn mean(@builtin(local_invocation_index) thread: u32) {
    let count = arrayLength(&all_losses);
    var sum = 0.0;
    for (var i = thread; i < count; i += THREADS) {
        sum += all_losses[i];
    }
    sums[thread] = sum;
    for (var half = THREADS / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if thread < half {
            sums[thread] += sums[thread + half];
        }
    }
    if thread == 0u {
        mean_loss[0] = sums[0] / f32(count);
    }
}

// Gradients whose norm is above 1 are scaled to 1. result[1] = the norm that they had.

const MOST = 1.0;

@group(0) @binding(0) var<storage, read> norm: array<f32>;
@group(0) @binding(1) var<storage, read_write> gradients: array<f32>;
@group(0) @binding(2) var<storage, read_write> result: array<f32>;

@compute @workgroup_size(64)
fn clip(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let at = id.y * groups.x * 64u + id.x;
    if at < arrayLength(&gradients) && !(norm[0] <= MOST) {
        gradients[at] *= MOST / norm[0];
    }
    if at == 0u {
        result[1] = norm[0];
    }
}
