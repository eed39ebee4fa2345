//! The measurement that chooses tiles.
#[cfg(doc)]
use crate::DeviceError;
use crate::choose::Traits;
use crate::product::selection::{Problem, Selection};
use crate::tuning_table::{Choice, FORWARD, INPUT_GRADIENT, WEIGHT_GRADIENT};
use crate::{
    DType, Error, Gpu, Gradients, LimitError, Linear, LinearBackward, OperatorTime, Recorder, Tensor, Tile,
    TuningTable, WeightNorm,
};

/// A linear layer to tune for, weight-normalized along axis 0. (The table holds for other axes and ordinary weights
/// too.)
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct LinearShape {
    /// Rows of x.
    pub batch: usize,
    /// Columns of x.
    pub in_features: usize,
    /// Columns of y.
    pub out_features: usize,
    /// Of x, the weight, y and their gradients: f32 unless told.
    pub dtype: DType,
    /// Whether the backward pass is tuned too, and the forward pass writes what that wants.
    pub training: bool,
}

impl LinearShape {
    /// The forward pass of x `[batch, in_features]` to y `[batch, out_features]`, in f32.
    pub fn new(batch: usize, in_features: usize, out_features: usize) -> Self {
        LinearShape { batch, in_features, out_features, dtype: DType::F32, training: false }
    }

    /// Stores everything in this type.
    pub fn dtype(mut self, dtype: DType) -> Self {
        self.dtype = dtype;
        self
    }

    /// Tunes the backward pass too.
    pub fn training(mut self) -> Self {
        self.training = true;
        self
    }

    fn problem(&self, along_k: [bool; 2]) -> Problem {
        let [batch, ins, outs] = [self.batch, self.in_features, self.out_features].map(|size| size as u64);
        let size = match along_k {
            FORWARD => [batch, outs, ins],
            INPUT_GRADIENT => [batch, ins, outs],
            _ => [outs, ins, batch],
        };
        Problem { along_k, dtypes: [self.dtype; 2], size }
    }
}

impl Gpu {
    /// Measures which tile, and which split of the sums, is fastest here for each product of some linear layers: every
    /// tile that the device can run, unless it would compute mostly past the edges of the result. The candidates take
    /// turns, by [`Gpu::timing`], and the choice of the table stays unless another one is faster by 3 % at least, the
    /// upper end of the 95 % interval of the median ratio. With the lines in use ([`Gpu::tuning_table`]) for other
    /// products.
    ///
    /// ```no_run
    /// use weightnorm::{TuningTable, Gpu, LinearShape, Options};
    /// # type Outcome = Result<(), Box<dyn std::error::Error>>;
    /// # fn f(device: wgpu::Device, queue: wgpu::Queue, kept: Option<String>, keep: fn(String)) -> Outcome {
    /// let adopt = |table| Gpu::from_wgpu(device.clone(), queue.clone(), Options::default().tuning_table(table));
    /// let mut gpu = adopt(kept.unwrap_or_default().parse().unwrap_or_default())?;
    /// if gpu.tuning_table().is_empty() {
    ///     let table: TuningTable = gpu.tune(&[LinearShape::new(16_384, 512, 512).training()])?;
    ///     keep(table.to_string());
    ///     gpu = adopt(table)?;
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// Takes some two seconds of the device for each product, or as long as some fifty runs of it where that is more
    /// (then not every candidate has its turn), and what the driver needs to compile the candidates, which may be more
    /// by far. Wants a device that does nothing else meanwhile. Tensors, pipelines and scratch memory are its own, and
    /// gone in the end.
    ///
    /// # Errors
    /// [`DeviceError::OutOfMemory`] and [`LimitError::TooLarge`] if the tensors of a layer find no place,
    /// [`DeviceError::Lost`]; in a browser [`DeviceError::Unsupported`] without timestamps.
    #[cfg(not(target_arch = "wasm32"))]
    pub fn tune(&self, layers: &[LinearShape]) -> Result<TuningTable, Error> {
        pollster::block_on(self.tuned(layers, true))
    }

    /// [`Gpu::tune`] without blocking (but where the device has no timestamps).
    ///
    /// # Errors
    /// As [`Gpu::tune`].
    pub async fn tune_async(&self, layers: &[LinearShape]) -> Result<TuningTable, Error> {
        self.tuned(layers, false).await
    }

    async fn tuned(&self, layers: &[LinearShape], block: bool) -> Result<TuningTable, Error> {
        self.check()?;
        let mut table = self.tuning_table().clone();
        for shape in layers.iter().filter(|s| ![s.batch, s.in_features, s.out_features].contains(&0)) {
            let layer = Layer::new(self.with_own_caches()?, *shape, block)?;
            for along_k in [FORWARD, INPUT_GRADIENT, WEIGHT_GRADIENT] {
                if along_k == FORWARD || shape.training {
                    table.set(shape.problem(along_k), layer.fastest(along_k).await?);
                }
            }
        }
        Ok(table)
    }
}

/// Seconds of the device for each of the two parts of a measurement: a run of every candidate, and turns of the best.
const BUDGET: f64 = 1.0;
/// Runs of the choice of the table that the first part may take in any case.
const RUNS: f64 = 12.0;
/// Turns of the best, and how many of them there are beside the choice of the table.
const TURNS: std::ops::RangeInclusive<f64> = 5.0..=31.0;
const BEST: usize = 4;
/// How much longer than the shortest of all one of the best may have taken.
const REACH: f64 = 1.5;
/// What another choice may take of the time of the table's.
const MARGIN: f64 = 0.97;
/// Pieces that sums are tried in: where the whole ones make few workgroups, and the pieces no more than the most, of so
/// many steps at least.
const PIECES: [u64; 3] = [4, 16, 64];
const FEW_GROUPS: u64 = 128;
const MOST_GROUPS: u64 = 1024;
const LEAST_STEPS: u64 = 128;

/// The choice of the table, then what else there is, those of its family first.
fn candidates(traits: Traits, problem: &Problem) -> Vec<Choice> {
    let [rows, columns, depth] = problem.size;
    // The input gradient scales v before it is multiplied.
    let cooperative = problem.dtypes == [DType::F16; 2] && problem.along_k != INPUT_GRADIENT;
    let (table, table_length) = Tile::choose(traits, cooperative, problem);
    let able =
        || Tile::ALL.into_iter().filter(|tile| tile.runs(traits)).filter(|tile| cooperative || !tile.is_cooperative());
    let least = able().map(|tile| tile.grid(traits, problem.along_k[1], rows, columns).1).min().unwrap_or(0);
    let mut tiles: Vec<Tile> = able()
        .filter(|tile| tile.grid(traits, problem.along_k[1], rows, columns).1 <= 4 * least && *tile != table)
        .collect();
    tiles.sort_by_key(|tile| tile.family() != table.family());
    tiles.insert(0, table);
    let mut all = vec![Choice { tile: table, split_length: table_length }];
    for tile in tiles {
        let (groups, _) = tile.grid(traits, problem.along_k[1], rows, columns);
        let mut add = |choice| {
            if !all.contains(&choice) {
                all.push(choice);
            }
        };
        add(Choice { tile, split_length: None });
        for pieces in PIECES {
            let length = depth.div_ceil(pieces).next_multiple_of(16);
            let sensible = groups <= FEW_GROUPS && groups * pieces <= MOST_GROUPS && length >= LEAST_STEPS;
            if sensible && length < depth && length <= tile.longest(traits) {
                add(Choice { tile, split_length: Some(length as u32) });
            }
        }
    }
    all
}

/// The place of the fastest, given the times of some turns: the first one, unless another is faster beyond doubt.
fn fastest(turns: &[Vec<f64>]) -> usize {
    let count = turns.first().map_or(0, Vec::len);
    // (upper end of the 95 % interval of the median, median) of the ratios to the first.
    let ratio = |place: usize| {
        let mut ratios: Vec<f64> = turns.iter().map(|turn| turn[place] / turn[0]).collect();
        ratios.sort_by(f64::total_cmp);
        let half = ratios.len() as f64 / 2.0;
        let upper = (half + 0.98 * (2.0 * half).sqrt()).round() as usize;
        (ratios[upper.min(ratios.len() - 1)], ratios[ratios.len() / 2])
    };
    let better = (1..count).map(|place| (ratio(place), place)).filter(|((upper, _), _)| *upper <= MARGIN);
    better.min_by(|((_, a), _), ((_, b), _)| a.total_cmp(b)).map_or(0, |(_, place)| place)
}

/// The tensors of a layer on a device of its own.
struct Layer {
    gpu: Gpu,
    shape: LinearShape,
    block: bool,
    x: Tensor,
    v: Tensor,
    y: Tensor,
    dx: Tensor,
    dv: Tensor,
    g: Tensor,
    norms: Tensor,
    u: Tensor,
}

impl Layer {
    fn new(gpu: Gpu, shape: LinearShape, block: bool) -> Result<Layer, Error> {
        let LinearShape { batch, in_features: ins, out_features: outs, dtype, training } = shape;
        // Zeros have norms of a kind that takes longer.
        let halves = |shape: &[usize], dtype: DType| {
            let word = match dtype {
                DType::F32 => 0x3f00_0000,
                DType::F16 => 0x3800_3800,
                DType::Bf16 => 0x3f00_3f00,
            };
            Tensor::repeat(&gpu, word, shape, dtype)
        };
        let for_training = |size: usize| if training { size } else { 1 };
        Ok(Layer {
            x: halves(&[batch, ins], dtype)?,
            v: halves(&[outs, ins], dtype)?,
            y: halves(&[batch, outs], dtype)?,
            dx: gpu.zeros(&[for_training(batch), ins], dtype)?,
            dv: gpu.zeros(&[for_training(outs), ins], dtype)?,
            g: halves(&[outs], DType::F32)?,
            norms: halves(&[outs], DType::F32)?,
            u: halves(&[for_training(batch), outs], DType::F32)?,
            gpu,
            shape,
            block,
        })
    }

    /// Records a product of the layer, and little else.
    fn record(&self, ops: &mut Recorder<'_, '_>, along_k: [bool; 2], choice: Choice) -> Result<(), Error> {
        let Layer { x, v, y, dx, dv, g, norms, u, .. } = self;
        let weight = WeightNorm::new(v, g);
        let Selection { tile, split_length } = choice.selection();
        let backward = |u| LinearBackward::new(x, weight.norms(norms), y).u(u).tile(tile).split_length(split_length);
        match along_k {
            FORWARD => {
                let (norms, u) = self.shape.training.then_some((norms, u)).unzip();
                let linear = Linear::new(x, weight).norms(norms).u(u).tile(tile).split_length(split_length);
                ops.linear(linear, y)
            }
            INPUT_GRADIENT => ops.linear_backward(backward(None), &Gradients::default().dx(dx)),
            _ => ops.linear_backward(backward(Some(u)), &Gradients::default().dv(dv)),
        }
    }

    /// The seconds of the product in each of some choices, one after another.
    async fn seconds(&self, along_k: [bool; 2], choices: &[Choice]) -> Result<Vec<f64>, Error> {
        let record =
            |ops: &mut Recorder<'_, '_>| choices.iter().try_for_each(|&choice| self.record(ops, along_k, choice));
        let timed = self.gpu.timed(self.gpu.timing(), self.block, record).await?;
        // The reductions beside the products of the backward pass are the same whatever the tile.
        let of_products = |o: &OperatorTime| {
            let products = o.dispatches.iter().filter(|d| !d.label.starts_with("weightnorm.batch."));
            products.map(|d| d.seconds).sum::<f64>().max(1e-9)
        };
        Ok(timed.iter().map(of_products).collect())
    }

    async fn fastest(&self, along_k: [bool; 2]) -> Result<Choice, Error> {
        let mut once = vec![];
        let mut spent = 0.0;
        for choice in candidates(self.gpu.traits(), &self.shape.problem(along_k)) {
            // The first run may compile.
            let seconds =
                match self.seconds(along_k, &[choice; 2]).await {
                    Ok(seconds) => seconds[1],
                    // It does not fit the device; the choice of the table does.
                    Err(
                        Error::Limit(LimitError::TooLarge { .. }) | Error::Limit(LimitError::TensorTooLarge { .. }),
                    ) if !once.is_empty() => continue,
                    Err(error) => return Err(error),
                };
            once.push((choice, seconds));
            spent += 2.0 * seconds;
            if spent > BUDGET.max(RUNS * once[0].1) {
                break;
            }
        }
        let (_, others) = once.split_at_mut(1);
        others.sort_by(|(_, a), (_, b)| a.total_cmp(b));
        once.truncate(1 + BEST);
        let shortest = once.iter().map(|(_, seconds)| *seconds).fold(f64::INFINITY, f64::min);
        let in_reach = |place: usize, seconds: f64| place == 0 || seconds <= REACH * shortest;
        let best = once.into_iter().enumerate().filter(|&(place, (_, seconds))| in_reach(place, seconds));
        let (best, times): (Vec<Choice>, Vec<f64>) = best.map(|(_, once)| once).unzip();
        if best.len() == 1 {
            return Ok(best[0]);
        }
        let count = (BUDGET / times.iter().sum::<f64>()).clamp(*TURNS.start(), *TURNS.end()) as usize;
        let mut turns = vec![];
        let backwards: Vec<Choice> = best.iter().rev().copied().collect();
        for turn in 0..count {
            turns.push(if turn % 2 == 0 {
                self.seconds(along_k, &best).await?
            } else {
                self.seconds(along_k, &backwards).await?.into_iter().rev().collect()
            });
        }
        Ok(best[fastest(&turns)])
    }
}

#[cfg(test)]
mod tests {
    use super::fastest;

    /// Every other time is the ratio to the first one, which is not the same each turn either.
    fn turns(count: usize, ratios: &[&dyn Fn(usize) -> f64]) -> Vec<Vec<f64>> {
        let turn = |turn: usize| {
            let first = 1.0 + 0.3 * (turn % 3) as f64;
            std::iter::once(first).chain(ratios.iter().map(move |ratio| first * ratio(turn))).collect()
        };
        (0..count).map(turn).collect()
    }

    #[test]
    fn fastest_is_the_first_unless_another_is_beyond_doubt() {
        for count in [5, 9, 31] {
            assert_eq!(fastest(&turns(count, &[])), 0);
            assert_eq!(fastest(&turns(count, &[&|_| 1.0, &|_| 0.98])), 0, "by less than the margin");
            assert_eq!(fastest(&turns(count, &[&|_| 0.9, &|_| 0.8, &|_| 0.85])), 2, "the fastest of three");
            let doubtful = |turn: usize| if turn.is_multiple_of(2) { 0.5 } else { 1.1 };
            assert_eq!(fastest(&turns(count, &[&doubtful])), 0, "half of the turns");
            assert_eq!(fastest(&turns(count, &[&doubtful, &|_| 0.9])), 2, "steady before lucky");
        }
        // One slow turn of many is no doubt; of five it is.
        let disturbed = |turn: usize| if turn == 3 { 2.0 } else { 0.9 };
        assert_eq!(fastest(&turns(31, &[&disturbed])), 1);
        assert_eq!(fastest(&turns(5, &[&disturbed])), 0);
    }
}
