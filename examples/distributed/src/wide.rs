//! One wide layer, y = g·(x·v)/n̂ + bias, that no rank has as a whole.
use std::error::Error;
use std::ops::Range;
use std::time::Instant;

use mpi::traits::Communicator;
use weightnorm::cpu::effective_norm;
use weightnorm::{DType, Eps, Gpu, Linear, LinearBackward, Tensor, WeightNorm};

use crate::ranks::{Ranks, digest};
use crate::reference::{Layer, NAMES, worst};
use train::shape::Random;

/// One wide layer, split over the ranks, forward and backward, compared with the whole layer in f64
#[derive(clap::Args)]
pub struct Wide {
    /// Which axis of v is split
    #[arg(long, value_enum)]
    split: Split,
    #[arg(long, default_value_t = 24)]
    batch: usize,
    /// out_features
    #[arg(long, default_value_t = 96)]
    outs: usize,
    /// in_features
    #[arg(long, default_value_t = 1501)]
    ins: usize,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Split {
    /// Rows: each rank has some of out_features
    Out,
    /// Columns: each rank has some of in_features
    In,
}

/// The policy of the whole layer.
const EPS: Eps = Eps::Clamp(1e-12);
/// Of a part of a row: a row that is zero on one rank need not be zero. Nothing that this hides reaches the sums.
const EPS_OF_PART: Eps = Eps::Clamp(1e-30);

/// What a rank has in the end: y whole, and the gradients of its part.
struct Parts {
    /// y, dx, dv, dg, dbias
    results: [Vec<f32>; 5],
    /// Seconds of all that the ranks said to each other.
    seconds: f64,
}

impl Wide {
    pub fn run<C: Communicator>(&self, gpu: &Gpu, ranks: &Ranks<C>) -> Result<(), Box<dyn Error>> {
        let &Wide { batch, outs, ins, .. } = self;
        let mut random = Random::new(18);
        let mut numbers = |count: usize| -> Vec<f32> { (0..count).map(|_| random.uniform(-1.0, 1.0) as f32).collect() };
        let [x, v, g, bias, dy] = [batch * ins, outs * ins, outs, outs, batch * outs].map(&mut numbers);
        let layer = Layer { batch, outs, ins, x: &x, v: &v, g: &g, bias: &bias, dy: &dy };

        let split = || match self.split {
            Split::In => in_features(gpu, ranks, &layer),
            Split::Out => out_features(gpu, ranks, &layer),
        };
        let Parts { results, .. } = split()?;
        let again = split()?;
        for (what, (first, second)) in results.iter().zip(&again.results).enumerate() {
            if digest(first) != digest(second) {
                return Err(format!("{} has other bits the second time", NAMES[what]).into());
            }
        }
        ranks.agree("y", digest(&results[0]))?;

        // The whole layer by one process, too, is within the bounds.
        let exact = layer.results()?.0;
        let own = match self.split {
            Split::In => {
                let range = share(ins, ranks.rank, ranks.size);
                let [y, dx, dv, dg, dbias] = &exact;
                [y.clone(), columns(dx, ins, &range), columns(dv, ins, &range), dg.clone(), dbias.clone()]
            }
            Split::Out => {
                let rows = share(outs, ranks.rank, ranks.size);
                let [y, dx, dv, dg, dbias] = &exact;
                let dv = dv[rows.start * ins..rows.end * ins].to_vec();
                [y.clone(), dx.clone(), dv, dg[rows.clone()].to_vec(), dbias[rows].to_vec()]
            }
        };
        let mut line = format!("rank {} of {}: error as a part of its bound:", ranks.rank, ranks.size);
        for (what, result) in alone(gpu, &layer)?.iter().enumerate() {
            within(&format!("{} of one process", NAMES[what]), worst(result, &exact[what]))?;
        }
        for (what, result) in results.iter().enumerate() {
            let part = worst(result, &own[what]);
            within(NAMES[what], part)?;
            line += &format!(" {} {part:.1e}", NAMES[what]);
        }
        println!("{line}; communication {:.0} µs", again.seconds * 1e6);
        let digests: Vec<u64> = results.iter().map(|result| digest(result)).collect();
        let digests = ranks.gather(&digests);
        if ranks.rank == 0 {
            let all = digests.iter().fold(0u64, |all, &one| all.rotate_left(1) ^ one);
            println!("results: {all:016x}");
        }
        Ok(())
    }
}

fn within(what: &str, part: f64) -> Result<(), String> {
    if part <= 1.0 { Ok(()) } else { Err(format!("{what} is {part:.1e} times its bound off")) }
}

/// The part of a rank, as equal as can be.
fn share(all: usize, rank: usize, size: usize) -> Range<usize> {
    rank * all / size..(rank + 1) * all / size
}

/// Columns of a matrix of rows of `width`.
fn columns<T: Copy>(matrix: &[T], width: usize, range: &Range<usize>) -> Vec<T> {
    matrix.chunks(width).flat_map(|row| &row[range.clone()]).copied().collect()
}

/// The layer as one process computes it.
fn alone(gpu: &Gpu, layer: &Layer<'_>) -> Result<[Vec<f32>; 5], weightnorm::Error> {
    let &Layer { batch, outs, ins, .. } = layer;
    let (x, v) = (gpu.upload(layer.x, &[batch, ins])?, gpu.upload(layer.v, &[outs, ins])?);
    let (g, bias, dy) =
        (gpu.upload(layer.g, &[outs])?, gpu.upload(layer.bias, &[outs])?, gpu.upload(layer.dy, &[batch, outs])?);
    let weight = WeightNorm::new(&v, &g).eps(EPS);
    let (y, saved) = gpu.linear_saved(Linear::new(&x, weight).bias(&bias))?;
    let d = gpu.linear_backward(LinearBackward::new(&x, weight, &dy).saved(&saved))?;
    let dg = d.dg.as_ref().expect("the weight has a gain");
    Ok([y.read()?, d.dx.read()?, d.dv.read()?, dg.read()?, d.dbias.read()?])
}

/// Each rank has some columns of x and v. Forward one all-reduce of (batch + 1)·out sums, backward none.
fn in_features<C: Communicator>(gpu: &Gpu, ranks: &Ranks<C>, layer: &Layer<'_>) -> Result<Parts, Box<dyn Error>> {
    let &Layer { batch, outs, ins, .. } = layer;
    let range = share(ins, ranks.rank, ranks.size);
    let x = gpu.upload(&columns(layer.x, ins, &range), &[batch, range.len()])?;
    let v = gpu.upload(&columns(layer.v, ins, &range), &[outs, range.len()])?;
    let (g, dy) = (gpu.upload(layer.g, &[outs])?, gpu.upload(layer.dy, &[batch, outs])?);

    // One dispatch: u_r = x_r·v_r / n_r and n_r, with the norms of this rank's columns.
    let [u, n] = [&[batch, outs][..], &[outs]].map(|shape| gpu.zeros(shape, DType::F32));
    let (u, n): (Tensor, Tensor) = (u?, n?);
    let mut encoder = gpu.device().create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
    gpu.record(&mut encoder).linear(Linear::new(&x, WeightNorm::unit(&v).eps(EPS_OF_PART)).norms(&n), &u)?;
    gpu.queue().submit([encoder.finish()]);
    // What adds up: n_r² and u_r·n_r. In f64, where no square of an f32 overflows or vanishes.
    let norms: Vec<f64> = n.read::<f32>()?.into_iter().map(f64::from).collect();
    let mut sums: Vec<f64> = norms.iter().map(|n| n * n).collect();
    sums.extend(u.read::<f32>()?.iter().enumerate().map(|(at, &u)| f64::from(u) * norms[at % outs]));
    let start = Instant::now();
    let sums = ranks.sum(&sums)?;
    let seconds = start.elapsed().as_secs_f64();
    let (squares, products) = sums.split_at(outs);
    let norms: Vec<f64> = squares.iter().map(|&square| effective_norm(square, EPS)).collect();
    let us: Vec<f64> = products.iter().enumerate().map(|(at, product)| product / norms[at % outs]).collect();
    let y = |(at, u): (usize, &f64)| (f64::from(layer.g[at % outs]) * u + f64::from(layer.bias[at % outs])) as f32;
    let y = us.iter().enumerate().map(y).collect();

    // With n̂ and u of all columns every gradient is that of a layer of this rank's own.
    let narrow = |numbers: &[f64]| numbers.iter().map(|&x| x as f32).collect::<Vec<f32>>();
    let (n, u) = (gpu.upload(&narrow(&norms), &[outs])?, gpu.upload(&narrow(&us), &[batch, outs])?);
    let d = gpu.linear_backward(LinearBackward::new(&x, WeightNorm::new(&v, &g).norms(&n), &dy).u(&u))?;
    let dg = d.dg.ok_or("the weight has a gain")?;
    Ok(Parts { results: [y, d.dx.read()?, d.dv.read()?, dg.read()?, d.dbias.read()?], seconds })
}

/// Each rank has some rows of v, and their gains: an ordinary layer. Forward all of y is gathered, backward one
/// all-reduce of dx.
fn out_features<C: Communicator>(gpu: &Gpu, ranks: &Ranks<C>, layer: &Layer<'_>) -> Result<Parts, Box<dyn Error>> {
    let &Layer { batch, outs, ins, .. } = layer;
    let rows = share(outs, ranks.rank, ranks.size);
    let dy = columns(layer.dy, outs, &rows);
    let own = Layer {
        outs: rows.len(),
        v: &layer.v[rows.start * ins..rows.end * ins],
        g: &layer.g[rows.clone()],
        bias: &layer.bias[rows],
        dy: &dy,
        ..*layer
    };
    let [own_y, dx, dv, dg, dbias] = alone(gpu, &own)?;
    let start = Instant::now();
    // MPI gathers as much from each rank.
    let most = batch * outs.div_ceil(ranks.size);
    let mut sent = own_y;
    sent.resize(most, 0.0);
    let gathered = ranks.gather(&sent);
    let dx = ranks.sum(&dx)?;
    let seconds = start.elapsed().as_secs_f64();
    let mut y = vec![0.0; batch * outs];
    for rank in 0..ranks.size {
        let rows = share(outs, rank, ranks.size);
        let of_rank = gathered[rank * most..].chunks(rows.len().max(1)).take(batch);
        for (row, from) in y.chunks_mut(outs).zip(of_rank) {
            row[rows.clone()].copy_from_slice(&from[..rows.len()]);
        }
    }
    Ok(Parts { results: [y, dx, dv, dg, dbias], seconds })
}
