//! The ratio of two times, measured in turn so that the machine's drift cancels.

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
