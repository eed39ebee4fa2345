//! What is timed, and the ratio of two times, measured in turn so that the machine's drift cancels.
use weightnorm::{Error, Gpu, Recorder};

/// What is timed: an operator on tensors of its own, or some of them.
pub trait Call {
    fn gpu(&self) -> &Gpu;

    /// One call.
    fn record(&self, ops: &mut Recorder<'_, '_>) -> Result<(), Error>;

    /// So many calls in one submission; the dispatches they take.
    fn submit(&self, count: usize) -> Result<u64, Error> {
        let mut encoder = self.gpu().device().create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        let mut ops = self.gpu().record(&mut encoder);
        (0..count).try_for_each(|_| self.record(&mut ops))?;
        let dispatches = ops.dispatch_count();
        drop(ops);
        self.gpu().queue().submit([encoder.finish()]);
        Ok(dispatches)
    }

    /// Seconds of one of `count` calls, with the recording and until the last is done.
    fn wall(&self, count: usize) -> Result<f64, Error> {
        let start = std::time::Instant::now();
        self.submit(count)?;
        let _ = self.gpu().device().poll(wgpu::PollType::wait_indefinitely());
        self.gpu().check()?;
        Ok(start.elapsed().as_secs_f64() / count as f64)
    }
}

/// Nanoseconds that the CPUs spent on this process and its threads so far, where Linux tells: what drivers that compute
/// on the CPU took, whatever else the machine did.
pub fn cpu_time() -> std::io::Result<u64> {
    let mut time = 0;
    for task in std::fs::read_dir("/proc/self/task")? {
        let text = std::fs::read_to_string(task?.path().join("schedstat"))?;
        time += text.split(' ').next().and_then(|on_cpu| on_cpu.parse::<u64>().ok()).unwrap_or(0);
    }
    Ok(time)
}

/// Medians over pairs.
pub struct Ratio {
    pub median: f64,
    /// The 95 % interval of the median.
    pub low: f64,
    pub high: f64,
    /// The median times themselves.
    pub times: [f64; 2],
}

/// `first / second` over so many pairs, whose order alternates.
pub fn interleaved<E>(
    pairs: usize,
    mut first: impl FnMut() -> Result<f64, E>,
    mut second: impl FnMut() -> Result<f64, E>,
) -> Result<Ratio, E> {
    let (mut ratios, mut times) = (vec![], [vec![], vec![]]);
    for pair in 0..pairs {
        let (a, b) = if pair % 2 == 0 {
            let a = first()?;
            (a, second()?)
        } else {
            let b = second()?;
            (first()?, b)
        };
        ratios.push(a / b);
        times[0].push(a);
        times[1].push(b);
    }
    ratios.sort_by(f64::total_cmp);
    let outside = ranks_outside(pairs);
    let [low, high] = [ratios[outside], ratios[pairs - 1 - outside]];
    Ok(Ratio { median: median(&mut ratios), low, high, times: times.map(|mut t| median(&mut t)) })
}

/// The ordered values on each side that the 95 % interval of a median of `n` leaves out: the number of values below the
/// median is binomial.
fn ranks_outside(n: usize) -> usize {
    let (mut term, mut sum) = (0.5f64.powi(n as i32), 0.0);
    for rank in 0..n / 2 {
        sum += term;
        if sum > 0.025 {
            return rank;
        }
        term *= (n - rank) as f64 / (rank + 1) as f64;
    }
    n / 2
}

pub fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len() % 2 == 1 { values[middle] } else { (values[middle - 1] + values[middle]) / 2.0 }
}
