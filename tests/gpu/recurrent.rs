//! Recurrent cells against the reference, and a sequence against its steps.
use weightnorm::{ArgumentError, Axis, Cell, DType, Eps, Error, Gpu, Gradients, Linear, Recurrent, RecurrentSaved};
use weightnorm::{Tensor, Tile, Weight, WeightNorm, cpu};

use crate::common::recurrent::{OfWeight, Off, Tracked, tracked};
use crate::common::{compare, storage_bound};
use crate::data::{all, must_fail, random, rounded};
use crate::device::{recorded, refused};
use crate::golden::read;
use crate::{Extent, Failed, Needs, Outcome, Suite};

pub fn register(suite: &mut Suite) {
    suite.sampled("recurrent_cells", cells);
    suite.sampled("recurrent_sequences_are_their_steps", steps);
    suite.test("recurrent_tiles_in_full", Needs::Time, tiles);
    suite.test("recurrent_sizes_in_full", Needs::Time, sizes);
    suite.test("recurrent_step_is_a_product_and_an_elementwise_cell", Needs::Nothing, step_by_hand);
    suite.test("recurrent_out_of_range", Needs::Nothing, out_of_range);
    suite.test("recurrent_rejected", Needs::Nothing, rejects);
    suite.test("recurrent_comparison_can_fail", Needs::Nothing, comparison_can_fail);
    suite.test("recurrent_gradients_in_full", Needs::Time, gradients);
    suite.test("recurrent_gradients_are_added_in_full", Needs::Time, gradients_into);
    suite.test("recurrent_gradients_rejected", Needs::Nothing, gradients_rejected);
}

/// A layer, its numbers made of its sizes.
#[derive(Debug, Clone)]
pub struct Case {
    pub cell: Cell,
    pub length: usize,
    pub batch: usize,
    pub features: usize,
    pub units: usize,
    /// None for plain weights.
    pub axis: Option<Axis>,
    pub eps: Eps,
    /// Of x, of both v, of y and h0.
    pub dtypes: [DType; 3],
    pub biases: bool,
    pub states: bool,
    /// What v is multiplied by, row by row.
    pub sizes: Vec<f64>,
    pub tile: Option<Tile>,
    pub gradients: bool,
}

impl Case {
    /// Of units that are no quads.
    pub fn new(cell: Cell) -> Case {
        Case {
            cell,
            length: 4,
            batch: 3,
            features: 7,
            units: 6,
            axis: Some(Axis::Kept(0)),
            eps: Eps::Clamp(1e-12),
            dtypes: [DType::F32; 3],
            biases: true,
            states: true,
            sizes: vec![1.0],
            tile: Some(Tile::Tile32x32),
            gradients: false,
        }
    }

    fn dy(&self) -> Vec<f64> {
        random(10, self.y_shape().iter().product(), self.dtypes[2])
    }

    /// Of c behind the last step.
    fn dc(&self) -> Option<Vec<f64>> {
        (self.states && self.cell == Cell::Lstm).then(|| random(11, self.batch * self.units, DType::F32))
    }

    fn rows(&self) -> usize {
        self.cell.gates() * self.units
    }

    pub fn numbers(&self) -> Numbers {
        let rows = self.rows();
        let gains = |seed, width| {
            let count = match self.axis {
                Some(Axis::Kept(0)) => rows,
                Some(Axis::Kept(_)) => width,
                Some(Axis::Whole) | None => 1,
            };
            // About as large as the norms are, for w of about 1.
            let size = if self.axis == Some(Axis::Whole) { 6.0 } else { 1.5 };
            random(seed, count, DType::F32).into_iter().map(|g| rounded(size * g, DType::F32)).collect()
        };
        let v = |seed, width: usize| {
            let sized = |(at, v): (usize, f64)| rounded(v * self.sizes[at / width % self.sizes.len()], self.dtypes[1]);
            random(seed, rows * width, self.dtypes[1]).into_iter().enumerate().map(sized).collect()
        };
        let state = self.batch * self.units;
        Numbers {
            x: random(1, self.length * self.batch * self.features, self.dtypes[0]),
            v: [v(2, self.features), v(3, self.units)],
            g: [gains(4, self.features), gains(5, self.units)],
            biases: [6, 7].map(|seed| random(seed, rows, DType::F32)),
            h0: random(8, state, self.dtypes[2]),
            c0: random(9, state, DType::F32),
        }
    }

    pub fn reference<'a>(&self, numbers: &'a Numbers) -> cpu::Recurrent<'a> {
        let weight = |i: usize| match self.axis {
            None => cpu::Weight::Plain(&numbers.v[i]),
            Some(axis) => cpu::Weight::Normalized { v: &numbers.v[i], g: Some(&numbers.g[i]), axis, eps: self.eps },
        };
        let lstm = self.cell == Cell::Lstm;
        cpu::Recurrent {
            cell: self.cell,
            x: &numbers.x,
            x_shape: [self.length, self.batch, self.features],
            units: self.units,
            input: weight(0),
            hidden: weight(1),
            bias: self.biases.then_some(&numbers.biases[0]),
            hidden_bias: self.biases.then_some(&numbers.biases[1]),
            h0: self.states.then_some(&numbers.h0),
            c0: (self.states && lstm).then_some(&numbers.c0),
        }
    }

    pub fn upload(&self, gpu: &Gpu) -> Result<Uploaded, Failed> {
        let numbers = self.numbers();
        let (rows, [x, v, y]) = (self.rows(), self.dtypes);
        let state = [self.batch, self.units];
        Ok(Uploaded {
            x: made(gpu, &numbers.x, &[self.length, self.batch, self.features], x)?,
            v: [
                made(gpu, &numbers.v[0], &[rows, self.features], v)?,
                made(gpu, &numbers.v[1], &[rows, self.units], v)?,
            ],
            g: [
                made(gpu, &numbers.g[0], &[numbers.g[0].len()], DType::F32)?,
                made(gpu, &numbers.g[1], &[numbers.g[1].len()], DType::F32)?,
            ],
            biases: [
                made(gpu, &numbers.biases[0], &[rows], DType::F32)?,
                made(gpu, &numbers.biases[1], &[rows], DType::F32)?,
            ],
            h0: made(gpu, &numbers.h0, &state, y)?,
            c: made(gpu, &numbers.c0, &state, DType::F32)?,
        })
    }

    pub fn layer<'a>(&self, of: &'a Uploaded) -> Recurrent<'a> {
        let weight = |i: usize| match self.axis {
            None => Weight::Plain(&of.v[i]),
            Some(axis) => WeightNorm::new(&of.v[i], &of.g[i]).axis(axis).eps(self.eps).into(),
        };
        let layer = Recurrent::new(self.cell, &of.x, weight(0), weight(1)).tile(self.tile);
        let layer = if self.biases { layer.bias(&of.biases[0]).hidden_bias(&of.biases[1]) } else { layer };
        let layer = if self.states { layer.h0(&of.h0) } else { layer };
        if self.states && self.cell == Cell::Lstm { layer.c(&of.c) } else { layer }
    }

    fn y_shape(&self) -> [usize; 3] {
        [self.length, self.batch, self.units]
    }

    pub fn run(&self, gpu: &Gpu) -> Result<Results, Failed> {
        let of = self.upload(gpu)?;
        let layer = self.layer(&of);
        let saved = saved_of(gpu, &layer)?;
        let y = gpu.zeros(&self.y_shape(), self.dtypes[2])?;
        recorded(gpu, |ops| ops.recurrent(layer.saved(&saved), &y))?;
        let mut results = Results { y: read(&y)?, c: read(&of.c)?, gradients: vec![] };
        if self.gradients {
            let dy = made(gpu, &self.dy(), &self.y_shape(), self.dtypes[2])?;
            let dc = self.dc().map(|dc| made(gpu, &dc, &[self.batch, self.units], DType::F32)).transpose()?;
            let all = gpu.recurrent_backward(layer.saved(&saved).output(&y).dc(&dc), &dy)?;
            for of in [all.input, all.hidden] {
                let dg = of.dg.map_or(Ok(vec![]), |dg| read(&dg))?;
                results.gradients.extend([read(&of.dx)?, read(&of.dv)?, dg, read(&of.dbias)?]);
            }
            results.gradients.push(all.dc.map_or(Ok(vec![]), |dc| read(&dc))?);
        }
        Ok(results)
    }

    fn bounds(&self, numbers: &Numbers) -> Tracked {
        let dy = (&self.dy()[..], &self.dc());
        tracked(&self.reference(numbers), (dy.0, dy.1.as_deref()), 2f64.powi(-24), Some(self.dtypes[2]))
    }

    fn judge_gradients(&self, got: &[Vec<f64>], numbers: &Numbers, off: Tracked) -> Result<(), String> {
        let layer = self.reference(numbers);
        let all = cpu::recurrent_backward(&layer, &self.dy(), self.dc().as_deref()).map_err(|e| e.to_string())?;
        let [x, v, y] = self.dtypes;
        let h0 = if self.states { y } else { DType::F32 };
        let f32s = DType::F32;
        let of_weight = |of: cpu::LinearGradients, dx: Vec<Off>, off: OfWeight, dtype| {
            let dg = of.dg.unwrap_or_default();
            [(of.dx, dx, dtype), (of.dv, off.dv, v), (dg, off.dg, f32s), (of.dbias, off.dbias, f32s)]
        };
        let input = of_weight(all.input, off.dx, off.input, x);
        let hidden = of_weight(all.hidden, off.dh0, off.hidden, h0);
        let expected = input.into_iter().chain(hidden).chain(all.dc.map(|dc| (dc, off.dc, f32s)));
        let names = ["dx", "dv", "dg", "dbias", "dh0", "hidden dv", "hidden dg", "hidden dbias", "dc"];
        for (((expected, off, dtype), got), name) in expected.zip(got).zip(names) {
            let bound = |i: usize| off[i].e + storage_bound(dtype, expected[i].abs() + off[i].e);
            compare(got, &expected, Some(dtype), bound).map_err(|e| format!("{name}: {e}"))?;
        }
        Ok(())
    }

    pub fn judge(&self, results: &Results) -> Result<(), String> {
        let numbers = self.numbers();
        let expected = cpu::recurrent(&self.reference(&numbers)).map_err(|e| e.to_string())?;
        let off = self.bounds(&numbers);
        compare(&results.y, &expected.y, Some(self.dtypes[2]), |i| off.y[i].e).map_err(|e| format!("y: {e}"))?;
        if let Some(c) = expected.c.filter(|_| self.states) {
            compare(&results.c, &c, Some(DType::F32), |i| off.c[i].e).map_err(|e| format!("c: {e}"))?;
        }
        if results.gradients.is_empty() {
            return Ok(());
        }
        self.judge_gradients(&results.gradients, &numbers, off)
    }

    pub fn check(&self, gpu: &Gpu) -> Outcome {
        Ok(self.judge(&self.run(gpu)?)?)
    }
}

/// Of both weights in pairs.
pub struct Numbers {
    x: Vec<f64>,
    v: [Vec<f64>; 2],
    g: [Vec<f64>; 2],
    biases: [Vec<f64>; 2],
    h0: Vec<f64>,
    c0: Vec<f64>,
}

pub struct Uploaded {
    pub x: Tensor,
    pub v: [Tensor; 2],
    pub g: [Tensor; 2],
    pub biases: [Tensor; 2],
    pub h0: Tensor,
    pub c: Tensor,
}

pub struct Results {
    pub y: Vec<f64>,
    pub c: Vec<f64>,
    /// dx, dv, dg and dbias of the input and of the hidden weight, dc.
    pub gradients: Vec<Vec<f64>>,
}

pub fn made(gpu: &Gpu, values: &[f64], shape: &[usize], dtype: DType) -> Result<Tensor, Error> {
    use weightnorm::half::{bf16, f16};
    match dtype {
        DType::F32 => gpu.upload(&values.iter().map(|&v| v as f32).collect::<Vec<_>>(), shape),
        DType::F16 => gpu.upload(&values.iter().map(|&v| f16::from_f64(v)).collect::<Vec<_>>(), shape),
        DType::Bf16 => gpu.upload(&values.iter().map(|&v| bf16::from_f64(v)).collect::<Vec<_>>(), shape),
    }
}

fn saved_of(gpu: &Gpu, layer: &Recurrent<'_>) -> Result<RecurrentSaved, Error> {
    RecurrentSaved::new(layer, |shape| gpu.zeros(shape, DType::F32))
}

pub const CELLS: [Cell; 3] = [Cell::Lstm, Cell::Gru, Cell::Rnn];

/// Every axis, storage type and tile with every cell.
fn cells(gpu: &Gpu, extent: Extent) -> Outcome {
    let (full, half, brain) = (DType::F32, DType::F16, DType::Bf16);
    // By the tiles that the crate takes by itself; in quads.
    let free = |cell| Case { tile: None, units: 8, ..Case::new(cell) };
    let mut cases = vec![
        Case { axis: Some(Axis::Kept(1)), states: false, dtypes: [half, half, half], ..Case::new(Cell::Gru) },
        Case { axis: None, dtypes: [full, brain, full], biases: false, ..free(Cell::Lstm) },
    ];
    if extent == Extent::All {
        for cell in CELLS {
            for axis in [Some(Axis::Kept(0)), Some(Axis::Kept(1)), Some(Axis::Whole), None] {
                cases.push(Case { axis, ..Case::new(cell) });
                cases.push(Case { axis, states: false, ..free(cell) });
                cases.push(Case { axis, biases: false, batch: 1, ..free(cell) });
                cases.push(Case { axis, batch: 70, length: 2, units: 40, ..free(cell) });
            }
            for dtypes in [[half; 3], [brain; 3], [full, half, brain], [brain, full, half]] {
                cases.push(Case { dtypes, ..Case::new(cell) });
                cases.push(Case { dtypes, ..free(cell) });
            }
        }
    }
    all(cases, |case| case.check(gpu))
}

/// Long, short and empty ones.
fn sizes(gpu: &Gpu) -> Outcome {
    let sizes = [(1, 1, 1), (1, 2, 65), (9, 1, 4), (0, 3, 4), (3, 0, 4), (70, 2, 3)];
    let case = |(i, (length, batch, units))| Case { length, batch, units, ..Case::new(CELLS[i % 3]) };
    let cases = sizes.into_iter().enumerate().map(case);
    all(cases.chain(CELLS.map(|cell| Case { features: 0, ..Case::new(cell) })), |case| case.check(gpu))
}

/// Each with one of the cells, forward and back; units in quads and not.
fn tiles(gpu: &Gpu) -> Outcome {
    let tiles = Tile::all_on(gpu).filter(|tile| !tile.to_string().starts_with("coop"));
    let case = |(i, tile): (usize, Tile)| {
        let units = [5, 36][i % 2];
        Case { tile: Some(tile), units, batch: 10, length: 2, gradients: true, ..Case::new(CELLS[i % 3]) }
    };
    all(tiles.enumerate().map(case), |case| case.check(gpu))
}

/// One step after another, h and c passed on, gives the bits of all of them together.
fn steps(gpu: &Gpu, extent: Extent) -> Outcome {
    let cases = extent.of(CELLS, 3).into_iter().map(Case::new);
    all(cases, |case| {
        let of = case.upload(gpu)?;
        let together = gpu.recurrent(case.layer(&of))?.read::<f32>()?;
        let all = case.upload(gpu)?;
        let x = all.x.read::<f32>()?;
        let mut h = all.h0.clone();
        for t in 0..case.length {
            let of_step = case.batch * case.features;
            let x = gpu.upload(&x[t * of_step..][..of_step], &[case.batch, case.features])?;
            let step = Uploaded { x, h0: h, ..case.upload(gpu)? };
            let layer = case.layer(&step);
            // c is one for all of them.
            let layer = if case.cell == Cell::Lstm { layer.c(&all.c) } else { layer };
            h = gpu.recurrent(layer)?;
            let of_step = case.batch * case.units;
            if h.read::<f32>()? != together[t * of_step..][..of_step] {
                return Err(format!("step {t} differs").into());
            }
        }
        if all.c.read::<f32>()? != of.c.read::<f32>()? {
            return Err("c differs".into());
        }
        Ok(())
    })
}

/// q by `linear`, and the cell by hand on the host.
fn step_by_hand(gpu: &Gpu) -> Outcome {
    let case = Case { length: 1, ..Case::new(Cell::Lstm) };
    let of = case.upload(gpu)?;
    let c0 = of.c.read::<f32>()?;
    let x = of.x.reshape(&[case.batch, case.features])?;
    let weight = |i: usize| WeightNorm::new(&of.v[i], &of.g[i]);
    let product = |x, i: usize| {
        let y = gpu.linear(Linear::new(x, weight(i)).bias(&of.biases[i]).tile(case.tile))?;
        y.read::<f32>()
    };
    let (z, q) = (product(&x, 0)?, product(&of.h0, 1)?);
    let y = gpu.recurrent(case.layer(&of))?.read::<f32>()?;
    let sigmoid = |a: f64| 1.0 / (1.0 + (-a).exp());
    let (units, rows) = (case.units, case.rows());
    let expected = (0..case.batch * units).map(|at| {
        let sum = |gate: usize| {
            let at = at / units * rows + gate * units + at % units;
            f64::from(z[at]) + f64::from(q[at])
        };
        let c = sigmoid(sum(1)) * f64::from(c0[at]) + sigmoid(sum(0)) * sum(2).tanh();
        sigmoid(sum(3)) * c.tanh()
    });
    // Sums of about 3 that are rounded once, and functions of slopes up to 1.
    compare(&cpu::widen(&y), &expected.collect::<Vec<_>>(), Some(DType::F32), |_| 64.0 * 2f64.powi(-24))?;
    Ok(())
}

/// Rows of v whose sums leave the range of f32, which all four gates of a unit are formed again for; rows of zeros.
fn out_of_range(gpu: &Gpu) -> Outcome {
    let case = Case::new(Cell::Lstm);
    let cases = [
        Case { sizes: vec![1.0, 3e24, 1.0, 3e-24, 0.0], ..case.clone() },
        Case { sizes: vec![3e24], ..case.clone() },
        Case { sizes: vec![0.0], ..case.clone() },
    ];
    all(cases, |case| case.check(gpu))?;
    // In place too, without anything saved.
    let case = Case { sizes: vec![1.0, 3e24, 1.0, 3e-24, 0.0], ..case };
    let of = case.upload(gpu)?;
    let y = gpu.recurrent(case.layer(&of))?;
    Ok(case.judge(&Results { y: read(&y)?, c: read(&of.c)?, gradients: vec![] })?)
}

fn rejects(gpu: &Gpu) -> Outcome {
    let case = Case { batch: 1, units: 5, length: 2, ..Case::new(Cell::Gru) };
    let of = case.upload(gpu)?;
    let layer = case.layer(&of);
    let y = gpu.zeros(&case.y_shape(), DType::F32)?;
    let half = gpu.zeros(&case.y_shape(), DType::F16)?;
    let (other, c) = (gpu.zeros(&[3, 5], DType::F32)?, gpu.zeros(&[1, 5], DType::F32)?);
    let saved = saved_of(gpu, &layer)?;
    let lstm = Recurrent::lstm(&of.x, &of.v[0], &of.v[1]);
    let plain = Recurrent::gru(&of.x, &of.v[0], &of.v[1]);
    let first = Tensor::from_buffer(gpu, y.buffer()?, 0, &[1, 5], DType::F32)?;
    let shape = |error: &Error| matches!(error, Error::Argument(ArgumentError::Shape { .. }));
    let cases = [
        ("y", refused(gpu, |ops| ops.recurrent(layer, &other))?, shape as fn(&Error) -> bool),
        ("half words", refused(gpu, |ops| ops.recurrent(layer, &half))?, shape),
        ("four gates", refused(gpu, |ops| ops.recurrent(lstm, &y))?, shape),
        ("bias", refused(gpu, |ops| ops.recurrent(layer.bias(&c), &y))?, shape),
        ("h0", refused(gpu, |ops| ops.recurrent(layer.h0(&other), &y))?, shape),
        ("c of a GRU", refused(gpu, |ops| ops.recurrent(layer.c(&c), &y))?, shape),
        ("saved", refused(gpu, |ops| ops.recurrent(plain.saved(&saved), &y))?, shape),
        ("h0 in y", refused(gpu, |ops| ops.recurrent(layer.h0(&first), &y))?, |error| {
            matches!(error, Error::Argument(ArgumentError::Alias { .. }))
        }),
        ("tile", refused(gpu, |ops| ops.recurrent(layer.tile(Tile::Narrow4), &y))?, |error| {
            matches!(error, Error::Argument(ArgumentError::Variant { .. }))
        }),
    ];
    all(cases, |(what, error, fits)| if fits(error) { Ok(()) } else { Err(format!("{what}: {error}").into()) })
}

fn comparison_can_fail(gpu: &Gpu) -> Outcome {
    let case = Case::new(Cell::Lstm);
    let results = case.run(gpu)?;
    case.judge(&results)?;
    must_fail("without biases", Case { biases: false, ..case.clone() }.judge(&results))?;
    must_fail("plain weights", Case { axis: None, ..case.clone() }.judge(&results))?;
    must_fail("from zero", Case { states: false, ..case }.judge(&results))
}

/// Of every axis, storage type and start; what is added to gradients.
fn gradients(gpu: &Gpu) -> Outcome {
    let (full, half, brain) = (DType::F32, DType::F16, DType::Bf16);
    let mut cases = vec![];
    for cell in CELLS {
        let case = Case { gradients: true, ..Case::new(cell) };
        for axis in [Some(Axis::Kept(0)), Some(Axis::Kept(1)), Some(Axis::Whole), None] {
            cases.push(Case { axis, ..case.clone() });
        }
        for dtypes in [[half; 3], [full, brain, half]] {
            cases.push(Case { dtypes, ..case.clone() });
        }
        for (length, batch, units) in [(1, 2, 4), (2, 1, 5), (5, 70, 8)] {
            cases.push(Case { length, batch, units, tile: None, ..case.clone() });
            cases.push(Case { length, batch, units, states: false, biases: false, tile: None, ..case.clone() });
        }
        cases.push(Case { eps: Eps::After(0.1), sizes: vec![1.0, 0.0], ..case.clone() });
    }
    all(cases, |case| case.check(gpu))
}

/// Gradients are added to what is there, or replace it, and a part of them is as right as all.
fn gradients_into(gpu: &Gpu) -> Outcome {
    let case = Case::new(Cell::Gru);
    let (numbers, of) = (case.numbers(), case.upload(gpu)?);
    let dy = made(gpu, &case.dy(), &case.y_shape(), DType::F32)?;
    let layer = case.layer(&of);
    let (dv, dg, dbias) =
        (gpu.zeros(of.v[1].shape(), DType::F32)?, gpu.zeros(&[18], DType::F32)?, gpu.zeros(&[18], DType::F32)?);
    for _ in 0..2 {
        let (y, saved) = gpu.recurrent_saved(layer)?;
        let wanted = Gradients::default().dv(&dv).dg(&dg).dbias(&dbias).accumulate(true);
        let layer = layer.saved(&saved).output(&y);
        recorded(gpu, |ops| ops.recurrent_backward(layer, &dy, &Gradients::default(), &wanted))?;
    }
    let expected = cpu::recurrent_backward(&case.reference(&numbers), &case.dy(), None)?.hidden;
    let off = case.bounds(&numbers).hidden;
    for (name, got, expected, off) in [
        ("dv", dv, expected.dv, off.dv),
        ("dg", dg, expected.dg.unwrap_or_default(), off.dg),
        ("dbias", dbias, expected.dbias, off.dbias),
    ] {
        let twice: Vec<f64> = expected.iter().map(|e| 2.0 * e).collect();
        let bound = |i: usize| 2.0 * off[i].e + storage_bound(DType::F32, twice[i]);
        compare(&read(&got)?, &twice, Some(DType::F32), bound).map_err(|e| format!("{name}: {e}"))?;
    }
    Ok(())
}

fn gradients_rejected(gpu: &Gpu) -> Outcome {
    let case = Case::new(Cell::Lstm);
    let of = case.upload(gpu)?;
    let layer = case.layer(&of);
    let saved = saved_of(gpu, &layer)?;
    let (y, dy) = (gpu.zeros(&case.y_shape(), DType::F32)?, gpu.zeros(&case.y_shape(), DType::F32)?);
    let none = Gradients::default();
    let ready = layer.saved(&saved).output(&y);
    let empty = gpu.zeros(&[0, case.batch, case.features], DType::F32)?;
    let no_steps = Recurrent::lstm(&empty, &of.v[0], &of.v[1]);
    let saved_none = saved_of(gpu, &no_steps)?;
    let y_none = gpu.zeros(&[0, case.batch, case.units], DType::F32)?;
    let missing = |error: &Error| matches!(error, Error::Argument(ArgumentError::Missing { .. }));
    let shape = |error: &Error| matches!(error, Error::Argument(ArgumentError::Shape { .. }));
    let refused = |layer: Recurrent<'_>, dy: &Tensor, hidden: &Gradients<'_>| {
        refused(gpu, |ops| ops.recurrent_backward(layer, dy, &none, hidden))
    };
    let plain = Recurrent::lstm(&of.x, &of.v[0], &of.v[1]);
    let saved_plain = saved_of(gpu, &plain)?;
    let cases = [
        ("without saved", refused(layer.output(&y), &dy, &none)?, missing as fn(&Error) -> bool),
        ("without y", refused(layer.saved(&saved), &dy, &none)?, missing),
        ("dy", refused(ready, &of.x, &none)?, shape),
        ("dh0", refused(ready, &dy, &none.dx(&dy))?, shape),
        ("dg of a plain weight", refused(plain.saved(&saved_plain).output(&y), &dy, &none.dg(&of.g[1]))?, shape),
        ("no steps", refused(no_steps.saved(&saved_none).output(&y_none), &y_none, &none)?, shape),
        ("dh0 in h0", refused(ready, &dy, &none.dx(&of.h0))?, |error| {
            matches!(error, Error::Argument(ArgumentError::Alias { .. }))
        }),
    ];
    all(cases, |(what, error, fits)| if fits(error) { Ok(()) } else { Err(format!("{what}: {error}").into()) })
}
