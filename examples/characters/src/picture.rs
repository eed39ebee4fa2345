//! The comparison as a picture, an SVG: what is held out against the step for each learning rate, and in the end
//! against the rate.
use std::fmt::Write;

use crate::compare::{POINTS, Plan, Run, select};
use crate::data::Sizes;
use crate::network::{Optimizer, Variant};

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
    }
}

fn name(optimizer: Optimizer) -> &'static str {
    match optimizer {
        Optimizer::Sgd => "SGD, momentum 0.9",
        Optimizer::Adam => "Adam",
    }
}

/// Where curves are drawn. What is beyond the range, or no number, is at the edge, NaN at the top.
struct Panel {
    left: f64,
    top: f64,
    width: f64,
    height: f64,
    y: (f64, f64),
}

impl Panel {
    fn place(&self, x: f64, y: f64) -> (f64, f64) {
        let up = (y - self.y.0) / (self.y.1 - self.y.0);
        let up = if up.is_nan() { 1.0 } else { up.clamp(0.0, 1.0) };
        (self.left + x * self.width, self.top + (1.0 - up) * self.height)
    }

    /// The frame, with a line at each half of a bit, and labels where it is the first of its row.
    fn frame(&self, svg: &mut String, title: &str, labelled: bool) {
        let &Panel { left, top, width, height, y: (least, most) } = self;
        for half in (2.0 * least).ceil() as i32..=(2.0 * most).floor() as i32 {
            let y = f64::from(half) / 2.0;
            let (_, at) = self.place(0.0, y);
            svg.push_str(&line(&[(left, at), (left + width, at)], "#e4e7eb", 1.0));
            if labelled {
                svg.push_str(&text((left - 8.0, at + 5.0), &y.to_string(), INK, 14, "end"));
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

fn circle((x, y): (f64, f64), color: &str, radius: f64) -> String {
    format!("<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"{radius}\" fill=\"{color}\"/>\n")
}

pub fn draw(plan: &Plan, runs: &[Run], adapter: &str) -> String {
    let Plan { sizes: Sizes { units, batch, length }, steps, seeds, .. } = plan;
    // An optimizer without rates has no row.
    let used: Vec<(Optimizer, &[f64])> =
        Optimizer::ALL.into_iter().zip(&plan.rates).filter(|of| !of.1.is_empty()).map(|of| (of.0, &of.1[..])).collect();
    let row = 230.0;
    let height = 96.0 + row * (used.len() + 1) as f64;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" font-family=\"sans-serif\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    );
    let title = "Characters of a text: held-out bits per character";
    svg.push_str(&text((LEFT, 32.0), title, INK, 20, "start"));
    let what = format!(
        "LSTM of {units} units, {steps} steps of {batch} x {length} characters, {seeds} seed{}, {adapter}",
        if *seeds == 1 { "" } else { "s" }
    );
    svg.push_str(&text((WIDTH - GAP, 32.0), &what, GREY, 14, "end"));
    for (variant, x) in Variant::ALL.into_iter().zip([0.0, 190.0]) {
        let (color, name) = look(variant);
        svg.push_str(&line(&[(LEFT + x, 56.0), (LEFT + x + 26.0, 56.0)], color, 3.0));
        svg.push_str(&text((LEFT + x + 34.0, 61.0), name, INK, 15, "start"));
    }
    let y = range(runs.iter().flat_map(|run| run.held_out.iter().copied()));
    for (i, &(optimizer, rates)) in used.iter().enumerate() {
        let top = 96.0 + row * i as f64;
        curves(&mut svg, plan, runs, (optimizer, rates), (top, y));
    }
    let width = (WIDTH - LEFT - GAP * used.len() as f64) / used.len() as f64;
    for (i, &(optimizer, rates)) in used.iter().enumerate() {
        let (left, top) = (LEFT + (width + GAP) * i as f64, 96.0 + row * used.len() as f64);
        let panel = Panel { left, top, width, height: 150.0, y };
        ends(&mut svg, runs, (optimizer, rates), &panel, i == 0);
    }
    svg + "</svg>\n"
}

/// Held-out bits against the step: the middle one of the seeds.
fn curves(
    svg: &mut String,
    plan: &Plan,
    runs: &[Run],
    (optimizer, rates): (Optimizer, &[f64]),
    (top, y): (f64, (f64, f64)),
) {
    let width = (WIDTH - LEFT - GAP * rates.len() as f64) / rates.len() as f64;
    for (i, &rate) in rates.iter().enumerate() {
        let panel = Panel { left: LEFT + (width + GAP) * i as f64, top, width, height: 166.0, y };
        panel.frame(svg, &format!("{}, rate {rate}", name(optimizer)), i == 0);
        for variant in Variant::ALL {
            let seeds: Vec<&Run> = select(runs, variant, (optimizer, rate)).collect();
            let middle = |point: usize| median(seeds.iter().map(|run| run.held_out[point]).collect());
            let at = |point: usize| panel.place((point + 1) as f64 / POINTS as f64, middle(point));
            svg.push_str(&line(&(0..POINTS).map(at).collect::<Vec<_>>(), look(variant).0, 1.8));
        }
    }
    let what = format!("step, 1 to {}", plan.steps);
    svg.push_str(&text((WIDTH / 2.0, top + 186.0), &what, GREY, 14, "middle"));
}

/// Held-out bits in the end: a point for each seed, a line through the means.
fn ends(svg: &mut String, runs: &[Run], (optimizer, rates): (Optimizer, &[f64]), panel: &Panel, first: bool) {
    panel.frame(svg, &format!("{}, in the end", name(optimizer)), first);
    let along = |i: usize, k: usize| (i as f64 + 0.5) / rates.len() as f64 + 0.016 * (k as f64 - 0.5);
    for (k, variant) in Variant::ALL.into_iter().enumerate() {
        let color = look(variant).0;
        let mut means = vec![];
        for (i, &rate) in rates.iter().enumerate() {
            let last = |run: &Run| run.held_out.last().copied().unwrap_or(f64::NAN);
            let seeds: Vec<f64> = select(runs, variant, (optimizer, rate)).map(last).collect();
            means.push(panel.place(along(i, k), seeds.iter().sum::<f64>() / seeds.len() as f64));
            seeds.iter().for_each(|&bits| svg.push_str(&circle(panel.place(along(i, k), bits), color, 3.0)));
        }
        svg.push_str(&line(&means, color, 1.8));
    }
    let bottom = panel.top + panel.height;
    for (i, rate) in rates.iter().enumerate() {
        let (x, _) = panel.place((i as f64 + 0.5) / rates.len() as f64, 0.0);
        svg.push_str(&text((x, bottom + 20.0), &rate.to_string(), INK, 14, "middle"));
    }
    svg.push_str(&text((panel.left + panel.width / 2.0, bottom + 40.0), "learning rate", GREY, 14, "middle"));
}

/// The middle one, the lower one of two; NaN counts as the largest of all.
fn median(mut numbers: Vec<f64>) -> f64 {
    numbers.sort_by(|a, b| a.is_nan().cmp(&b.is_nan()).then(a.total_cmp(b)));
    numbers.get(numbers.len().saturating_sub(1) / 2).copied().unwrap_or(f64::NAN)
}

/// A range around the numbers, but not beyond what is of interest: who guesses without looking at what came before
/// needs some 4.5 bits.
fn range(bits: impl Iterator<Item = f64>) -> (f64, f64) {
    let least = bits.filter(|bits| bits.is_finite()).fold(4.0, f64::min);
    ((2.0 * least).floor() / 2.0, 5.0)
}
