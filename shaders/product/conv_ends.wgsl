// The ends of a convolution: y = activation(scale * (sums + residual) + what y holds), or a gate of two halves.
// slot params = product/params_windows
// slot result = product/result_scalar
// import product/activation
// import product/norms_out
// import product/extra

override ACTIVATION: u32 = ACT_NONE;
override ADD: bool = false; // to what y holds; then sums that are formed again are left out at first

// What becomes of `count` neighbouring elements of a channel, from element e of y on.
fn ended(e: u32, channel: u32, sums: vec4<f32>, count: u32) -> vec4<f32> {
    var values = sums;
    if EXTRA == EXTRA_RESIDUAL {
        values += extra_four(e, count);
    }
    values *= p.scale;
    if ADD {
        values += old_of(e, count);
    }
    if EXTRA == EXTRA_SNAKE {
        return snake(values, extra_at(channel));
    }
    return activated(values, ACTIVATION, p.slope);
}

// The same of a gate, z = scale * (sums + residual), y = gated(first half of z, second half of z). An image of z is
// two of y.
fn halves_ended(e: u32, first: vec4<f32>, second: vec4<f32>, count: u32) -> vec4<f32> {
    var a = first;
    var b = second;
    if EXTRA == EXTRA_RESIDUAL {
        let of_z = e + e / p.c_image * p.c_image;
        a += extra_four(of_z, count);
        b += extra_four(of_z + p.c_image, count);
    }
    return gated(a * p.scale, b * p.scale, GATE);
}

fn put_halves(e: u32, first: vec4<f32>, second: vec4<f32>, count: u32) {
    put_four(y_first() + e, halves_ended(e, first, second, count), count);
}

fn put_half(e: u32, first: f32, second: f32) {
    put_element(y_first() + e, halves_ended(e, vec4<f32>(first), vec4<f32>(second), 1u).x);
}

fn old_of(e: u32, count: u32) -> vec4<f32> {
    let first = y_first() + e;
    let last = count - 1u;
    return vec4<f32>(old(first), old(first + min(1u, last)), old(first + min(2u, last)), old(first + min(3u, last)));
}

fn y_first() -> u32 {
    return extractBits(p.offsets, 16u, 8u);
}

fn put_ended(e: u32, channel: u32, sum: f32) {
    put_element(y_first() + e, ended(e, channel, vec4<f32>(sum), 1u).x);
}

// Four of them, of which those that are not `kept` stay as they are.
fn put_ended_four(e: u32, channel: u32, sums: vec4<f32>, count: u32, kept: vec4<bool>) {
    var values = ended(e, channel, sums, count);
    if ADD {
        values = select(old_of(e, count), values, kept);
    }
    put_four(y_first() + e, values, count);
}

// Nothing is kept of what the gain multiplies.
const ONTO = false;

fn kept_row(row: u32, column: u32, count: u32) -> vec4<f32> {
    return vec4<f32>();
}

fn keep_row(row: u32, column: u32, values: vec4<f32>, count: u32) {}

fn keep_one(row: u32, column: u32, value: f32) {}
