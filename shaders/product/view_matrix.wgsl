// Slot `view`: where the elements of A and B lie. Two matrices.
// import product/a_matrix
// import product/b_matrix
//
// What every view declares of A, and of B likewise:
//   a_begin(stage, m, dk), a_fetch(stage, m, dk, k0, k_end), a_steps(stage, block)
//                        blocks of 4 rows by 4 steps of k, for tile.wgsl
//   a_along_k(m, k, left)
//                        four steps of a row, for what is rarely done
// and what a lane of subgroup.wgsl reads:
//   a_lane_begin(r, m, step), a_lane_across(r, k, step, there), a_lane_along(r, k, left)
//   b_lane_begin(c, n), b_lane_steps(c, n, k, left)
// The other families know matrices alone.
