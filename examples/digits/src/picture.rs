//! The comparison as a picture, an SVG: loss curves for each learning rate, and the errors in the end below them.
use std::fmt::Write;

use crate::compare::{Plan, Run, select};
use crate::network::Variant;

const WIDTH: f64 = 1160.0;
const LEFT: f64 = 64.0;
/// Between panels.
const GAP: f64 = 16.0;
const INK: &str = "#22262e";
const GREY: &str = "#707680";

/// Distinct in print and to the colour-blind.
fn look(variant: Variant) -> (&'static str, &'static str) {
    match variant {
        Variant::Plain => ("#3c3c42", "plain weights"),
        Variant::Normalized => ("#0072b2", "weight normalization, g = \u{2016}v\u{2016}"),
        Variant::DataDependent => ("#d55e00", "with data-dependent init"),
        Variant::MeanOnly => ("#00966e", "with mean-only batch norm"),
    }
}

/// Where curves are drawn: y is logarithmic, and what is beyond it, or no number, is at the edge, NaN at the top.
struct Panel {
    left: f64,
    top: f64,
    width: f64,
    height: f64,
    y: (f64, f64),
}

impl Panel {
    fn place(&self, x: f64, y: f64) -> (f64, f64) {
        let up = (y / self.y.0).ln() / (self.y.1 / self.y.0).ln();
        let up = if up.is_nan() { 1.0 } else { up.clamp(0.0, 1.0) };
        (self.left + x * self.width, self.top + (1.0 - up) * self.height)
    }

    /// The frame, with the powers of ten and what is between them, and labels where it is the first of its row.
    fn frame(&self, svg: &mut String, title: &str, labelled: bool) {
        let &Panel { left, top, width, height, y: (least, most) } = self;
        for power in -5..=2 {
            for digit in [1.0, 2.0, 5.0] {
                let y = digit * 10f64.powi(power);
                let (_, at) = self.place(0.0, y);
                if y < least || y > most {
                    continue;
                }
                svg.push_str(&line(&[(left, at), (left + width, at)], "#e4e7eb", 1.0));
                if labelled {
                    svg.push_str(&text((left - 8.0, at + 5.0), &y.to_string(), INK, 14, "end"));
                }
            }
        }
        let _ = writeln!(
            svg,
            r#"<rect x="{left}" y="{top}" width="{width}" height="{height}" fill="none" stroke="{INK}"/>"#
        );
        svg.push_str(&text((left + width / 2.0, top - 9.0), title, INK, 15, "middle"));
    }
}

fn text((x, y): (f64, f64), text: &str, color: &str, size: u32, anchor: &str) -> String {
    format!(
        "<text x=\"{x:.1}\" y=\"{y:.1}\" fill=\"{color}\" font-size=\"{size}\" text-anchor=\"{anchor}\">{text}</text>\n"
    )
}

fn line(points: &[(f64, f64)], color: &str, width: f64) -> String {
    let points: String = points.iter().map(|(x, y)| format!("{x:.1},{y:.1} ")).collect();
    format!("<polyline points=\"{}\" fill=\"none\" stroke=\"{color}\" stroke-width=\"{width}\"/>\n", points.trim_end())
}

pub fn draw(plan: &Plan, runs: &[Run], adapter: &str) -> String {
    let Plan { epochs, batch, seeds, rates, .. } = plan;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} 680\" font-family=\"sans-serif\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    );
    svg.push_str(&text(
        (LEFT, 32.0),
        "Handwritten digits: a convolutional network, SGD with momentum",
        INK,
        22,
        "start",
    ));
    let what = format!("{epochs} epochs, batches of {batch}, {seeds} seeds; {adapter}");
    svg.push_str(&text((WIDTH - GAP, 660.0), &what, GREY, 14, "end"));
    for (variant, x) in Variant::ALL.into_iter().zip([0.0, 190.0, 490.0, 750.0]) {
        let (color, name) = look(variant);
        svg.push_str(&line(&[(LEFT + x, 60.0), (LEFT + x + 26.0, 60.0)], color, 3.0));
        svg.push_str(&text((LEFT + x + 34.0, 65.0), name, INK, 15, "start"));
    }
    curves(&mut svg, plan, runs);
    errors(&mut svg, runs, rates);
    svg + "</svg>\n"
}

/// The loss of each batch at each rate, a mean of some steps: the middle one of the seeds.
fn curves(svg: &mut String, plan: &Plan, runs: &[Run]) {
    let steps = plan.epochs * plan.steps();
    let window = (plan.steps() / 2).clamp(1, steps);
    let mut curves = vec![];
    for &rate in &plan.rates {
        for variant in Variant::ALL {
            let smooth = |run: &Run| run.losses.windows(window).map(mean).collect::<Vec<_>>();
            let seeds: Vec<Vec<f64>> = select(runs, variant, rate).map(smooth).collect();
            let middle = |i: usize| median(seeds.iter().map(|curve| curve[i]).collect());
            curves.push((0..=steps - window).map(middle).collect::<Vec<f64>>());
        }
    }
    let y = range(curves.iter().flatten().copied());
    let width = (WIDTH - LEFT - GAP * plan.rates.len() as f64) / plan.rates.len() as f64;
    for (i, (&rate, curves)) in plan.rates.iter().zip(curves.chunks(Variant::ALL.len())).enumerate() {
        let panel = Panel { left: LEFT + (width + GAP) * i as f64, top: 112.0, width, height: 250.0, y };
        panel.frame(svg, &format!("rate {rate}"), i == 0);
        for (variant, curve) in Variant::ALL.into_iter().zip(curves) {
            let at = |(i, &loss): (usize, &f64)| panel.place((i + window) as f64 / steps as f64, loss);
            svg.push_str(&line(&curve.iter().enumerate().map(at).collect::<Vec<_>>(), look(variant).0, 1.8));
        }
    }
    let what = format!("loss of the batches, a mean of {window} steps, against the step, 1 to {steps}");
    svg.push_str(&text((WIDTH / 2.0, 384.0), &what, GREY, 14, "middle"));
}

/// The share of test images that is told wrong in the end: a point for each seed, a line through the means.
fn errors(svg: &mut String, runs: &[Run], rates: &[f64]) {
    let panel = Panel { left: LEFT, top: 428.0, width: WIDTH - LEFT - GAP, height: 190.0, y: (0.5, 100.0) };
    panel.frame(svg, "test images told wrong in the end, %", true);
    let along = |i: usize, k: usize| (i as f64 + 0.5) / rates.len() as f64 + 0.012 * (k as f64 - 1.5);
    for (k, variant) in Variant::ALL.into_iter().enumerate() {
        let wrong = |run: &Run| run.tests.last().map_or(f64::NAN, |test| 100.0 - 100.0 * f64::from(test[1]));
        let color = look(variant).0;
        let mut means = vec![];
        for (i, &rate) in rates.iter().enumerate() {
            let seeds: Vec<f64> = select(runs, variant, rate).map(wrong).collect();
            means.push(panel.place(along(i, k), seeds.iter().sum::<f64>() / seeds.len() as f64));
            for (x, y) in seeds.into_iter().map(|wrong| panel.place(along(i, k), wrong)) {
                let _ = writeln!(svg, r#"<circle cx="{x:.1}" cy="{y:.1}" r="3" fill="{color}"/>"#);
            }
        }
        svg.push_str(&line(&means, color, 1.8));
    }
    for (i, rate) in rates.iter().enumerate() {
        let (x, _) = panel.place((i as f64 + 0.5) / rates.len() as f64, 1.0);
        svg.push_str(&text((x, 638.0), &rate.to_string(), INK, 14, "middle"));
    }
    svg.push_str(&text((WIDTH / 2.0, 660.0), "learning rate", GREY, 14, "middle"));
}

fn mean(numbers: &[f32]) -> f64 {
    numbers.iter().map(|&x| f64::from(x)).sum::<f64>() / numbers.len() as f64
}

/// The middle one, the lower one of two; NaN counts as the largest of all.
fn median(mut numbers: Vec<f64>) -> f64 {
    numbers.sort_by(|a, b| a.is_nan().cmp(&b.is_nan()).then(a.total_cmp(b)));
    numbers.get(numbers.len().saturating_sub(1) / 2).copied().unwrap_or(f64::NAN)
}

/// A range around the numbers, but not beyond what is of interest: 4 is more than a network has that guesses.
fn range(losses: impl Iterator<Item = f64>) -> (f64, f64) {
    let finite = losses.filter(|loss| loss.is_finite() && *loss > 0.0);
    let (least, most) = finite.fold((2.0f64, 2.5f64), |(least, most), loss| (least.min(loss), most.max(loss)));
    (least.max(1e-4), most.min(4.0))
}
