// A step of recurrent cells: A = h (batch, units), B = v of the hidden weight (gates of all units, units). What becomes
// of the product: forward.wgsl, and c_cell.wgsl, which by default is that of a matrix.
// import product/forward

@compute @workgroup_size(THREADS)
fn cell(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) index: u32,
) {
    whole_sums(flat(workgroup, workgroups), ordered(index, THREADS));
}
