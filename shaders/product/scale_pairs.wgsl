// What linear.wgsl is given of norms: with SCALED_B the Scales of the steps of k; else norms, or one of all of v.
//
// Slot `scale`, which scale_factors.wgsl fills too.

@group(0) @binding(4) var<storage, read> given: array<f32>;

// The Scale of step k, t and m; the first one lies at `first`.
fn scale_at(first: u32, k: u32) -> vec2<f32> {
    return vec2<f32>(given[first + 2u * k], given[first + 2u * k + 1u]);
}
