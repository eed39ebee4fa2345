// Convolutions: A = windows of x, whose rows are positions, B = v, whose columns are channels. What becomes of the
// product: forward.wgsl. Where elements lie: the views of params_windows.wgsl; by default this is a product of
// matrices.
// import product/forward

@compute @workgroup_size(THREADS)
fn conv(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) index: u32,
) {
    whole_sums(flat(workgroup, workgroups), ordered(index, THREADS));
}

@compute @workgroup_size(THREADS)
fn conv_partial(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) index: u32,
) {
    partial_sums(flat(workgroup, workgroups), ordered(index, THREADS));
}

@compute @workgroup_size(FINISH_THREADS)
fn conv_finish(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) t: u32,
) {
    finish_sum(flat(workgroup, workgroups) * FINISH_THREADS + t);
}
