// The kernels of a weight and of a set of weights, in one module.
// import weight/row_sums
// import weight/column_sums
// import weight/finish_sums
// import weight/rescale
