//! linear: every axis, size, storage type, activation and forced variant.
use weightnorm::{Activation, Axis, DType, Eps, Gpu, Linear, Tensor, Tile, Weight, WeightNorm, cpu};

use crate::common::{activated_bound, compare, dot_bound, norm_bound};
use crate::data::{
    DTYPES, Guarded, OFFSETS, all, gains, in_turn, must_fail, norm_chain, norm_count, norm_length, random,
};
use crate::norms::simple;
use crate::{Extent, Needs, Outcome, Suite};

const F32: [DType; 3] = [DType::F32; 3];
pub const OUT: Option<Axis> = Some(Axis::Kept(0));
pub const IN: Option<Axis> = Some(Axis::Kept(1));
pub const WHOLE: Option<Axis> = Some(Axis::Whole);
pub const PLAIN: Option<Axis> = None;

pub fn register(suite: &mut Suite) {
    // Few: by one tile, since each takes pipelines of its own.
    suite.sampled("linear_batches", |gpu, extent| {
        all([1, 2, 7, 8, 9, 33, 64, 65, 1000], |&batch| {
            Case { tile: extent.choose(None, Some(Tile::Tile32x32)), ..Case::new([batch, 129, 39]) }.check(gpu)?;
            let tile = extent.choose(None, Some(Tile::Gemv4));
            Case { axis: PLAIN, tile, ..Case::new([batch, 3, 13]) }.check(gpu)
        })
    });
    suite.sampled("linear_in_features", |gpu, extent| {
        // Whole steps of k are another kernel.
        let [whole, many] = extent.choose([512, 5120], [511, 5121]);
        all([1, 3, 4, 5, 13, 39, 259, whole, 1023, many], |&ins| {
            Case::new([3, 5, ins]).check(gpu)?;
            Case { tile: extent.choose(None, Some(Tile::Tile32x32)), ..Case::new([65, 66, ins]) }.check(gpu)?;
            Case { axis: IN, ..Case::new([3, 5, ins]) }.check(gpu)
        })
    });
    suite.sampled("linear_out_features", |gpu, extent| {
        let tile = extent.choose(None, Some(Tile::Gemv4));
        all([1, 3, 4, 129, 257, extent.choose(131_072, 70_000)], |&outs| {
            Case { tile, ..Case::new([2, outs, 5]) }.check(gpu)?;
            Case { axis: IN, tile, ..Case::new([2, outs, 5]) }.check(gpu)?;
            Case { axis: WHOLE, tile, ..Case::new([2, outs, 5]) }.check(gpu)
        })
    });
    suite.sampled("linear_a_million_rows", |gpu, extent| {
        Case::new([extent.choose(1_000_000, 100_000), 3, 2]).check(gpu)
    });
    suite.sampled("linear_axes_and_ends", axes_and_ends);
    suite.test("linear_dispatch_count", Needs::Nothing, dispatch_count);
    suite.sampled("linear_mixes_of_dtypes", mixes);
    suite.sampled("linear_packed_rows_share_words", packed_rows_share_words);
    suite.sampled("linear_every_tile_and_split", tiles_and_splits);
    suite.sampled("linear_every_tile_in_quads", tiles_in_quads);
    suite.sampled("linear_few_rows", few_rows);
    suite.sampled("linear_few_outputs_of_one_sign", few_outputs_of_one_sign);
    suite.sampled("linear_longest_loops", longest_loops);
    suite.sampled("linear_long_rows", long_rows);
    suite.sampled("linear_activations", activations);
    suite.test("linear_ranks_of_x", Needs::Nothing, |gpu| {
        all([&[][..], &[3], &[2, 3], &[2, 1, 3], &[1, 1, 1, 5]], |batch| {
            Case { batch_shape: batch.to_vec(), ..Case::new([batch.iter().product(), 7, 13]) }.check(gpu)
        })
    });
    suite.test("linear_of_empty_tensors", Needs::Nothing, empty);
    suite.sampled("linear_gives_the_same_bits_again", same_bits);
    suite.test("linear_comparison_can_fail", Needs::Nothing, comparison_can_fail);
}

/// One product, its data and what it should use.
#[derive(Clone)]
pub struct Case {
    pub batch_shape: Vec<usize>,
    /// batch, out_features, in_features
    pub size: [usize; 3],
    /// `None`: a plain weight.
    pub axis: Option<Axis>,
    pub eps: Eps,
    /// Of x, v and y.
    pub dtypes: [DType; 3],
    pub gain: bool,
    pub bias: bool,
    /// Norms that are known, rounded to f32.
    pub known: bool,
    pub write_norms: bool,
    pub activation: Activation,
    pub tile: Option<Tile>,
    pub split_length: Option<u32>,
    /// Of the first element of every tensor, in bytes.
    pub alignment: u64,
    pub x: Option<Vec<f64>>,
    pub v: Option<Vec<f64>>,
    pub g: Option<Vec<f64>>,
    pub biases: Option<Vec<f64>>,
    /// Where every sum is exact in f32.
    pub exact_sums: bool,
}

/// What the GPU made of a case.
#[derive(Clone)]
pub struct Got {
    pub y: Vec<f64>,
    pub norms: Option<Vec<f64>>,
    pub bits: Vec<u8>,
    pub dispatches: u64,
}

impl std::fmt::Debug for Case {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Case { size, axis, eps, dtypes, gain, bias, known, write_norms, activation, tile, split_length, .. } = self;
        write!(
            f,
            "{size:?} {axis:?} {eps:?} {dtypes:?} gain {gain}, bias {bias}, known {known}, norms {write_norms}, "
        )?;
        write!(f, "{activation:?} {tile:?} {split_length:?}")
    }
}

impl Case {
    /// A fused product with everything in f32, random data, gain and bias, the norms written out.
    pub fn new([batch, outs, ins]: [usize; 3]) -> Case {
        Case {
            batch_shape: vec![batch],
            size: [batch, outs, ins],
            axis: OUT,
            eps: Eps::default(),
            dtypes: F32,
            gain: true,
            bias: true,
            known: false,
            write_norms: true,
            activation: Activation::None,
            tile: None,
            split_length: None,
            alignment: 4,
            x: None,
            v: None,
            g: None,
            biases: None,
            exact_sums: false,
        }
    }

    /// Few: by one tile, unless the case names one, so that tests share its pipelines.
    pub fn by_one_tile(self, extent: Extent) -> Case {
        let tile = self.tile.or(extent.choose(None, Some(Tile::Gemv4)));
        Case { tile, ..self }
    }

    pub fn x(&self) -> Vec<f64> {
        self.x.clone().unwrap_or_else(|| random(11, self.size[0] * self.size[2], self.dtypes[0]))
    }

    pub fn v(&self) -> Vec<f64> {
        self.v.clone().unwrap_or_else(|| random(12, self.size[1] * self.size[2], self.dtypes[1]))
    }

    fn g(&self) -> Option<Vec<f64>> {
        let axis = self.axis.filter(|_| self.gain)?;
        Some(self.g.clone().unwrap_or_else(|| gains(13, norm_count(&self.v_shape(), axis))))
    }

    fn biases(&self) -> Option<Vec<f64>> {
        self.bias.then(|| self.biases.clone().unwrap_or_else(|| random(14, self.size[1], DType::F32)))
    }

    fn v_shape(&self) -> [usize; 2] {
        [self.size[1], self.size[2]]
    }

    fn shape(&self, last: usize) -> Vec<usize> {
        [&self.batch_shape[..], &[last]].concat()
    }

    fn norms(&self) -> Option<Vec<f64>> {
        let norms = |axis| cpu::row_norms(&self.v(), &self.v_shape(), axis, self.eps).expect("shapes that fit");
        self.axis.map(norms)
    }

    /// On the GPU, into outputs between guards.
    pub fn run(&self, gpu: &Gpu) -> Result<Got, libtest_mimic::Failed> {
        let [batch, outs, ins] = self.size;
        let seed = batch + outs + ins;
        let offset_of = |seed: usize| OFFSETS[seed % OFFSETS.len()].next_multiple_of(self.alignment);
        let offset = offset_of(seed);
        let upload = |gpu: &Gpu, values: &[f64], shape: &[usize], dtype, seed| {
            Ok::<_, weightnorm::Error>(Guarded::holding(gpu, values, shape, dtype, offset_of(seed))?.tensor)
        };
        let x = upload(gpu, &self.x(), &self.shape(ins), self.dtypes[0], seed + 1)?;
        let v = upload(gpu, &self.v(), &self.v_shape(), self.dtypes[1], seed + 2)?;
        let vector = |values: Option<Vec<f64>>, seed| -> Result<Option<Tensor>, weightnorm::Error> {
            values.map(|values| upload(gpu, &values, &[values.len()], DType::F32, seed)).transpose()
        };
        let (g, biases) = (vector(self.g(), seed + 3)?, vector(self.biases(), seed)?);
        let known = vector(self.norms().filter(|_| self.known), seed + 1)?;
        let y = Guarded::poisoned(gpu, &self.shape(outs), self.dtypes[2], offset)?;
        let norms = match self.axis.filter(|_| self.write_norms) {
            Some(axis) => Some(Guarded::poisoned(gpu, &[norm_count(&self.v_shape(), axis)], DType::F32, offset)?),
            None => None,
        };

        let weight: Weight<'_> = match self.axis {
            None => (&v).into(),
            Some(axis) => {
                let unit = WeightNorm::unit(&v);
                let mut weight = g.as_ref().map_or(unit, |g| WeightNorm::new(&v, g)).axis(axis).eps(self.eps);
                if let Some(known) = &known {
                    weight = weight.norms(known);
                }
                weight.into()
            }
        };
        let mut encoder = gpu.device().create_command_encoder(&Default::default());
        let mut ops = gpu.record(&mut encoder);
        let linear = Linear::new(&x, weight).bias(biases.as_ref()).activation(self.activation);
        let linear = linear.norms(norms.as_ref().map(|n| &n.tensor)).tile(self.tile).split_length(self.split_length);
        ops.linear(linear, &y.tensor)?;
        let dispatches = ops.dispatch_count();
        drop(ops);
        gpu.queue().submit([encoder.finish()]);
        let norms = norms.map(|n| n.read().map_err(|e| format!("norms: {e}"))).transpose()?;
        Ok(Got { y: y.read()?, norms, bits: y.bytes()?, dispatches })
    }

    /// Compares with the CPU reference.
    pub fn judge(&self, got: &Got) -> Result<(), String> {
        let [batch, _, ins] = self.size;
        let fail = |e: weightnorm::Error| e.to_string();
        let (x, v, g) = (self.x(), self.v(), self.g());
        let (x_shape, v_shape) = ([batch, ins], self.v_shape());
        let norm_chain = match self.axis {
            Some(axis) if !self.exact_sums => norm_chain(norm_length(&v_shape, axis)),
            _ => 1,
        };
        let w = match self.axis {
            None => v,
            Some(axis) => cpu::normalize(&v, &v_shape, g.as_deref(), axis, self.eps).map_err(fail)?,
        };
        let product = |x: &[f64], w: &[f64], bias: Option<&[f64]>| {
            cpu::linear(x, &x_shape, w, &v_shape, bias, Activation::None).map_err(fail)
        };
        let before = product(&x, &w, self.biases().as_deref())?;
        let magnitudes = |values: &[f64]| values.iter().map(|a| a.abs()).collect::<Vec<_>>();
        let sums = product(&magnitudes(&x), &magnitudes(&w), None)?;
        let expected: Vec<f64> = before.iter().map(|&y| cpu::activate(y, self.activation)).collect();
        let chain = if self.exact_sums { 1 } else { norm_chain.max(ins) };
        let dtype = self.dtypes[2];
        let bound = |i: usize| match self.activation {
            Activation::None => dot_bound(chain, sums[i], before[i], dtype),
            activation => {
                activated_bound(activation, before[i], dot_bound(chain, sums[i], before[i], DType::F32), dtype)
            }
        };
        compare(&got.y, &expected, Some(dtype), bound)?;
        if let (Some(got), Some(expected)) = (&got.norms, self.norms()) {
            compare(got, &expected, Some(DType::F32), |j| norm_bound(norm_chain, expected[j]))
                .map_err(|e| format!("norms: {e}"))?;
        }
        Ok(())
    }

    pub fn check(&self, gpu: &Gpu) -> Outcome {
        let judged = self.run(gpu).and_then(|got| Ok(self.judge(&got)?));
        judged.map_err(|e| format!("{self:?}: {}", e.message().unwrap_or_default()).into())
    }
}

fn mixes(gpu: &Gpu, extent: Extent) -> Outcome {
    let all_mixes = (0..27).map(|i| [i / 9, i / 3 % 3, i % 3]).collect();
    all(extent.choose(all_mixes, vec![[0, 1, 2], [1, 2, 0], [2, 0, 1]]), |mix| {
        Case { dtypes: mix.map(|i| DTYPES[i]), ..Case::new([5, 7, 13]) }.by_one_tile(extent).check(gpu)
    })
}

fn axes_and_ends(gpu: &Gpu, extent: Extent) -> Outcome {
    let base = Case::new([5, 33, 39]).by_one_tile(extent);
    let mut cases = vec![];
    for axis in [OUT, IN, WHOLE] {
        for known in [false, true] {
            cases.push(Case { axis, known, ..base.clone() });
            // Without gain, bias and norms written: of each axis once.
            if extent == Extent::Few && known != (axis == OUT) {
                continue;
            }
            cases.push(Case { axis, known, gain: false, bias: false, write_norms: false, ..base.clone() });
        }
        cases.push(Case { axis, eps: Eps::After(0.5), ..base.clone() });
        cases.push(Case { axis, eps: Eps::InsideSqrt(0.5), ..base.clone() });
        cases.push(Case { axis, eps: Eps::Clamp(100.0), ..base.clone() });
        cases.push(Case { axis, eps: Eps::None, ..base.clone() });
    }
    cases.push(Case { axis: PLAIN, bias: false, ..base.clone() });
    cases.push(Case { axis: PLAIN, ..base });
    all(cases, |case| case.check(gpu))
}

/// What the documentation of `Linear` promises.
fn dispatch_count(gpu: &Gpu) -> Outcome {
    let base = Case::new([5, 33, 39]);
    let split = Some(16);
    let cases = [
        (base.clone(), 1),
        (Case { axis: PLAIN, ..base.clone() }, 1),
        // With known norms no work for norms, and no dispatch; one where they are to be copied out, or to be scales.
        (Case { known: true, write_norms: false, ..base.clone() }, 1),
        (Case { known: true, ..base.clone() }, 2),
        (Case { axis: IN, known: true, ..base.clone() }, 2),
        (Case { axis: WHOLE, known: true, ..base.clone() }, 2),
        // Norms of columns are two dispatches, of the whole tensor one.
        (Case { axis: IN, ..base.clone() }, 3),
        (Case { axis: WHOLE, ..base.clone() }, 2),
        // A forced split, and one that the length of a loop forces.
        (Case { split_length: split, ..base.clone() }, 2),
        (Case { axis: PLAIN, split_length: split, ..base.clone() }, 2),
        (Case { known: true, write_norms: false, split_length: split, ..base.clone() }, 2),
        (Case { axis: IN, split_length: split, ..base.clone() }, 4),
        (Case { axis: WHOLE, split_length: split, ..base.clone() }, 3),
        (Case { tile: Some(Tile::Tile32x32), ..Case::new([2, 3, 40_000]) }, 2),
        // Nothing to multiply: the norms alone, or nothing at all.
        (Case::new([0, 3, 5]), 1),
        (Case { write_norms: false, ..Case::new([0, 3, 5]) }, 0),
    ];
    all(cases, |(case, expected)| {
        let got = case.run(gpu)?;
        case.judge(&got)?;
        match got.dispatches == *expected {
            true => Ok(()),
            false => Err(format!("{} dispatches", got.dispatches).into()),
        }
    })
}

/// Odd rows of packed x, v and y: neighbours share words. Many rows, so that neighbours run at once.
fn packed_rows_share_words(gpu: &Gpu, extent: Extent) -> Outcome {
    // Few: one tile for each type, one of them that all rows of y have to themselves, one that they share.
    let [bf16, f16] = [Tile::Tile32x32, Tile::Gemv4].map(|tile| extent.choose(None, Some(tile)));
    all([[1000, 1, 3], [1001, 3, 1], [33, 129, 5], [7, 257, 13], [45, 67, 1], [2, 1, 1]], |&size| {
        Case { dtypes: [DType::Bf16; 3], tile: bf16, ..Case::new(size) }.check(gpu)
    })?;
    all([[1000, 1, 3], [1001, 3, 1], [7, 257, 13]], |&size| {
        Case { dtypes: [DType::F16; 3], tile: f16, ..Case::new(size) }.check(gpu)
    })
}

fn tiles_and_splits(gpu: &Gpu, extent: Extent) -> Outcome {
    let mut cases = vec![];
    for (i, tile) in Tile::all_on(gpu).enumerate() {
        // The others in `tiles_in_quads`, and below.
        let few = i % 2 == 0 && ![Tile::Tile128x128, Tile::Gemv8].contains(&tile);
        for size in [[1, 1, 1], [63, 65, 17], [130, 67, 50]].into_iter().filter(|_| extent == Extent::All || few) {
            cases.push(Case { tile: Some(tile), ..Case::new(size) });
        }
        if extent == Extent::Few && ![Tile::Tile32x32, Tile::Gemv8, Tile::Subgroup8].contains(&tile) {
            continue;
        }
        for split_length in [1, 48, 500] {
            cases.push(Case { tile: Some(tile), split_length: Some(split_length), ..Case::new([67, 70, 259]) });
        }
    }
    // More than one of the largest tile, along each of its sides.
    if Tile::Tile128x128.runs_on(gpu) {
        cases.push(Case { tile: Some(Tile::Tile128x128), ..Case::new([131, 130, 50]) });
    }
    // `dispatch_count` has some too.
    for axis in extent.choose(&[IN, WHOLE, PLAIN][..], &[]).iter().copied() {
        for split_length in [16, 48] {
            let tile = Some(Tile::Gemv8);
            cases.push(Case { tile, axis, split_length: Some(split_length), ..Case::new([33, 34, 131]) });
        }
    }
    all(cases, |case| case.check(gpu))
}

/// Every tile where operands and result are read and written in quads, at edges that are none of the tile's; depths
/// that are multiples of eight and that are not.
fn tiles_in_quads(gpu: &Gpu, extent: Extent) -> Outcome {
    let case = |tile, size| Case { tile: Some(tile), alignment: 16, ..Case::new(size) };
    let tiles = Tile::all_on(gpu).skip(extent.choose(0, 1));
    let mut cases: Vec<_> = extent.of(tiles, 2).into_iter().map(|tile| case(tile, [67, 68, 80])).collect();
    for tile in extent.of([Tile::Gemv4, Tile::Tile64x64, Tile::Subgroup4, Tile::Subgroup32], 2) {
        cases.push(case(tile, [3, 36, 44]));
        // Of each of these one, where few are wanted.
        let others = [
            Case { split_length: Some(16), ..case(tile, [5, 36, 44]) },
            Case { dtypes: [DType::F16; 3], ..case(tile, [5, 36, 44]) },
            Case { axis: IN, ..case(tile, [3, 36, 44]) },
        ];
        cases.extend(others.into_iter().take(extent.choose(3, 1)));
    }
    cases.retain(|case| case.tile.is_none_or(|tile| tile.runs_on(gpu)));
    all(cases, |case| case.check(gpu))
}

/// Few rows by the tiles for them, at the edges of their quads and teams, in every kind of reading and writing.
fn few_rows(gpu: &Gpu, extent: Extent) -> Outcome {
    let mut cases = vec![];
    for (rows, tile) in [(1, Tile::Gemv1), (2, Tile::Gemv2), (3, Tile::Gemv4), (5, Tile::Gemv8), (8, Tile::Gemv8)] {
        // Few: without those whose result is written in quads, which `tiles_in_quads` has.
        let in_quads = |[_, outs, _]: &[usize; 3]| outs.is_multiple_of(4);
        let sizes = [[rows, 1, 1], [rows, 7, 3], [rows, 132, 4], [rows, 130, 257], [rows, 12, 1156]];
        for size in sizes.into_iter().filter(|size| extent == Extent::All || !in_quads(size)) {
            cases.push(Case { tile: Some(tile), ..Case::new(size) });
        }
    }
    let of = |size, dtypes| Case { tile: Some(Tile::Gemv4), dtypes, ..Case::new(size) };
    // Few: `mixes` has the storage types by the same tile.
    for size in extent.choose(&[[3, 7, 257], [4, 12, 1156]][..], &[]).iter().copied() {
        cases.extend([DType::F16, DType::Bf16].map(|dtype| of(size, [dtype; 3])));
        cases.push(of(size, [DType::F16, DType::F32, DType::Bf16]));
        cases.push(of(size, [DType::F32, DType::Bf16, DType::F16]));
    }
    let base = of([3, 20, 1156], [DType::F32; 3]);
    cases.extend([PLAIN, IN, WHOLE].map(|axis| Case { axis, ..base.clone() }));
    cases.push(Case { known: true, write_norms: false, ..base.clone() });
    cases.push(Case { split_length: Some(560), ..base });
    all(cases, |case| case.check(gpu))
}

/// Sums of terms of one sign, and all alike: the worst for a single chain of K = 4096, which is 3e-5 off then. Layers
/// of up to 8 outputs, as heads of pitch or distance are, sum up in pieces.
fn few_outputs_of_one_sign(gpu: &Gpu, extent: Extent) -> Outcome {
    let ins = 4096;
    in_turn(gpu, extent, [(1, 1), (5, 3), (300, 1), (300, 8)], |gpu, &(rows, outs)| {
        let x = gpu.upload(&vec![0.3f32; rows * ins], &[rows, ins])?;
        let v = gpu.upload(&vec![0.7f32; outs * ins], &[outs, ins])?;
        for (what, y, expected) in [
            ("normalized", gpu.linear(Linear::new(&x, WeightNorm::unit(&v)))?, f64::from(0.3f32) * 64.0),
            ("plain", gpu.linear(Linear::new(&x, &v))?, f64::from(0.3f32) * f64::from(0.7f32) * 4096.0),
        ] {
            for y in y.read::<f32>()? {
                let off = (f64::from(y) / expected - 1.0).abs();
                assert!(off <= 2e-6, "{what}, {rows}x{ins}x{outs}: off by {off:e}");
            }
        }
        Ok(())
    })
}

/// in_features at the very end of what one invocation may loop over, whole tiles, and values so large (or so small)
/// that every sum has to be formed again: no loop may be cut short. lavapipe stops an invocation after 65,535
/// iterations and says nothing.
fn longest_loops(gpu: &Gpu, extent: Extent) -> Outcome {
    let mut sizes = vec![
        (Tile::Tile32x32, 32, 32),
        (Tile::Tile64x64, 64, 64),
        (Tile::Tile128x8, 128, 8),
        (Tile::Gemv8, 8, 8),
        (Tile::Tile128x128, 128, 8),
    ];
    sizes.extend([
        (Tile::Subgroup64, 64, 32),
        (Tile::Subgroup32, 32, 32),
        (Tile::Subgroup8, 8, 32),
        (Tile::Subgroup1, 1, 32),
    ]);
    sizes.retain(|(tile, _, _)| tile.runs_on(gpu));
    all(extent.of(sizes, 5), |&(tile, batch, outs)| {
        let ins = weightnorm::internals::longest_sum(tile, gpu) as usize;
        let base = Case {
            tile: Some(tile),
            exact_sums: true,
            x: Some(simple(batch * ins)),
            v: Some(simple(outs * ins)),
            ..Case::new([batch, outs, ins])
        };
        let got = base.run(gpu)?;
        if got.dispatches != 1 {
            return Err(format!("{} dispatches, not the longest single one", got.dispatches).into());
        }
        base.judge(&got)?;
        for exponent in [83, -83] {
            let scale = 2f64.powi(exponent);
            let v: Vec<f64> = base.v().iter().map(|v| v * scale).collect();
            // Nothing is zero in rows of x that are all alike but for their signs.
            Case { v: Some(v), eps: Eps::None, ..base.clone() }.check(gpu).map_err(|e| format!("{exponent}: {e:?}"))?;
        }
        // The scales on the contraction are the longest loop while staging, most where the columns are many.
        if outs < 64 && tile != Tile::Gemv8 {
            return Ok(());
        }
        Case { axis: IN, eps: Eps::None, v: Some(vec![1.0; outs * ins]), ..base }.check(gpu)
    })
}

fn long_rows(gpu: &Gpu, extent: Extent) -> Outcome {
    let long = extent.choose(1 << 20, 1 << 17);
    let mut cases = vec![];
    // Batch 2 with every sum formed again.
    for (batch, scale) in [(1, 1.0), (2, 2f64.powi(83)), (3, 1.0)] {
        let (x, v) = (simple(batch * long), simple(8 * long).iter().map(|v| v * scale).collect());
        cases.push(Case { x: Some(x), v: Some(v), exact_sums: true, ..Case::new([batch, 8, long]) });
    }
    let (x, v) = (Some(simple(2 * 8)), Some(vec![1.0; 8 * long]));
    for axis in [OUT, IN, WHOLE] {
        cases.push(Case { axis, x: x.clone(), v: v.clone(), exact_sums: true, ..Case::new([2, long, 8]) });
    }
    all(extent.of(cases, 3), |case| case.check(gpu))
}

pub const ACTIVATIONS: [Activation; 8] = [
    Activation::None,
    Activation::Relu,
    Activation::LeakyRelu(0.1),
    Activation::Elu,
    Activation::Gelu,
    Activation::GeluTanh,
    Activation::Silu,
    Activation::Tanh,
];

/// Over the whole range, through products that are exact: y = x · 1.
fn activations(gpu: &Gpu, extent: Extent) -> Outcome {
    let mut x: Vec<f64> = (-4000..=4000).map(|i| f64::from(i) / 256.0).collect();
    let far = [
        15.6, 20.0, 44.0, 79.0, 80.5, 85.0, 87.0, 88.5, 89.0, 95.0, 103.0, 104.0, 127.0, 129.0, 1e3, 1e10, 1e20, 1e30,
        3e38,
    ];
    let near = [1e-37, 1e-30, 1e-20, 1e-10, 1e-7, 1e-5, 1e-3, 0.01, 0.249, 0.2501];
    x.extend(far.iter().chain(&near).flat_map(|&a| [f64::from(a as f32), -f64::from(a as f32)]));
    x.extend([f64::NAN, f64::INFINITY, f64::NEG_INFINITY]);
    let one = Case { axis: PLAIN, bias: false, v: Some(vec![1.0]), x: Some(x.clone()), ..Case::new([x.len(), 1, 1]) };
    let one = one.by_one_tile(extent);
    all(ACTIVATIONS, |&activation| {
        let expected: Vec<f64> = x.iter().map(|&x| cpu::activate(x, activation)).collect();
        let got = Case { activation, ..one.clone() }.run(gpu)?;
        compare(&got.y, &expected, Some(DType::F32), |i| activated_bound(activation, x[i], 0.0, DType::F32))?;
        // The other epilogue.
        if extent == Extent::Few && !matches!(activation, Activation::LeakyRelu(_) | Activation::GeluTanh) {
            return Ok(());
        }
        Case {
            activation,
            split_length: Some(16),
            tile: extent.choose(None, Some(Tile::Gemv8)),
            ..Case::new([3, 5, 39])
        }
        .check(gpu)
    })
}

/// No batch, no columns, nothing to sum up: then y = act(bias), and the norms are those of empty rows.
fn empty(gpu: &Gpu) -> Outcome {
    let sizes = [[0, 3, 5], [2, 0, 5], [2, 3, 0], [0, 0, 5], [0, 3, 0], [2, 0, 0], [0, 0, 0]];
    let mut cases = vec![];
    for size in sizes {
        for axis in [OUT, IN, WHOLE, PLAIN] {
            cases.push(Case { axis, eps: Eps::After(0.25), ..Case::new(size) });
        }
        cases.push(Case { split_length: Some(16), ..Case::new(size) });
        cases.push(Case { known: true, ..Case::new(size) });
    }
    cases.push(Case { activation: Activation::GeluTanh, ..Case::new([2, 3, 0]) });
    cases.push(Case { dtypes: [DType::Bf16; 3], ..Case::new([3, 3, 0]) });
    all(cases, |case| case.check(gpu))
}

fn same_bits(gpu: &Gpu, extent: Extent) -> Outcome {
    let large = extent.choose(None, Some(Tile::Tile32x32));
    let half = [DType::Bf16; 3];
    let cases = [
        Case { tile: large, ..Case::new([65, 129, 259]) },
        Case { split_length: Some(48), tile: Some(Tile::Gemv8), ..Case::new([33, 34, 259]) },
        Case { axis: IN, ..Case::new([7, 33, 1023]) },
        Case { axis: WHOLE, ..Case::new([2, 2000, 257]) },
        Case { dtypes: half, tile: large, ..Case::new([1001, 3, 5]) },
        Case { dtypes: extent.choose(half, [DType::F16; 3]), ..Case::new([7, 257, 13]) },
    ];
    all(cases.map(|case| case.by_one_tile(extent)), |case| {
        let first = case.run(gpu)?;
        for _ in 0..3 {
            let again = case.run(gpu)?;
            if again.bits != first.bits || again.norms != first.norms {
                return Err("other bits".into());
            }
        }
        Ok(())
    })
}

fn comparison_can_fail(gpu: &Gpu) -> Outcome {
    let f32s = Case::new([7, 33, 39]);
    let halves = Case { dtypes: [DType::Bf16; 3], ..Case::new([7, 257, 13]) };
    for (case, step) in [(f32s, 1e-4), (halves, 0.1)] {
        let got = case.run(gpu)?;
        case.judge(&got)?;
        let mut perturbed = got.clone();
        perturbed.y[100] += step;
        must_fail("an element of y off by little", case.judge(&perturbed))?;
        let mut perturbed = got.clone();
        perturbed.norms.as_mut().expect("written")[20] *= 1.0 + 1e-4;
        must_fail("a norm off by little", case.judge(&perturbed))?;
        // Another weight in one place.
        let mut other = case.clone();
        let mut v = case.v();
        v[300] += 0.1;
        other.v = Some(v);
        must_fail("another weight", other.judge(&got))?;
    }
    // A sum that stops 1 in 2,000 short of its length.
    let long =
        Case { exact_sums: true, x: Some(vec![1.0; 40_000]), v: Some(vec![1.0; 40_000]), ..Case::new([1, 1, 40_000]) };
    let mut got = long.run(gpu)?;
    long.judge(&got)?;
    got.y[0] *= 1.0 - 0.5e-4;
    must_fail("a truncated sum", long.judge(&got))
}
