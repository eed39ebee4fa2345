//! Numbers as files store them, widened to f64, and what they add up to by row.

use super::at::{buffer, reserve};
use super::find::At;
use super::{Checkpoint, Error, FileDType, FoundWeight, Rules};
use weightnorm::cpu::effective_norm;
use weightnorm::half::{bf16, f16};
use weightnorm::{DType, Eps, Layout};

/// Indices along the kept axis.
pub(super) type Rows = std::ops::Range<usize>;

/// A weight to be worked on.
#[derive(Debug, Clone)]
pub(super) struct Input {
    pub name: String,
    pub v: At,
    /// `None`: its norms are wanted.
    pub g: Option<At>,
    pub layout: Layout,
    pub dtype: FileDType,
}

impl Input {
    pub(super) fn of(weight: &FoundWeight, g: Option<At>) -> Input {
        // The axis was found to be there.
        let none = Layout { outer: 0, kept: 0, inner: 0 };
        let layout = Layout::new(&weight.shape, weight.axis).unwrap_or(none);
        Input { name: weight.name.clone(), v: weight.v, g, layout, dtype: weight.dtype }
    }
}

/// Of some rows of v.
pub(super) struct Sums {
    /// Sums of squares: in f64 they neither overflow nor underflow for numbers in the range of f32.
    pub squares: Vec<f64>,
    /// Whether there is a number but zeros, or no number at all.
    non_zero: Vec<bool>,
    /// Whether there is a number that is [`delicate`].
    pub delicate: Vec<bool>,
    pub non_finite: u64,
}

impl Sums {
    /// Of rows of that weight, before a number is taken.
    pub fn new(checkpoint: &Checkpoint, weight: &Input, rows: usize) -> Result<Sums, Error> {
        let (path, info) = (&checkpoint.shards[weight.v.0].path, checkpoint.at(weight.v));
        let (squares, mut non_zero, delicate) = (buffer(rows, path)?, buffer(rows, path)?, buffer(rows, path)?);
        non_zero.fill(info.bytes() == 0);
        Ok(Sums { squares, non_zero, delicate, non_finite: 0 })
    }

    /// In one pass, window by window: each slice of v has those rows side by side.
    pub fn read(
        checkpoint: &Checkpoint,
        weight: &Input,
        rows: &Rows,
        rules: &Rules,
        progress: &mut dyn FnMut(u64),
    ) -> Result<Sums, Error> {
        let (source, info) = (&checkpoint.shards[weight.v.0], checkpoint.at(weight.v));
        let Layout { outer, kept, inner } = weight.layout;
        let mut sums = Sums::new(checkpoint, weight, rows.len())?;
        let size = info.dtype.bits() / 8;
        let run = inner as u64 * size;
        // Where they are all the rows, there is nothing between them from one slice to the next.
        let (pieces, length) = if rows.len() == kept { (1, info.bytes()) } else { (outer, rows.len() as u64 * run) };
        let window = rules.window_bytes().min(4 << 20) / size * size;
        let mut buffer = buffer(window.min(length) as usize, &source.path)?;
        for piece in 0..pieces as u64 {
            let begin = info.begin + (piece * kept as u64 + rows.start as u64) * run;
            let mut done = 0;
            while done < length {
                let count = (length - done).min(window);
                let bytes = &mut buffer[..count as usize];
                source.read(begin + done, bytes)?;
                sums.take(done, run, info.dtype, bytes);
                done += count;
                progress(count);
            }
        }
        Ok(sums)
    }

    /// Takes bytes that stand at `position` of a part of the tensor in which each row in turn has `run` bytes.
    pub fn take(&mut self, position: u64, run: u64, dtype: FileDType, bytes: &[u8]) {
        let (count, rows) = (bytes.len() as u64, self.squares.len() as u64);
        let mut at = 0;
        while at < count {
            let run_number = (position + at) / run;
            let end = ((run_number + 1) * run - position).min(count);
            self.add((run_number % rows) as usize, dtype, &bytes[at as usize..end as usize]);
            at = end;
        }
    }

    fn add(&mut self, row: usize, dtype: FileDType, bytes: &[u8]) {
        let (mut square, mut non_zero, mut is_delicate, mut non_finite) = (0.0, false, false, 0);
        widen(dtype, bytes, |x| {
            square += x * x;
            non_zero |= x != 0.0;
            is_delicate |= delicate(x);
            non_finite += u64::from(!x.is_finite());
        });
        self.squares[row] += square;
        self.non_zero[row] |= non_zero;
        self.delicate[row] |= is_delicate;
        self.non_finite += non_finite;
    }

    pub fn zero_rows(&self) -> u64 {
        self.non_zero.iter().filter(|&&non_zero| !non_zero).count() as u64
    }

    pub fn norms(&self, eps: Eps) -> Vec<f64> {
        self.squares.iter().map(|&square| effective_norm(square, eps)).collect()
    }

    /// Rows, zero ones not counted, whose norm the policy moves by more than f32 rounds anyway.
    pub fn changed(&self, eps: Eps) -> u64 {
        let is_changed = |square: f64| effective_norm(square, eps) > square.sqrt() * (1.0 + 2f64.powi(-24));
        self.squares.iter().zip(&self.non_zero).filter(|&(&square, &non_zero)| non_zero && is_changed(square)).count()
            as u64
    }
}

/// Whether a device may take a number for another one: a subnormal f32 for zero; or f32 has no room for it.
pub(super) fn delicate(x: f64) -> bool {
    let size = x.abs();
    (size > 0.0 && size < f64::from(f32::MIN_POSITIVE)) || (size > f64::from(f32::MAX) && size.is_finite())
}

/// Hands over elements one by one, as f64. Nothing for types that are not computed with.
pub(super) fn widen(dtype: FileDType, bytes: &[u8], mut take: impl FnMut(f64)) {
    match dtype {
        FileDType::F32 => bytes.as_chunks().0.iter().for_each(|&x| take(f32::from_le_bytes(x).into())),
        FileDType::F64 => bytes.as_chunks().0.iter().for_each(|&x| take(f64::from_le_bytes(x))),
        FileDType::F16 => bytes.as_chunks().0.iter().for_each(|&x| take(f16::from_le_bytes(x).into())),
        FileDType::Bf16 => bytes.as_chunks().0.iter().for_each(|&x| take(bf16::from_le_bytes(x).into())),
        _ => {}
    }
}

/// Numbers in a storage type, rounded to the nearest.
pub(super) fn narrow(numbers: &[f64], dtype: DType, bytes: &mut [u8]) {
    match dtype {
        DType::F32 => numbers.iter().zip(bytes.as_chunks_mut().0).for_each(|(&x, b)| *b = (x as f32).to_le_bytes()),
        DType::F16 => {
            numbers.iter().zip(bytes.as_chunks_mut().0).for_each(|(&x, b)| *b = f16::from_f64(x).to_le_bytes());
        }
        DType::Bf16 => {
            numbers.iter().zip(bytes.as_chunks_mut().0).for_each(|(&x, b)| *b = bf16::from_f64(x).to_le_bytes());
        }
    }
}

/// `count` elements of a tensor from `first` on, as they are stored, some at a time.
pub(super) fn read_parts(
    checkpoint: &Checkpoint,
    at: At,
    first: u64,
    count: u64,
    take: &mut dyn FnMut(&[u8]) -> Result<(), Error>,
) -> Result<(), Error> {
    const STEP: u64 = 1 << 16;
    let (source, info) = (&checkpoint.shards[at.0], checkpoint.at(at));
    let size = info.dtype.bits() / 8;
    let mut stored = buffer((count.min(STEP) * size) as usize, &source.path)?;
    let mut done = 0;
    while done < count {
        let part = &mut stored[..((count - done).min(STEP) * size) as usize];
        source.read(info.begin + (first + done) * size, part)?;
        take(part)?;
        done += part.len() as u64 / size;
    }
    Ok(())
}

/// Elements of a tensor from `first` on, in another storage type if its own is not that. `look` sees them as they are
/// stored, in order.
pub(super) fn read_as(
    checkpoint: &Checkpoint,
    at: At,
    first: u64,
    dtype: DType,
    bytes: &mut [u8],
    look: &mut dyn FnMut(&[u8]),
) -> Result<(), Error> {
    let (source, info) = (&checkpoint.shards[at.0], checkpoint.at(at));
    if info.dtype == dtype.into() {
        source.read(info.begin + first * dtype.size(), bytes)?;
        look(bytes);
        return Ok(());
    }
    let (mut numbers, mut done) = (vec![], 0);
    read_parts(checkpoint, at, first, bytes.len() as u64 / dtype.size(), &mut |stored| {
        look(stored);
        numbers.clear();
        widen(info.dtype, stored, |x| numbers.push(x));
        let end = done + numbers.len() * dtype.size() as usize;
        narrow(&numbers, dtype, &mut bytes[done..end]);
        done = end;
        Ok(())
    })
}

/// Some of g.
pub(super) fn read_gain(checkpoint: &Checkpoint, g: At, rows: &Rows) -> Result<Vec<f64>, Error> {
    let (mut gain, info) = (vec![], checkpoint.at(g));
    reserve(&mut gain, rows.len(), &checkpoint.shards[g.0].path)?;
    read_parts(checkpoint, g, rows.start as u64, rows.len() as u64, &mut |stored| {
        widen(info.dtype, stored, |x| gain.push(x));
        Ok(())
    })?;
    Ok(gain)
}
