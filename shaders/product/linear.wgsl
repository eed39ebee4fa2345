// A linear layer: x (batch, in_features), v (out_features, in_features). What becomes of the product: forward.wgsl.
// import product/forward

@compute @workgroup_size(THREADS)
fn linear(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) index: u32,
) {
    whole_sums(flat(workgroup, workgroups), ordered(index, THREADS));
}

@compute @workgroup_size(THREADS)
fn linear_partial(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) index: u32,
) {
    partial_sums(flat(workgroup, workgroups), ordered(index, THREADS));
}

@compute @workgroup_size(FINISH_THREADS)
fn linear_finish(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) t: u32,
) {
    finish_sum(flat(workgroup, workgroups) * FINISH_THREADS + t);
}
