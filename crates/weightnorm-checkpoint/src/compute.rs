//! Weights streamed through the device in windows.
use std::ops::Range;

use super::at::{buffer, reserve};
use super::cut::{Cut, ROW, Window, steps};
use super::numbers::{Input, Sums, delicate, narrow, read_as, read_gain, read_parts, widen};
use super::{Checkpoint, Device, Error, FileDType, Finding, Problem, Rules};
use weightnorm::cpu::effective_norm;
use weightnorm::{Axis, DType, Eps, Gpu, SetMember, Tensor, WeightNorm};

/// Windows are no larger than that, so that sizes stay far from every limit of the crate.
const MAX_WINDOW: u64 = 1 << 30;
/// Weights that share a submission, since a set of them is checked each beside each.
const MAX_JOBS: usize = 1024;
/// Tensors of a batch lie at multiples of 256 bytes, which every device can bind at and wide loads like.
const ALIGNMENT: usize = 64;

/// A window with what was read for it.
pub(super) struct Done<'a> {
    pub input: usize,
    pub window: &'a Window,
    /// v in the type it is computed in.
    pub v: &'a [u8],
    pub g: &'a [f32],
    /// Effective norms of its rows.
    pub norms: &'a [f64],
    /// Whether it holds its rows as a whole, so that the device summed them up.
    pub whole_rows: bool,
    /// The rows that the reference computed.
    pub by_reference: &'a [bool],
    /// w, or norms in f32.
    pub result: &'a [u8],
}

/// What was seen of a weight on the way.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Seen {
    pub zero_rows: u64,
    /// Rows that the eps policy changes.
    pub changed: u64,
    /// Elements of v and g that are NaN or infinite.
    pub non_finite: u64,
}

impl Seen {
    fn add(&mut self, sums: &Sums, eps: Eps) {
        self.zero_rows += sums.zero_rows();
        self.changed += sums.changed(eps);
        self.non_finite += sums.non_finite;
    }

    /// Findings about the rows; numbers that are not finite are the caller's to tell.
    pub fn findings(&self, weight: &str) -> impl Iterator<Item = Finding> {
        let zero_rows = Problem::ZeroRows { count: self.zero_rows };
        let changed = Problem::Guarded { count: self.changed };
        let all = [(self.zero_rows, zero_rows), (self.changed, changed)];
        let weight = weight.to_owned();
        let some = all.into_iter().filter(|&(count, _)| count > 0);
        some.map(move |(_, problem)| Finding { weight: weight.clone(), problem })
    }
}

struct Job {
    input: usize,
    window: Window,
    /// Words of the batch.
    v: usize,
    g: usize,
    result: usize,
    norms: Vec<f64>,
    whole_rows: bool,
    by_reference: Vec<bool>,
}

/// Windows of many weights that go to the device together.
#[derive(Default)]
struct Batch {
    jobs: Vec<Job>,
    v: Vec<f32>,
    g: Vec<f32>,
    results: usize,
}

pub(super) struct Engine<'a> {
    device: Device<'a>,
    checkpoint: &'a Checkpoint,
    inputs: &'a [Input],
    rules: &'a Rules,
    deliver: &'a mut dyn FnMut(Done<'_>) -> Result<(), Error>,
    capacity: u64,
    batch: Batch,
    seen: Vec<Seen>,
    submissions: u64,
}

/// Computes all inputs and hands over the results, window by window. Returns what was seen of each, and the number of
/// submissions to the GPU.
///
/// Rows with numbers that a device may take for others (see [`delicate`]) are computed by the reference.
pub(super) fn run(
    device: Device<'_>,
    checkpoint: &Checkpoint,
    inputs: &[Input],
    rules: &Rules,
    deliver: &mut dyn FnMut(Done<'_>) -> Result<(), Error>,
) -> Result<(Vec<Seen>, u64), Error> {
    let largest = match device {
        Device::Gpu(gpu) => gpu.device().limits().max_buffer_size,
        Device::Reference => u64::MAX,
    };
    let capacity = rules.window_bytes().min(largest).min(MAX_WINDOW);
    let (seen, batch) = (vec![Seen::default(); inputs.len()], Batch::default());
    let mut engine = Engine { device, checkpoint, inputs, rules, deliver, capacity, batch, seen, submissions: 0 };
    for input in 0..inputs.len() {
        engine.add(input)?;
    }
    engine.flush()?;
    Ok((engine.seen, engine.submissions))
}

impl Engine<'_> {
    fn add(&mut self, number: usize) -> Result<(), Error> {
        let input = &self.inputs[number];
        let cut = Cut::new(input.layout, input.dtype.bits() / 8, self.capacity);
        if input.layout.len() == 0 {
            return self.add_empty(number);
        }
        for rows in cut.blocks() {
            let gain = match input.g {
                Some(g) => read_gain(self.checkpoint, g, &rows)?,
                None => vec![],
            };
            self.seen[number].non_finite += gain.iter().filter(|g| !g.is_finite()).count() as u64;
            let sums = match cut.whole_rows() {
                true => None,
                false => Some(Sums::read(self.checkpoint, input, &rows, self.rules, &mut |_| ())?),
            };
            if let Some(sums) = &sums {
                self.seen[number].add(sums, self.rules.eps);
            }
            if let (Some(sums), None) = (&sums, input.g) {
                self.deliver_norms(number, rows, &sums.norms(self.rules.eps))?;
                continue;
            }
            for window in cut.windows(&rows) {
                self.add_window(number, window, &gain, sums.as_ref())?;
            }
        }
        Ok(())
    }

    /// Of rows that no device sees as a whole.
    fn deliver_norms(&mut self, number: usize, rows: Range<usize>, norms: &[f64]) -> Result<(), Error> {
        let by_reference = vec![true; norms.len()];
        let result: Vec<f32> = norms.iter().map(|&norm| norm as f32).collect();
        (self.deliver)(Done {
            input: number,
            window: &Window { first: 0, outer: 1, rows, inner: 0 },
            v: &[],
            g: &[],
            norms,
            whole_rows: false,
            by_reference: &by_reference,
            result: bytemuck::cast_slice(&result),
        })
    }

    /// Rows without elements have norms too, but no window; and a shape may name more of them than there is memory.
    fn add_empty(&mut self, number: usize) -> Result<(), Error> {
        let input = &self.inputs[number];
        if input.g.is_some() {
            return Ok(());
        }
        let (all, at_once) = (input.layout.kept, (self.capacity / ROW) as usize);
        let norms = vec![effective_norm(0.0, self.rules.eps); all.min(at_once)];
        steps(all, at_once).try_for_each(|rows| self.deliver_norms(number, rows.clone(), &norms[..rows.len()]))
    }

    /// `sums`: of its rows, where it does not hold them as a whole.
    fn add_window(&mut self, number: usize, window: Window, gain: &[f64], sums: Option<&Sums>) -> Result<(), Error> {
        let (input, eps) = (&self.inputs[number], self.rules.eps);
        let dtype = computed(input.dtype);
        let v_words = (window.len() * dtype.size() as usize).div_ceil(4).next_multiple_of(ALIGNMENT);
        let g_words = window.rows.len().next_multiple_of(ALIGNMENT);
        let result_words = if input.g.is_some() { v_words } else { g_words };
        let words = |v: usize, g: usize| 4 * v as u64 + ROW * g as u64;
        let full = words(self.batch.v.len() + v_words, self.batch.g.len() + g_words) > self.capacity;
        if !self.batch.jobs.is_empty() && (full || self.batch.jobs.len() == MAX_JOBS) {
            self.flush()?;
        }
        let batch = &mut self.batch;
        let (v, g, result) = (batch.v.len(), batch.g.len(), batch.results);
        let path = &self.checkpoint.shards[input.v.0].path;
        reserve(&mut batch.v, v_words, path)?;
        batch.v.resize(v + v_words, 0.0);
        batch.results += result_words;
        let v_bytes = &mut bytemuck::cast_slice_mut(&mut batch.v[v..])[..window.len() * dtype.size() as usize];
        let mut own = match sums {
            Some(_) => None,
            None => Some(Sums::new(self.checkpoint, input, window.rows.len())?),
        };
        let (mut position, run) = (0, window.inner as u64 * (input.dtype.bits() / 8));
        read_as(self.checkpoint, input.v, window.first, dtype, v_bytes, &mut |stored| {
            if let Some(sums) = &mut own {
                sums.take(position, run, input.dtype, stored);
                position += stored.len() as u64;
            }
        })?;
        if let Some(sums) = &own {
            self.seen[number].add(sums, eps);
        }
        reserve(&mut batch.g, g_words, path)?;
        batch.g.resize(g + g_words, 0.0);
        batch.g[g..].iter_mut().zip(gain).for_each(|(to, &g)| *to = g as f32);
        let Some(sums) = own.as_ref().or(sums) else { return Ok(()) };
        let (norms, whole_rows, device) = (sums.norms(eps), own.is_some(), self.device);
        let by_reference = (0..norms.len()).map(|j| {
            let is_told = !whole_rows && !fits_f32(norms[j]);
            device.is_reference() || sums.delicate[j] || is_told || gain.get(j).is_some_and(|&g| delicate(g))
        });
        let by_reference = by_reference.collect();
        batch.jobs.push(Job { input: number, window, v, g, result, norms, whole_rows, by_reference });
        Ok(())
    }

    /// One submission for all that is there.
    fn flush(&mut self) -> Result<(), Error> {
        let mut batch = std::mem::take(&mut self.batch);
        let Some(first) = batch.jobs.first() else { return Ok(()) };
        let first = &self.inputs[first.input];
        let mut results = match self.device {
            Device::Reference => buffer(batch.results, &self.checkpoint.shards[first.v.0].path)?,
            Device::Gpu(gpu) => {
                self.submissions += 1;
                let results = self.compute(gpu, &batch);
                results.map_err(|source| Error::Gpu { tensor: first.name.clone(), source })?
            }
        };
        for job in &mut batch.jobs {
            let input = &self.inputs[job.input];
            let dtype = computed(input.dtype);
            let (size, rows) = (dtype.size() as usize, job.window.rows.len());
            let v = &bytemuck::cast_slice(&batch.v[job.v..])[..job.window.len() * size];
            let g = &batch.g[job.g..][..rows];
            let bytes = if input.g.is_some() { job.window.len() * size } else { rows * 4 };
            let result = &mut bytemuck::cast_slice_mut(&mut results[job.result..])[..bytes];
            if input.g.is_some() {
                mark_lost(job, dtype, v, g, result);
            }
            if job.by_reference.contains(&true) {
                reference(self.checkpoint, input, job, result)?;
            }
            let Job { ref window, ref norms, whole_rows, ref by_reference, .. } = *job;
            (self.deliver)(Done { input: job.input, window, v, g, norms, whole_rows, by_reference, result })?;
        }
        Ok(())
    }

    fn compute(&self, gpu: &Gpu, batch: &Batch) -> Result<Vec<f32>, weightnorm::Error> {
        let upload = |words: &[f32]| gpu.upload(words, &[words.len()]);
        let (v, g) = (upload(&batch.v)?, upload(&batch.g)?);
        let results = gpu.zeros(&[batch.results], DType::F32)?;
        let mut norms = vec![0f32; batch.g.len()];
        for job in &batch.jobs {
            norms[job.g..].iter_mut().zip(&job.norms).for_each(|(to, &norm)| *to = norm as f32);
        }
        let norms = if batch.jobs.iter().any(|job| !job.whole_rows) { Some(upload(&norms)?) } else { None };
        let part = |of: &Tensor, word: usize, shape: &[usize], dtype| {
            Tensor::from_buffer(gpu, of.buffer()?, 4 * word as u64, shape, dtype)
        };
        let (axis, eps) = (Axis::Kept(1), self.rules.eps);
        let mut parts = vec![];
        for job in &batch.jobs {
            let input = &self.inputs[job.input];
            let (dtype, shape, rows) = (computed(input.dtype), job.window.shape(), [job.window.rows.len()]);
            let (to_shape, to) = if input.g.is_some() { (&shape[..], dtype) } else { (&rows[..], DType::F32) };
            let known = norms.as_ref().filter(|_| !job.whole_rows);
            parts.push((
                part(&v, job.v, &shape, dtype)?,
                part(&g, job.g, &rows, DType::F32)?,
                part(&results, job.result, to_shape, to)?,
                known.map(|norms| part(norms, job.g, &rows, DType::F32)).transpose()?,
            ));
        }
        // One table for all whose norms are not known: a few dispatches, however many they are.
        let is_fold = batch.jobs.iter().any(|job| self.inputs[job.input].g.is_some());
        let mut members = vec![];
        for (v, g, result, _) in parts.iter().filter(|(.., known)| known.is_none()) {
            members.push(match is_fold {
                true => SetMember::new(WeightNorm::new(v, g).axis(axis).eps(eps)).w(result),
                false => SetMember::new(WeightNorm::unit(v).axis(axis).eps(eps)).norms(result),
            });
        }
        let set = if members.is_empty() { None } else { Some(gpu.weight_set(&members)?) };
        gpu.run(|ops| {
            for (v, g, w, known) in &parts {
                if let Some(norms) = known {
                    ops.normalize(WeightNorm::new(v, g).axis(axis).norms(norms), w)?;
                }
            }
            match &set {
                Some(set) if is_fold => ops.normalize_set(set),
                Some(set) => ops.row_norms_set(set),
                None => Ok(()),
            }
        })?;
        results.read()
    }
}

/// The type that a tensor is computed in; only such tensors come this far.
pub(super) fn computed(dtype: FileDType) -> DType {
    dtype.computed().unwrap_or(DType::F32)
}

/// Whether a known norm can be handed to the GPU: zero, NaN and infinity too, but no subnormal one and none beyond f32.
fn fits_f32(norm: f64) -> bool {
    !norm.is_finite() || !delicate(norm)
}

/// Marks rows with a w that may be a subnormal number which the device took for zero. Subnormal f16 are none to it.
fn mark_lost(job: &mut Job, dtype: DType, v: &[u8], g: &[f32], w: &[u8]) {
    let Job { window, norms, by_reference, .. } = job;
    // The exponent's bits in the upper half of a number.
    let (size, exponent) = (dtype.size() as usize, 0x7f80);
    if dtype == DType::F16 {
        return;
    }
    for (number, (v, w)) in v.chunks(window.inner * size).zip(w.chunks(window.inner * size)).enumerate() {
        let j = number % norms.len();
        if by_reference[j] || g[j] == 0.0 {
            continue;
        }
        for (v, w) in v.chunks_exact(size).zip(w.chunks_exact(size)) {
            if u16::from_le_bytes([w[size - 2], w[size - 1]]) & exponent == 0 {
                widen(dtype.into(), v, |v| {
                    let w = (f64::from(g[j]) * (v / norms[j])).abs();
                    by_reference[j] |= w > 0.0 && w < 2.0 * f64::from(f32::MIN_POSITIVE);
                });
            }
        }
    }
}

/// The marked rows of one window in f64, of the numbers as they are stored: w = g·(v/n̂), or norms.
fn reference(checkpoint: &Checkpoint, input: &Input, job: &Job, result: &mut [u8]) -> Result<(), Error> {
    let Job { window, norms, by_reference, .. } = job;
    let Some(g) = input.g else {
        for (j, _) in by_reference.iter().enumerate().filter(|(_, marked)| **marked) {
            narrow(&norms[j..=j], DType::F32, &mut result[4 * j..][..4]);
        }
        return Ok(());
    };
    let gain = read_gain(checkpoint, g, &window.rows)?;
    let (dtype, mut i) = (computed(input.dtype), 0);
    let size = dtype.size() as usize;
    read_parts(checkpoint, input.v, window.first, window.len() as u64, &mut |stored| {
        widen(input.dtype, stored, |x| {
            let j = i / window.inner % norms.len();
            if by_reference[j] {
                narrow(&[gain[j] * (x / norms[j])], dtype, &mut result[i * size..][..size]);
            }
            i += 1;
        });
        Ok(())
    })
}
