//! How names, axes and eps policies are written on the command line.
use weightnorm::{Axis, Eps};

pub fn parse_axis(text: &str) -> Result<Axis, String> {
    match text {
        "whole" => Ok(Axis::Whole),
        number => number.parse().map(Axis::Kept).map_err(|_| "expected a number from 0 on, or `whole`".to_owned()),
    }
}

pub fn parse_eps(text: &str) -> Result<Eps, String> {
    let policy: fn(f32) -> Eps = match text.split_once(':') {
        None if text == "none" => return Ok(Eps::None),
        Some(("clamp", _)) => Eps::Clamp,
        Some(("inside", _)) => Eps::InsideSqrt,
        Some(("after", _)) => Eps::After,
        _ => return Err("expected none, clamp:E, inside:E or after:E, such as clamp:1e-12".to_owned()),
    };
    let number = text.split_once(':').and_then(|(_, e)| e.parse::<f32>().ok());
    // The bounds of the library.
    match number.filter(|e| e.is_normal() && *e > 0.0 && *e <= 2f32.powi(126)) {
        Some(e) => Ok(policy(e)),
        None => Err("E has to be a positive number from 1.2e-38 to 8.5e37".to_owned()),
    }
}
