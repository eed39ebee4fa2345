// Operand A of a product as the windows of a tensor (image, channel, height, width), none of them stored: a row is a
// position of C, a step a tap of a channel, and the two places add up.
// slot params = product/params_windows
// slot a = product/a_scalar
// import product/block
// import product/activation
// import product/extra
//
// An element is at (row's y + tap's y, row's x + tap's x). What is not there is read elsewhere, and replaced by zero:
// so nothing waits for a comparison. A row that is not there repeats the last position of its image.

override TWO_D: bool = false; // else of height 1
override PAD_MODE: u32 = PAD_ZERO;
// Positions are those of a, and taps go back from them: A = c of params_windows.wgsl.
override BACKWARD: bool = false;
override TAPS_ARE_ROWS: bool = false; // rows are taps and steps positions: the gradient of a weight
override A_ALONG_K: bool = TAPS_ARE_ROWS; // positions are neighbours
override A_ACTIVATION: u32 = ACT_NONE; // of each element as it is read; a padding of zeros stays zero
override DIVIDED: bool = false; // BACKWARD: of the positions of a only those that the stride divides are on c

const PAD_ZERO = 0u;
const PAD_REFLECT = 1u;
const PAD_REPLICATE = 2u;

// Four neighbouring rows: the first element of their image's group, and where tap 0 is.
struct Spots {
    image: u32,
    y: vec4<i32>,
    x: vec4<i32>,
}

// A step: its channel's first element, of some image, and how far it is from tap 0.
struct Tap {
    channel: u32,
    number: u32, // of the channel within the group
    y: i32,
    x: i32,
}

// Four elements of a step.
struct Window {
    e: vec4<u32>,
    there: vec4<bool>,
}

// Of four elements of a step which are there, and which are upper halves of a word; α of their channel, for a snake.
struct Marks {
    there: vec4<bool>,
    upper: vec4<bool>,
    alpha: f32,
}

var<private> spots_of: array<Spots, 3>; // of the invocation's blocks
var<private> marks: array<array<Marks, 4>, 3>; // and of their steps

// Of the positions from the i-th on.
fn spots(i: u32) -> Spots {
    let image = i / rows_of_image();
    let u = min(vec4<u32>(i - image * rows_of_image()) + vec4<u32>(0u, 1u, 2u, 3u), vec4<u32>(p.positions - 1u));
    var y = vec4<u32>();
    if TWO_D {
        y = u / p.width;
    }
    let x = u - y * p.width;
    let image_first = extractBits(p.offsets, 0u, 8u) + image * p.a_image + group * p.channels * plane();
    if BACKWARD {
        return Spots(image_first, vec4<i32>(y), vec4<i32>(x));
    }
    return Spots(
        image_first,
        vec4<i32>(y * height_of(p.stride)) - i32(height_of(p.lead)),
        vec4<i32>(x * width_of(p.stride)) - i32(width_of(p.lead)),
    );
}

// Elements and taps of a channel.
fn plane() -> u32 {
    return select(p.a_width, width_of(p.heights) * p.a_width, TWO_D);
}

fn all_taps() -> u32 {
    return select(width_of(p.taps), area_of(p.taps), TWO_D);
}

// Step k, in the image of `s`.
fn tap(s: Spots, k: u32) -> Tap {
    let channel = divided(k, all_taps());
    let at = k - channel * all_taps();
    var y = 0u;
    if TWO_D {
        y = divided(at, width_of(p.taps));
    }
    let x = at - y * width_of(p.taps);
    let sign = select(1, -1, BACKWARD);
    return Tap(
        s.image + channel * plane(),
        channel,
        sign * i32(y * height_of(p.reach)),
        sign * i32(x * width_of(p.reach)),
    );
}

// The step behind t. One behind the last channel lies in that one.
fn next(s: Spots, t: Tap) -> Tap {
    let sign = select(1, -1, BACKWARD);
    let reach = sign * vec2<i32>(i32(height_of(p.reach)), i32(width_of(p.reach)));
    let last = reach * (vec2<i32>(i32(height_of(p.taps)), i32(width_of(p.taps))) - 1);
    var row_ends = t.x == last.y;
    let x = select(t.x + reach.y, 0, row_ends);
    var y = t.y;
    if TWO_D {
        y += select(0, reach.x, row_ends);
        row_ends = row_ends & (t.y == last.x);
        y = select(y, 0, row_ends);
    }
    var channel = t.channel + select(0u, plane(), row_ends);
    var number = t.number + select(0u, 1u, row_ends);
    if !WHOLE_STEPS || TAPS_ARE_ROWS {
        number = min(number, p.channels - 1u);
        channel = min(channel, s.image + (p.channels - 1u) * plane());
    }
    return Tap(channel, number, y, x);
}

// Where a position in the padding is read.
fn padded(at: vec4<i32>, size: u32) -> vec4<i32> {
    let last = vec4<i32>(i32(size) - 1);
    if PAD_MODE == PAD_REFLECT {
        return min(abs(at), abs(2 * last - abs(at)));
    }
    if PAD_MODE == PAD_REPLICATE {
        return clamp(at, vec4<i32>(), last);
    }
    return at;
}

fn window(s: Spots, t: Tap) -> Window {
    let height = width_of(p.heights);
    var y = padded(s.y + t.y, height);
    var x = padded(s.x + t.x, p.a_width);
    var there = vec4<bool>(true);
    if DIVIDED {
        let whole = vec4<i32>(vec4<u32>(x) / width_of(p.stride));
        there = there & (x == whole * i32(width_of(p.stride))) & (x >= vec4<i32>());
        x = whole;
        if TWO_D {
            let rows = vec4<i32>(vec4<u32>(y) / height_of(p.stride));
            there = there & (y == rows * i32(height_of(p.stride))) & (y >= vec4<i32>());
            y = rows;
        }
    }
    there = there & (vec4<u32>(x) < vec4<u32>(p.a_width)); // below 0 it is large
    var place = vec4<u32>(x);
    if TWO_D {
        there = there & (vec4<u32>(y) < vec4<u32>(height));
        place += vec4<u32>(y) * p.a_width;
    }
    return Window(t.channel + select(vec4<u32>(), place, there), there);
}

fn words_of(e: vec4<u32>) -> vec4<u32> {
    return vec4<u32>(a_word(e.x), a_word(e.y), a_word(e.z), a_word(e.w));
}

fn marks_of(w: Window, t: Tap) -> Marks {
    return Marks(w.there, (w.e & vec4<u32>(1u)) == vec4<u32>(1u), alpha_of(t));
}

fn a_begin(stage: u32, m: u32, dk: u32) {
    if !TAPS_ARE_ROWS {
        spots_of[stage] = spots(p.row_first + min(m, p.rows - 4u));
    }
}

fn alpha_of(t: Tap) -> f32 {
    if EXTRA == EXTRA_INPUT_SNAKE {
        return extra_at(group * p.channels + t.number);
    }
    return 0.0;
}

fn a_fetch(stage: u32, m: u32, dk: u32, k0: u32, k_end: u32) -> Block {
    var k = min(k0 + dk, k_end - select(1u, 4u, WHOLE_STEPS));
    if TAPS_ARE_ROWS {
        spots_of[stage] = spots(min(k0 + dk, p.depth - 4u));
        k = p.row_first + min(m, p.rows - 1u);
    }
    let s = spots_of[stage];
    let t0 = tap(s, k);
    let t1 = next(s, t0);
    let t2 = next(s, t1);
    let t3 = next(s, t2);
    let w0 = window(s, t0);
    let w1 = window(s, t1);
    let w2 = window(s, t2);
    let w3 = window(s, t3);
    marks[stage] = array<Marks, 4>(marks_of(w0, t0), marks_of(w1, t1), marks_of(w2, t2), marks_of(w3, t3));
    return Block(words_of(w0.e), words_of(w1.e), words_of(w2.e), words_of(w3.e));
}

// What an element is to the product.
fn entered(values: vec4<f32>, alpha: f32) -> vec4<f32> {
    if EXTRA == EXTRA_INPUT_SNAKE {
        return snake(values, alpha);
    }
    return activated(values, A_ACTIVATION, p.input_slope);
}

// The elements of a step that are there.
fn values_of(words: vec4<u32>, m: Marks) -> vec4<f32> {
    var values = quad_low(words, A_DTYPE);
    if A_DTYPE != F32 {
        values = select(values, quad_high(words, A_DTYPE), m.upper);
    }
    return select(vec4<f32>(), entered(values, m.alpha), m.there);
}

fn a_steps(stage: u32, block: Block) -> mat4x4<f32> {
    let m = marks[stage];
    let steps = mat4x4<f32>(
        values_of(block[0], m[0]), values_of(block[1], m[1]), values_of(block[2], m[2]), values_of(block[3], m[3]),
    );
    if TAPS_ARE_ROWS {
        return transpose(steps);
    }
    return steps;
}

// Of the reads of a lane of subgroup.wgsl.
var<private> lane_spots: array<Spots, 8>;
var<private> lane_taps: array<Tap, 8>; // TAPS_ARE_ROWS: of no image

fn a_lane_begin(r: u32, m: u32, step: u32) {
    if TAPS_ARE_ROWS {
        lane_taps[r] = tap(Spots(), p.row_first + m);
    } else {
        lane_spots[r] = spots(p.row_first + m);
    }
}

fn a_lane_across(r: u32, k: u32, step: u32, there: u32) -> vec4<f32> {
    let t = tap(lane_spots[r], min(k + step, p.depth - 1u));
    let w = window(lane_spots[r], t);
    let four = values_of(words_of(w.e), marks_of(w, t));
    return select(vec4<f32>(), four, vec4<bool>(there > 0u));
}

// An image has whole quads of steps, so all four are there; behind its last position B is zero.
fn a_lane_along(r: u32, k: u32, left: u32) -> vec4<f32> {
    let s = spots(k);
    var t = lane_taps[r];
    t.channel += s.image;
    let w = window(s, t);
    return values_of(words_of(w.e), marks_of(w, t));
}

fn a_element(m: u32, k: u32) -> f32 {
    let row = p.row_first + min(m, p.rows - 1u);
    let s = spots(select(row, k, TAPS_ARE_ROWS));
    let t = tap(s, select(k, row, TAPS_ARE_ROWS));
    let w = window(s, t);
    return select(0.0, entered(vec4<f32>(a_at(w.e.x)), alpha_of(t)).x, w.there.x);
}

fn a_along_k(m: u32, k: u32, left: u32) -> vec4<f32> {
    if left == 0u {
        return vec4<f32>();
    }
    let last = left - 1u;
    let four = vec4<f32>(
        a_element(m, k), a_element(m, k + min(1u, last)),
        a_element(m, k + min(2u, last)), a_element(m, k + min(3u, last)),
    );
    return select(vec4<f32>(), four, vec4<u32>(0u, 1u, 2u, 3u) < vec4<u32>(left));
}
