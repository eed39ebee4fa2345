// Where norms go that are summed up beside a product.
// slot params = product/params
// import numbers/wide

@group(0) @binding(6) var<storage, read_write> norms_out: array<f32>; // (out_features): n̂

override WRITE_NORMS: bool = false;

fn keep_norm(column: u32, norm: Wide) {
    if WRITE_NORMS {
        norms_out[extractBits(p.more_offsets, 24u, 8u) + norm_index(column)] = f32_of(norm);
    }
}
