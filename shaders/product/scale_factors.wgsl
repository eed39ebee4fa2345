// The factors of norms that gradient.wgsl goes by: of each the Scale a and the Scale dg / d. With SCALED_B the
// Scales a are those of the steps of k, or one for all.
//
// Fills the slot `scale`: see scale_pairs.wgsl.

@group(0) @binding(2) var<storage, read> factors: array<vec4<f32>>;

override ONE_SCALE: bool = false;

fn scale_at(first: u32, k: u32) -> vec2<f32> {
    return factors[first + select(k, 0u, ONE_SCALE)].xy;
}
