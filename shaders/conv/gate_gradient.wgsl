// The gradient of a gate in place of what the gate was given: z, (image, two halves of channels, positions), becomes
//   scale * dy * the derivative of gated(first, second)        dy: (image, one half of channels, positions)
// An invocation has an element of dy.
// import activation/derivative

struct Params {
    begin: u32, // elements of dy
    end: u32,
    half: u32,  // elements of a half of an image
    dy_first: u32, // the first element within its binding
    scale: f32,
}

var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> dy: array<u32>; // words of DY_DTYPE
@group(0) @binding(1) var<storage, read_write> z: array<f32>;

override DY_DTYPE: u32 = F32;
override GATE: u32 = GATE_TANH_SIGMOID;

const THREADS = 128u;

// The derivatives by the first and by the second.
fn slopes(first: vec4<f32>, second: vec4<f32>) -> mat2x4<f32> {
    let slope = slope_of_logistic(clamp(second, vec4<f32>(-120.0), vec4<f32>(120.0)));
    // clamp may turn NaN into a number.
    let nan = (bitcast<vec4<u32>>(second) & vec4<u32>(MAGNITUDE)) > vec4<u32>(INFINITY);
    let of_second = select(slope, second, nan);
    if GATE == GATE_GLU {
        return mat2x4<f32>(logistic(second), first * of_second);
    }
    return mat2x4<f32>(slope_of_tanh(first) * logistic(second), tanh_of(first) * of_second);
}

@compute @workgroup_size(THREADS)
fn gate_gradient(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) index: u32,
) {
    let e = p.begin + flat(group, groups) * THREADS + ordered(index, THREADS);
    if e >= p.end {
        return;
    }
    let at = p.dy_first + e;
    let d = p.scale * unpack(dy[word_holding(at, DY_DTYPE)], at, DY_DTYPE);
    let first = e + e / p.half * p.half;
    let second = first + p.half;
    let by = slopes(vec4<f32>(z[first]), vec4<f32>(z[second]));
    z[first] = d * by[0].x;
    z[second] = d * by[1].x;
}
