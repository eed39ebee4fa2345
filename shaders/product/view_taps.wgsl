// Fills the slot `view`: the gradient of a weight. A = windows, summed over positions, B = channels of the other side.
// import product/a_windows
// import product/b_channels
