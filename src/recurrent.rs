//! Layers of recurrent cells: what is asked of them.
pub(crate) mod apart;
pub(crate) mod backward;
pub(crate) mod multiplied;
pub(crate) mod record;
pub(crate) mod step;

use crate::product::selection::Selection;
#[cfg(doc)]
use crate::{ArgumentError, Error, Gpu, LimitError, Recorder, WeightNorm};
use crate::{Cell, Tensor, Tile, Weight};

/// A layer of recurrent cells over a sequence, or one step of it, weight-normalized or ordinary: the request of
/// [`Gpu::recurrent`], [`Gpu::recurrent_saved`] and [`Gpu::recurrent_backward`], and of the same of a [`Recorder`].
///
/// ```text
/// z[t,b] = W·x[t,b] + bias        q[t,b] = U·h[t−1,b] + hidden_bias        y[t] = h[t]
///
/// LSTM   i, f, o = σ(z + q)    g = tanh(z + q)           c[t] = f·c[t−1] + i·g      h[t] = o·tanh(c[t])
/// GRU    r, z' = σ(z + q)      n = tanh(z + r·q)         h[t] = (1 − z')·n + z'·h[t−1]
/// RNN    h[t] = tanh(z + q)
/// ```
///
/// ```no_run
/// # use weightnorm::{Error, Gpu, Recurrent, Tensor, WeightNorm};
/// # fn f(gpu: &Gpu, x: Tensor, [v_ih, g_ih, v_hh, g_hh, bias]: [Tensor; 5]) -> Result<Tensor, Error> {
/// let (input, hidden) = (WeightNorm::new(&v_ih, &g_ih), WeightNorm::new(&v_hh, &g_hh));
/// gpu.recurrent(Recurrent::lstm(&x, input, hidden).bias(&bias))
/// # }
/// ```
///
/// - `x`: `[T, B, I]`, or `[B, I]` of one step. W, of the input: `[G·H, I]`; U, of h: `[G·H, H]`, with G gates of H
///   units ([`Cell::gates`]): i, f, g, o of an LSTM; r, z, n of a GRU; the rows of a gate lie together, as in PyTorch.
///   Each is a [`WeightNorm`] of kept axis 0 (one norm for each row), 1 or the whole tensor, or a [`Tensor`].
///   `bias`, `hidden_bias`: `[G·H]`. y: `[T, B, H]`, or `[B, H]`. All of any storage type, in any mixture; c is f32.
/// - h before the first step is [`Recurrent::h0`], else zero. The last step of y is h behind the last one; passed on as
///   h0, with c, it continues the sequence. A sequence is its steps, bit for bit, by the same [`Recurrent::tile`].
/// - h is read by the next step as y holds it: rounded where y has 16 bits.
/// - Reference: PyTorch's `LSTM`, `GRU` and `RNN` of one layer, with `weight_norm` of `weight_ih_l0` and
///   `weight_hh_l0`.
///
/// # Dispatches
/// Those of a [`Linear`](crate::Linear) for z of all steps, whose norms are summed up inside; those of the norms of U,
/// unless they are known ([`WeightNorm::norms`]); then one for each step. w is nowhere stored. One or two more for a c
/// that is saved; more past the limit of a binding or a dispatch: there, of U (WebGPU's default of 128 MiB: in f32 an
/// LSTM of more than 2,895 units) or of c of two steps that are saved, U·h is a product of its own before each step.
///
/// # Errors
/// [`ArgumentError::Shape`], [`ArgumentError::DType`], [`ArgumentError::Axis`], [`ArgumentError::Eps`] if tensors do
/// not fit, for a c of a GRU or RNN, and for a y of several steps that are no whole 32-bit words each (in a browser no
/// whole multiples of what a binding may start at); [`ArgumentError::Variant`] for a tile that cannot be.
/// [`LimitError::TooLarge`] where the gates of one sequence and step are past a binding. Besides those of every operator
/// ([`Error`]).
#[derive(Debug, Clone, Copy)]
#[must_use]
pub struct Recurrent<'a> {
    pub(crate) cell: Cell,
    pub(crate) x: &'a Tensor,
    pub(crate) input: Weight<'a>,
    pub(crate) hidden: Weight<'a>,
    /// Wm and Um.
    pub(crate) multiplied: Option<[Weight<'a>; 2]>,
    pub(crate) bias: Option<&'a Tensor>,
    pub(crate) hidden_bias: Option<&'a Tensor>,
    pub(crate) h0: Option<&'a Tensor>,
    pub(crate) c: Option<&'a Tensor>,
    pub(crate) dc: Option<&'a Tensor>,
    pub(crate) saved: Option<&'a RecurrentSaved>,
    pub(crate) output: Option<&'a Tensor>,
    pub(crate) tile: Option<Tile>,
}

impl<'a> Recurrent<'a> {
    /// Cells of this kind, without biases, from zero.
    pub fn new(cell: Cell, x: &'a Tensor, input: impl Into<Weight<'a>>, hidden: impl Into<Weight<'a>>) -> Self {
        let (bias, hidden_bias, h0, c, dc, saved, output, tile) = (None, None, None, None, None, None, None, None);
        let (input, hidden, multiplied) = (input.into(), hidden.into(), None);
        Recurrent { cell, x, input, hidden, multiplied, bias, hidden_bias, h0, c, dc, saved, output, tile }
    }

    /// [`Cell::Lstm`]
    pub fn lstm(x: &'a Tensor, input: impl Into<Weight<'a>>, hidden: impl Into<Weight<'a>>) -> Self {
        Recurrent::new(Cell::Lstm, x, input, hidden)
    }

    /// [`Cell::Gru`]
    pub fn gru(x: &'a Tensor, input: impl Into<Weight<'a>>, hidden: impl Into<Weight<'a>>) -> Self {
        Recurrent::new(Cell::Gru, x, input, hidden)
    }

    /// [`Cell::Rnn`], with tanh
    pub fn rnn(x: &'a Tensor, input: impl Into<Weight<'a>>, hidden: impl Into<Weight<'a>>) -> Self {
        Recurrent::new(Cell::Rnn, x, input, hidden)
    }

    /// A multiplicative LSTM (Krause and others, 2016): an LSTM with q = U·m + hidden_bias, and
    ///
    /// ```text
    /// m[t,b] = (Wm·x[t,b]) ⊙ (Um·h[t−1,b])
    /// ```
    ///
    /// `of_m`: Wm, `[H, I]`, and Um, `[H, H]`, a [`WeightNorm`] of kept axis 0 or a [`Tensor`]; Wm as W. Forward alone:
    /// with [`Recurrent::saved`] it is refused ([`ArgumentError::Shape`]). Wm·x of all steps takes the dispatches of a
    /// [`Linear`](crate::Linear), the norms of Um one, m one each step.
    pub fn mlstm(
        x: &'a Tensor,
        input: impl Into<Weight<'a>>,
        hidden: impl Into<Weight<'a>>,
        of_m: [Weight<'a>; 2],
    ) -> Self {
        Recurrent { multiplied: Some(of_m), ..Recurrent::lstm(x, input, hidden) }
    }

    /// Adds a bias to z (PyTorch's `bias_ih`): any storage type, `[G·H]`.
    pub fn bias(self, bias: impl Into<Option<&'a Tensor>>) -> Self {
        Recurrent { bias: bias.into(), ..self }
    }

    /// Adds a bias to q (PyTorch's `bias_hh`), within what a GRU's r multiplies: any storage type, `[G·H]`.
    pub fn hidden_bias(self, bias: impl Into<Option<&'a Tensor>>) -> Self {
        Recurrent { hidden_bias: bias.into(), ..self }
    }

    /// Starts from this h: any storage type, `[B, H]`.
    pub fn h0(self, h0: impl Into<Option<&'a Tensor>>) -> Self {
        Recurrent { h0: h0.into(), ..self }
    }

    /// c of an LSTM, f32, `[B, H]`: read as it is before the first step, and left as it is behind the last one.
    /// Without it c starts from zero. Gradients do not read it.
    pub fn c(self, c: impl Into<Option<&'a Tensor>>) -> Self {
        Recurrent { c: c.into(), ..self }
    }

    /// For gradients alone, of an LSTM, f32, `[B, H]`: read as the gradient of c behind the last step, and left as that
    /// of c before the first one. Without it the first is zero.
    pub fn dc(self, dc: impl Into<Option<&'a Tensor>>) -> Self {
        Recurrent { dc: dc.into(), ..self }
    }

    /// Keeps what the gradients want; gradients read it, and write over it.
    pub fn saved(self, saved: impl Into<Option<&'a RecurrentSaved>>) -> Self {
        Recurrent { saved: saved.into(), ..self }
    }

    /// For gradients alone: y, as the forward pass wrote it.
    pub fn output(self, y: impl Into<Option<&'a Tensor>>) -> Self {
        Recurrent { output: y.into(), ..self }
    }

    /// Forces a tile for the products of the inputs and of the steps, for tests and tuning.
    pub fn tile(self, tile: impl Into<Option<Tile>>) -> Self {
        Recurrent { tile: tile.into(), ..self }
    }

    fn selection(&self) -> Selection {
        Selection { tile: self.tile, split_length: None }
    }
}

/// What the forward pass of a training step keeps of a sequence for the backward pass, which makes the gradients of the
/// gates of it in its place: it serves one backward pass. From [`Gpu::recurrent_saved`], or made once for many steps by
/// [`RecurrentSaved::new`]. Its size is that of y G to G + 1 times, a GRU's 6 times, in f32.
#[derive(Debug, Clone)]
pub struct RecurrentSaved {
    /// `[T, B, G·H]`, f32: the gates; of an RNN h.
    pub(crate) gates: Tensor,
    /// f32: c of an LSTM, `[T + 1, B, H]`; of a GRU what U gave, `[T, B, G·H]`.
    pub(crate) beside: Option<Tensor>,
    pub(crate) input_norms: Option<Tensor>,
    pub(crate) hidden_norms: Option<Tensor>,
}
