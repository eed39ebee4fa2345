// Fills the slot `view`: a convolution. A = windows of its input, B = v as it lies.
// import product/a_windows
// import product/b_matrix
