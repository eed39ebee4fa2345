//! The comparison as a picture: loss curves on the left, the loss in the end against the learning rate on the right.
use std::error::Error;
use std::path::Path;

use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use plotters::style::{FontStyle, register_font};

use crate::{Plan, Run, median, select};
use train::step::Variant;

/// Where a panel's curves are drawn.
struct Panel {
    left: i32,
    top: i32,
    width: i32,
    height: i32,
    /// Logarithmic unless the range of x starts at 0.
    x: (f64, f64),
    y: (f64, f64),
}

const SIZE: (u32, u32) = (1180, 620);
const TOP: i32 = 128;
const HEIGHT: i32 = 412;
const WIDTH: i32 = 490;

const INK: RGBColor = RGBColor(34, 38, 46);
const GREY: RGBColor = RGBColor(112, 118, 128);
const GRID: RGBColor = RGBColor(228, 231, 235);

/// Distinct in print and to the colour-blind.
fn color(variant: Variant) -> RGBColor {
    match variant {
        Variant::Plain => RGBColor(60, 60, 66),
        Variant::Normalized => RGBColor(0, 114, 178),
        Variant::DataDependent => RGBColor(213, 94, 0),
        Variant::MeanOnly => RGBColor(0, 150, 110),
    }
}

fn name(variant: Variant) -> &'static str {
    match variant {
        Variant::Plain => "plain weights",
        Variant::Normalized => "weight normalization, g = \u{2016}v\u{2016}",
        Variant::DataDependent => "with data-dependent init",
        Variant::MeanOnly => "with mean-only batch norm",
    }
}

type Canvas<'a> = DrawingArea<BitMapBackend<'a>, Shift>;

pub fn draw(out: &Path, plan: &Plan, runs: &[Run]) -> Result<(), Box<dyn Error>> {
    // The font comes along: no picture depends on what is installed.
    for (style, font) in [(FontStyle::Normal, dejavu::sans::regular()), (FontStyle::Bold, dejavu::sans::bold())] {
        register_font("sans-serif", style, font).map_err(|_| "the font would not load")?;
    }
    let root = BitMapBackend::new(out, SIZE).into_drawing_area();
    root.fill(&WHITE)?;

    let Plan { width, batch, steps, seeds, optimizer, .. } = plan;
    text(&root, "DeepSDF on the round cross, from scratch", (66, 24), 25.0, FontStyle::Bold, HPos::Left, &INK)?;
    let what = format!("width {width}, {steps} steps of {batch} points, {optimizer:?}, {seeds} seeds");
    text(&root, &what, (SIZE.0 as i32 - 24, 26), 16.0, FontStyle::Normal, HPos::Right, &GREY)?;
    legend(&root)?;
    curves(&root, plan, runs)?;
    ends(&root, plan, runs)?;
    root.present().map_err(|e| format!("{}: {e}", out.display()))?;
    Ok(())
}

fn legend(root: &Canvas<'_>) -> Result<(), Box<dyn Error>> {
    let mut x = 66;
    for (variant, space) in Variant::ALL.into_iter().zip([180, 312, 260, 0]) {
        line(root, &[(x, 61), (x + 26, 61)], color(variant), 3)?;
        marker(root, (x + 13, 61), color(variant), true)?;
        text(root, name(variant), (x + 34, 61), 16.0, FontStyle::Normal, HPos::Left, &INK)?;
        x += space;
    }
    Ok(())
}

/// The loss of each batch at the variant's best rate, smoothed: the middle one of the seeds, and the range of all.
fn curves(root: &Canvas<'_>, plan: &Plan, runs: &[Run]) -> Result<(), Box<dyn Error>> {
    let window = (plan.steps / 12).max(1);
    let mut bands = vec![];
    for variant in Variant::ALL {
        let rate = plan.best_rate(runs, variant);
        let curves: Vec<_> = select(runs, variant, rate).map(|run| smooth(&run.losses, window)).collect();
        let count = curves.first().map_or(0, Vec::len);
        let at = |i: usize| curves.iter().map(|curve| curve[i]).collect::<Vec<_>>();
        // Not more points than pixels.
        let places = (0..count).step_by((count / WIDTH as usize).max(1));
        let band: Vec<_> = places
            .map(|i| {
                let least = at(i).into_iter().fold(f64::INFINITY, f64::min);
                let most = at(i).into_iter().fold(f64::NEG_INFINITY, f64::max);
                ((i + window) as f64, least, median(at(i)), most)
            })
            .collect();
        bands.push((variant, rate, band));
    }
    let losses = bands.iter().flat_map(|(_, _, band)| band).flat_map(|&(_, least, _, most)| [least, most]);
    let panel =
        Panel { left: 66, top: TOP, width: WIDTH, height: HEIGHT, x: (0.0, plan.steps as f64), y: range(losses) };
    let title = format!("Loss at the best rate, a mean of {window} steps");
    let ticks: Vec<_> = (0..=4).map(|i| plan.steps as f64 * f64::from(i) / 4.0).collect();
    panel.axes(root, &title, "step", &ticks)?;
    for (variant, _, band) in &bands {
        let forth = band.iter().map(|&(x, least, _, _)| panel.place(x, least));
        let back = band.iter().rev().map(|&(x, _, _, most)| panel.place(x, most));
        root.draw(&Polygon::new(forth.chain(back).collect::<Vec<_>>(), color(*variant).mix(0.13)))?;
    }
    for (variant, _, band) in &bands {
        let middle: Vec<_> = band.iter().map(|&(x, _, middle, _)| panel.place(x, middle)).collect();
        line(root, &middle, color(*variant), 2)?;
    }
    // The best rates, in the corner that the curves leave empty.
    for (i, (variant, rate, _)) in bands.iter().enumerate() {
        let at = (panel.left + WIDTH - 14, panel.top + 22 + 22 * i as i32);
        text(
            root,
            &format!("{}: rate {rate}", variant.key().replace('_', " ")),
            at,
            15.0,
            FontStyle::Normal,
            HPos::Right,
            &color(*variant),
        )?;
    }
    Ok(())
}

/// The held-out loss at each rate: a point for each seed, a line through the middle ones.
fn ends(root: &Canvas<'_>, plan: &Plan, runs: &[Run]) -> Result<(), Box<dyn Error>> {
    let (first, last) = (plan.rates[0] / 1.5, plan.rates[plan.rates.len() - 1] * 1.5);
    let y = range(runs.iter().map(|run| run.held_out));
    let panel = Panel { left: SIZE.0 as i32 - 24 - WIDTH, top: TOP, width: WIDTH, height: HEIGHT, x: (first, last), y };
    panel.axes(root, "Loss in the end, over points that no step saw", "learning rate", &plan.rates)?;
    // Side by side, so that none hides another.
    let shift = |variant: Variant| 7 * (Variant::ALL.iter().position(|v| *v == variant).unwrap_or(0) as i32) - 10;
    for variant in Variant::ALL {
        let medians = plan.medians(runs, variant);
        let middle: Vec<_> = plan
            .rates
            .iter()
            .zip(&medians)
            .map(|(&rate, &loss)| panel.place(rate, loss))
            .map(|(x, y)| (x + shift(variant), y))
            .collect();
        line(root, &middle, color(variant), 2)?;
        for (&rate, &at) in plan.rates.iter().zip(&middle) {
            let ys: Vec<_> = select(runs, variant, rate).map(|run| panel.place(rate, run.held_out).1).collect();
            let (least, most) = (ys.iter().min().copied().unwrap_or(at.1), ys.iter().max().copied().unwrap_or(at.1));
            line(root, &[(at.0, least), (at.0, most)], color(variant), 1)?;
            for y in ys {
                marker(root, (at.0, y), color(variant), y == at.1)?;
            }
        }
    }
    Ok(())
}

/// The mean of each `window` numbers in a row.
fn smooth(losses: &[f32], window: usize) -> Vec<f64> {
    losses.windows(window).map(|part| part.iter().map(|&l| f64::from(l)).sum::<f64>() / window as f64).collect()
}

/// A range with room around the numbers, at most three decades down from what a network that says 0 gets: what diverged
/// is drawn at the top.
fn range(losses: impl Iterator<Item = f64>) -> (f64, f64) {
    let (mut least, mut most) = (f64::INFINITY, 0f64);
    for loss in losses.filter(|loss| loss.is_finite() && *loss > 0.0) {
        least = least.min(loss);
        most = most.max(loss);
    }
    if least > most {
        return (0.01, 0.1);
    }
    (least / 1.12, (most * 1.12).min(least * 1000.0).min(0.3).max(least * 2.0))
}

impl Panel {
    /// The pixel of a point. What is beyond the panel, or no number, is at its edge; NaN at the top.
    fn place(&self, x: f64, y: f64) -> (i32, i32) {
        let part = |value: f64, (from, to): (f64, f64)| match from {
            0.0 => value / to,
            _ => (value / from).ln() / (to / from).ln(),
        };
        let (along, up) = (part(x, self.x).clamp(0.0, 1.0), part(y, self.y));
        let up = if up.is_nan() { 1.0 } else { up.clamp(0.0, 1.0) };
        let pixels = |part: f64, size: i32| (part * f64::from(size)).round() as i32;
        (self.left + pixels(along, self.width), self.top + self.height - pixels(up, self.height))
    }

    fn axes(&self, root: &Canvas<'_>, title: &str, x_name: &str, x_ticks: &[f64]) -> Result<(), Box<dyn Error>> {
        let (right, bottom) = (self.left + self.width, self.top + self.height);
        text(root, title, (self.left, self.top - 24), 17.0, FontStyle::Bold, HPos::Left, &INK)?;
        text(root, x_name, (self.left + self.width / 2, bottom + 48), 16.0, FontStyle::Normal, HPos::Center, &GREY)?;
        for &x in x_ticks {
            let (at, _) = self.place(x, self.y.0);
            line(root, &[(at, self.top), (at, bottom)], GRID, 1)?;
            line(root, &[(at, bottom), (at, bottom + 5)], INK, 1)?;
            text(root, &x.to_string(), (at, bottom + 19), 15.0, FontStyle::Normal, HPos::Center, &INK)?;
        }
        for power in -6..=3 {
            for digit in [1.0, 2.0, 3.0, 4.0, 5.0, 7.0] {
                let y = digit * 10f64.powi(power);
                if y < self.y.0 || y > self.y.1 {
                    continue;
                }
                let (_, at) = self.place(self.x.1, y);
                line(root, &[(self.left, at), (right, at)], GRID, 1)?;
                line(root, &[(self.left - 5, at), (self.left, at)], INK, 1)?;
                let label = format!("{y:.*}", (-power).max(0) as usize);
                text(root, &label, (self.left - 9, at), 15.0, FontStyle::Normal, HPos::Right, &INK)?;
            }
        }
        root.draw(&Rectangle::new([(self.left, self.top), (right, bottom)], INK))?;
        Ok(())
    }
}

fn line(root: &Canvas<'_>, points: &[(i32, i32)], color: RGBColor, width: u32) -> Result<(), Box<dyn Error>> {
    root.draw(&PathElement::new(points.to_vec(), color.stroke_width(width)))?;
    Ok(())
}

/// A dot; a small one where it is not the middle one.
fn marker(root: &Canvas<'_>, at: (i32, i32), color: RGBColor, middle: bool) -> Result<(), Box<dyn Error>> {
    let radius = if middle { 4 } else { 2 };
    root.draw(&Circle::new(at, radius, color.filled()))?;
    Ok(())
}

fn text(
    root: &Canvas<'_>,
    text: &str,
    at: (i32, i32),
    size: f64,
    style: FontStyle,
    anchor: HPos,
    color: &RGBColor,
) -> Result<(), Box<dyn Error>> {
    let font = FontDesc::new(FontFamily::SansSerif, size, style);
    // Plotters sets its text a little high.
    let at = (at.0, at.1 + (size / 8.0) as i32);
    root.draw_text(text, &font.color(color).pos(Pos::new(anchor, VPos::Center)), at)?;
    Ok(())
}
