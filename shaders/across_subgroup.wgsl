// How normalize_rows.wgsl adds up between the lanes of a row: by shuffles, where they are a subgroup. For drivers on CPUs, to
// which a barrier costs all that lives across it.

// See across_workgroup.wgsl.
fn sum_of_lanes(own: f32, t: u32, half: u32) -> f32 {
    var sum = own;
    for (var apart = 1u; apart < LANES; apart *= 2u) { // log2 LANES iterations
        sum += subgroupShuffle(sum, (t ^ apart) % LANES);
    }
    return sum;
}

fn is_any_left(own: bool, t: u32) -> bool {
    return own;
}
