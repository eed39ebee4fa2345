// Fills the slot `view`: a transposed convolution. A = its input, taken back from each window's position, B = v across.
// import product/a_windows
// import product/b_weights
