//! A slice of a signed distance field as a picture.
use std::error::Error;
use std::path::Path;

use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use plotters::style::{FontStyle, register_font};

use decode::model::Model;

/// Which points of the field.
pub struct Slice {
    latent: usize,
    /// The third coordinate, where there are three.
    z: Option<f64>,
}

impl Slice {
    /// Whatever z is, a network in two dimensions has none.
    pub fn new(model: &Model, latent: usize, z: Option<f64>) -> Result<Slice, String> {
        let (codes, dimension) = (model.latent_codes.rows, model.points.columns);
        if latent >= codes {
            return Err(format!("--latent {latent}: the file has codes 0 to {}", codes - 1));
        }
        match (dimension, z) {
            (2, None) => Ok(Slice { latent, z: None }),
            (2, Some(_)) => Err("--slice: this network has two dimensions".into()),
            (3, z) if z.unwrap_or(0.0).is_finite() => Ok(Slice { latent, z: z.or(Some(0.0)) }),
            (3, _) => Err("--slice has to be a finite number".into()),
            _ => Err(format!("--image: this network has {dimension} dimensions, a picture takes 2 or 3")),
        }
    }

    fn subtitle(&self, scale: &Scale) -> String {
        let step = signed(scale.step.into(), scale.digits);
        let place = self.z.map_or(String::new(), |z| format!(" at z = {z}").replace('-', "\u{2212}"));
        format!("signed distance{place}, latent code {}; a line every {step}, the surface bold", self.latent)
    }
}

/// Pixels along a side of the field.
const SIDE: u32 = 540;
/// Points of the network along a side, two pixels apart; the pixels between are interpolated.
const NODES: usize = SIDE as usize / 2 + 1;
const TITLE: u32 = 84;
const LABELS: u32 = 64;
const BAR: u32 = 130;
const MARGIN: u32 = 24;

const INK: RGBColor = RGBColor(34, 38, 46);
const GREY: RGBColor = RGBColor(112, 118, 128);
const NAN: RGBColor = RGBColor(200, 200, 200);
/// From the surface inwards, and outwards.
const INSIDE: [RGBColor; 4] =
    [RGBColor(252, 244, 232), RGBColor(246, 196, 138), RGBColor(222, 118, 62), RGBColor(140, 42, 36)];
const OUTSIDE: [RGBColor; 4] =
    [RGBColor(242, 247, 248), RGBColor(168, 208, 222), RGBColor(74, 138, 182), RGBColor(22, 58, 110)];

type Canvas<'a> = DrawingArea<BitMapBackend<'a>, Shift>;

/// Draws `slice` of the field: `decode` gives the distances of points, two or three coordinates each, for a latent code.
pub fn draw(
    out: &Path,
    name: &str,
    slice: &Slice,
    decode: impl FnOnce(usize, &[f32]) -> Result<Vec<f32>, weightnorm::Error>,
) -> Result<(), Box<dyn Error>> {
    let z = slice.z.map(|z| z as f32);
    let coordinate = |i: usize| 2.0 * i as f32 / (NODES - 1) as f32 - 1.0;
    let nodes = (0..NODES * NODES).map(|i| (i % NODES, i / NODES));
    let points: Vec<f32> =
        nodes.flat_map(|(x, y)| [Some(coordinate(x)), Some(-coordinate(y)), z].into_iter().flatten()).collect();
    let field = Field::new(&decode(slice.latent, &points)?);
    let scale = Scale::new(&field.sdf);

    // The font comes along: no picture depends on what is installed.
    for (style, font) in [(FontStyle::Normal, dejavu::sans::regular()), (FontStyle::Bold, dejavu::sans::bold())] {
        register_font("sans-serif", style, font).map_err(|_| "the font would not load")?;
    }
    let size = (LABELS + SIDE + MARGIN + BAR, TITLE + SIDE + LABELS);
    let root = BitMapBackend::new(out, size).into_drawing_area();
    root.fill(&WHITE)?;
    let left = LABELS as i32;
    text(&root, name, (left, 22), 26.0, FontStyle::Bold, HPos::Left, &INK)?;
    text(&root, &slice.subtitle(&scale), (left, 54), 17.0, FontStyle::Normal, HPos::Left, &GREY)?;

    axes(&root)?;
    let origin = (LABELS as i32, TITLE as i32);
    for (i, (x, y)) in (0..SIDE * SIDE).map(|i| (i % SIDE, i / SIDE)).enumerate() {
        let color = scale.color_with_lines(field.sdf[i], field.slope(x, y));
        root.draw_pixel((origin.0 + x as i32, origin.1 + y as i32), &color)?;
    }
    frame(&root, origin, (SIDE, SIDE))?;
    bar(&root, &scale)?;
    root.present().map_err(|e| format!("{}: {e}", out.display()))?;
    Ok(())
}

/// The field's axes: ticks and numbers.
fn axes(root: &Canvas<'_>) -> Result<(), Box<dyn Error>> {
    let (left, top, side) = (LABELS as i32, TITLE as i32, SIDE as i32);
    for i in 0..=4 {
        let value = f64::from(i) / 2.0 - 1.0;
        let along = side * i / 4;
        let (x, y) = (left + along, top + side - along);
        line(root, [(x, top + side), (x, top + side + 6)])?;
        line(root, [(left - 7, y), (left, y)])?;
        let label = signed(value, 1);
        text(root, &label, (x, top + side + 20), 15.0, FontStyle::Normal, HPos::Center, &INK)?;
        text(root, &label, (left - 12, y), 15.0, FontStyle::Normal, HPos::Right, &INK)?;
    }
    text(root, "x", (left + side / 2, top + side + 44), 17.0, FontStyle::Normal, HPos::Center, &GREY)?;
    text(root, "y", (14, top + side / 2), 17.0, FontStyle::Normal, HPos::Center, &GREY)
}

/// The colours of the distances, with the levels at which lines are drawn.
fn bar(root: &Canvas<'_>, scale: &Scale) -> Result<(), Box<dyn Error>> {
    const WIDTH: u32 = 22;
    let (left, top) = ((LABELS + SIDE + MARGIN) as i32, TITLE as i32);
    let place = |s: f32| top + ((scale.max - s) / (scale.max - scale.min) * (SIDE - 1) as f32).round() as i32;
    for y in 0..SIDE {
        let s = scale.max - (scale.max - scale.min) * y as f32 / (SIDE - 1) as f32;
        let slope = (scale.max - scale.min) / SIDE as f32;
        for x in 0..WIDTH {
            root.draw_pixel((left + x as i32, top + y as i32), &scale.color_with_lines(s, slope))?;
        }
    }
    frame(root, (left, top), (WIDTH, SIDE))?;
    for level in scale.levels() {
        let style = if level == 0.0 { FontStyle::Bold } else { FontStyle::Normal };
        let (x, y) = (left + WIDTH as i32, place(level));
        line(root, [(x, y), (x + 6, y)])?;
        text(root, &signed(level.into(), scale.digits), (x + 12, y), 15.0, style, HPos::Left, &INK)?;
    }
    Ok(())
}

fn signed(value: f64, digits: usize) -> String {
    format!("{value:.digits$}").replace('-', "\u{2212}")
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

fn line(root: &Canvas<'_>, ends: [(i32, i32); 2]) -> Result<(), Box<dyn Error>> {
    root.draw(&PathElement::new(ends, INK))?;
    Ok(())
}

fn frame(root: &Canvas<'_>, (x, y): (i32, i32), (width, height): (u32, u32)) -> Result<(), Box<dyn Error>> {
    let ends = [(x - 1, y - 1), (x + width as i32, y + height as i32)];
    root.draw(&Rectangle::new(ends, INK))?;
    Ok(())
}

/// The distances at the centres of SIDE x SIDE pixels, from the upper left.
struct Field {
    sdf: Vec<f32>,
}

impl Field {
    fn new(nodes: &[f32]) -> Field {
        let at = |x: usize, y: usize| nodes[y * NODES + x];
        let blend = |a: f32, b: f32, t: f32| a + (b - a) * t;
        let pixel = |i: u32| (i as usize / 2, if i.is_multiple_of(2) { 0.25 } else { 0.75 });
        let interpolate = |i: u32| {
            let ((x, tx), (y, ty)) = (pixel(i % SIDE), pixel(i / SIDE));
            blend(blend(at(x, y), at(x + 1, y), tx), blend(at(x, y + 1), at(x + 1, y + 1), tx), ty)
        };
        Field { sdf: (0..SIDE * SIDE).map(interpolate).collect() }
    }

    /// How much the distance changes from a pixel to the next.
    fn slope(&self, x: u32, y: u32) -> f32 {
        let at = |x: u32, y: u32| self.sdf[(y * SIDE + x) as usize];
        let around = |i: u32| (i.saturating_sub(1), (i + 1).min(SIDE - 1));
        let ((left, right), (up, down)) = (around(x), around(y));
        let dx = (at(right, y) - at(left, y)) / (right - left) as f32;
        let dy = (at(x, down) - at(x, up)) / (down - up) as f32;
        dx.hypot(dy)
    }
}

/// Colours and levels for the range of a field.
struct Scale {
    min: f32,
    max: f32,
    /// From one level to the next.
    step: f32,
    /// Decimals of a level.
    digits: usize,
}

impl Scale {
    fn new(sdf: &[f32]) -> Scale {
        let finite = || sdf.iter().copied().filter(|s| s.is_finite());
        let (min, max) = (finite().fold(f32::INFINITY, f32::min), finite().fold(f32::NEG_INFINITY, f32::max));
        // Wide enough that a constant field, or one without a number, has a scale.
        let (min, max) = if max - min > 1e-6 { (min, max) } else { (min.clamp(-1.0, 0.0), max.clamp(0.0, 1.0) + 1.0) };
        // About a dozen levels, 1, 2 or 5 times a power of ten apart.
        let rough = (max - min) / 15.0;
        let power = rough.log10().floor() as i32;
        let steps = [1.0, 2.0, 5.0, 10.0].map(|n| n * 10f32.powi(power));
        let step = steps.into_iter().find(|&step| step >= rough).unwrap_or(rough);
        Scale { min, max, step, digits: (-power).clamp(0, 9) as usize }
    }

    fn levels(&self) -> impl Iterator<Item = f32> {
        let (first, last) = ((self.min / self.step).ceil() as i32, (self.max / self.step).floor() as i32);
        (first..=last).map(|i| i as f32 * self.step)
    }

    /// The colour of a distance, darkened where a level runs through its pixel. `slope`: the change from pixel to pixel.
    fn color_with_lines(&self, s: f32, slope: f32) -> RGBColor {
        let color = self.color(s);
        let level = (s / self.step).round();
        let (half_width, ink) = if level == 0.0 { (1.7, 1.0) } else { (0.6, 0.42) };
        let pixels = (s - level * self.step).abs() / slope.max(1e-3 * self.step);
        let cover = (half_width + 0.5 - pixels).clamp(0.0, 1.0) * ink;
        if cover.is_nan() { color } else { mix(color, INK, cover) }
    }

    /// The square root spreads the colours near the surface.
    fn color(&self, s: f32) -> RGBColor {
        if !s.is_finite() {
            return NAN;
        }
        let colors = if s < 0.0 { INSIDE } else { OUTSIDE };
        let most = self.max.abs().max(self.min.abs());
        let at = (s.abs() / most).sqrt().min(1.0) * (colors.len() - 1) as f32;
        // In steps too fine to see, which makes the file a third smaller.
        let at = (at * 40.0).round() / 40.0;
        let i = (at as usize).min(colors.len() - 2);
        mix(colors[i], colors[i + 1], at - i as f32)
    }
}

fn mix(a: RGBColor, b: RGBColor, t: f32) -> RGBColor {
    let channel = |a: u8, b: u8| (f32::from(a) + (f32::from(b) - f32::from(a)) * t).round() as u8;
    RGBColor(channel(a.0, b.0), channel(a.1, b.1), channel(a.2, b.2))
}
