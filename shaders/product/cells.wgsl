// Recurrent cells, by number.

override CELL: u32 = CELL_LSTM;

const CELL_LSTM = 0u;
const CELL_GRU = 1u;
const CELL_RNN = 2u;
const CELL_TIMES = 3u; // of a multiplicative LSTM: what stands for h in its sums

// Bits of `zeros`: what is before the step, or comes back from behind it, is zero and need not be there; there is no
// step, since all of them are behind.
const ZERO_BEFORE = 1u;
const ZERO_BEHIND = 2u;
const BEFORE_ALL = 4u;
