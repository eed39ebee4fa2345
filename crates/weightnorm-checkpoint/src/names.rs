//! How weight-normalized parameters are called, and patterns over names.
use std::fmt;

use weightnorm::Axis;

/// How the two tensors of a weight-normalized parameter are called. The parameter itself, here `layer.weight`, is what
/// is there once they are folded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Spelling {
    /// `layer.weight_g`, `layer.weight_v`: `torch.nn.utils.weight_norm`.
    Suffixes,
    /// `layer.parametrizations.weight.original0` (g), `.original1` (v): `torch.nn.utils.parametrizations.weight_norm`.
    Parametrizations,
}

/// Which of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    G,
    V,
}

const GROUP: &str = "parametrizations.";

impl Spelling {
    /// The name of g, for a parameter of that name.
    pub fn g(self, parameter: &str) -> String {
        self.spell(parameter, Part::G)
    }

    /// The name of v.
    pub fn v(self, parameter: &str) -> String {
        self.spell(parameter, Part::V)
    }

    /// The other one.
    pub fn other(self) -> Spelling {
        match self {
            Spelling::Suffixes => Spelling::Parametrizations,
            Spelling::Parametrizations => Spelling::Suffixes,
        }
    }

    pub(super) fn spell(self, parameter: &str, part: Part) -> String {
        match self {
            Spelling::Suffixes => format!("{parameter}{}", if part == Part::G { "_g" } else { "_v" }),
            Spelling::Parametrizations => {
                let last = parameter.rfind('.').map_or(0, |dot| dot + 1);
                let (module, name) = parameter.split_at(last);
                format!("{module}{GROUP}{name}.original{}", if part == Part::G { 0 } else { 1 })
            }
        }
    }

    /// Which part of which parameter a tensor of this name would be.
    pub(super) fn parse(name: &str) -> Option<(Spelling, String, Part)> {
        let half = |(parameter, rest)| Some((Spelling::Parametrizations, parameter, half(rest)?));
        if let Some(parsed) = parametrized(name).find_map(half) {
            return Some(parsed);
        }
        let (parameter, part) = match name.strip_suffix("_g") {
            Some(parameter) => (parameter, Part::G),
            None => (name.strip_suffix("_v")?, Part::V),
        };
        is_parameter(parameter).then(|| (Spelling::Suffixes, parameter.to_owned(), part))
    }
}

impl fmt::Display for Spelling {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Spelling::Suffixes => "NAME_g, NAME_v",
            Spelling::Parametrizations => "parametrizations.NAME.original0, original1",
        })
    }
}

/// Whether a parameter may be called so: the names of its two tensors then say what it is called.
pub(super) fn is_parameter(name: &str) -> bool {
    !name.is_empty() && !name.ends_with('.')
}

/// What stands in front of the last dot.
pub(super) fn module(parameter: &str) -> &str {
    parameter.rsplit_once('.').map_or("", |(module, _)| module)
}

/// A name `[MODULE.]parametrizations.NAME.REST` as (`[MODULE.]NAME`, `REST`). Parametrizations have modules and these
/// again parametrizations: the outermost first.
pub(super) fn parametrized(name: &str) -> impl Iterator<Item = (String, &str)> {
    let groups = name.match_indices(GROUP).map(|(at, _)| name.split_at(at));
    groups.filter(|(module, _)| module.is_empty() || module.ends_with('.')).filter_map(|(module, rest)| {
        let (parameter, rest) = rest[GROUP.len()..].split_once('.')?;
        (!parameter.is_empty()).then(|| (format!("{module}{parameter}"), rest))
    })
}

/// Which half that rest says it is.
pub(super) fn half(rest: &str) -> Option<Part> {
    match rest {
        "original0" => Some(Part::G),
        "original1" => Some(Part::V),
        _ => None,
    }
}

/// Whether a parameter has one of the names that PyTorch's layers have, under which nothing but weight norm has a g and
/// a v:
/// `weight`, `bias`, numbered ones (`weight_1`, `bias2`) and recurrent ones (`weight_hh_l0`, `weight_ih_l0_reverse`).
pub(super) fn is_own(parameter: &str) -> bool {
    let name = parameter.rsplit('.').next().unwrap_or(parameter);
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let Some(rest) = name.strip_prefix("weight").or_else(|| name.strip_prefix("bias")) else { return false };
    let mut parts = rest.split('_');
    parts.next().is_some_and(|first| first.is_empty() || is_number(first))
        && parts.all(|part| {
            matches!(part, "ih" | "hh" | "hr" | "reverse") || is_number(part.strip_prefix('l').unwrap_or(part))
        })
}

/// A pattern over the names of parameters: `*` stands for any characters, dots too, `?` for one; everything else for
/// itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern(String);

impl Pattern {
    /// Every text is a pattern.
    pub fn new(text: impl Into<String>) -> Pattern {
        Pattern(text.into())
    }

    /// Whether it fits one name alone.
    pub(super) fn is_literal(&self) -> bool {
        !self.0.contains(['*', '?'])
    }

    /// Whether it fits the whole name.
    pub fn matches(&self, name: &str) -> bool {
        let (pattern, name): (Vec<char>, Vec<char>) = (self.0.chars().collect(), name.chars().collect());
        let (mut p, mut n) = (0, 0);
        // Where to go on when what follows the last star does not fit: one character later.
        let mut retry = None;
        while n < name.len() {
            match pattern.get(p) {
                Some('*') => {
                    retry = Some((p + 1, n));
                    p += 1;
                }
                Some(&c) if c == '?' || c == name[n] => (p, n) = (p + 1, n + 1),
                _ => {
                    let Some((after_star, from)) = retry else { return false };
                    retry = Some((after_star, from + 1));
                    (p, n) = (after_star, from + 1);
                }
            }
        }
        pattern[p..].iter().all(|&c| c == '*')
    }
}

impl<T: Into<String>> From<T> for Pattern {
    fn from(text: T) -> Pattern {
        Pattern::new(text)
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The kept axis of a pair by the shapes of v and g.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Inferred {
    Axis(Axis),
    Several(Vec<usize>),
    None,
}

/// g has the shape of v with ones but at the kept axis, or is flat, or has one element. Where g has one element, one
/// norm is all there is, whatever the axis is called.
pub(super) fn infer_axis(v: &[usize], g: &[usize]) -> Inferred {
    let fits = |axis: Axis| fits(v, g, axis);
    if g.iter().all(|&n| n == 1) {
        let axes: Vec<Axis> = [Axis::Kept(0), Axis::Whole].into_iter().filter(|&axis| fits(axis)).collect();
        return axes.first().map_or(Inferred::None, |&axis| Inferred::Axis(axis));
    }
    let axes: Vec<usize> = (0..v.len()).filter(|&k| fits(Axis::Kept(k))).collect();
    match axes[..] {
        [] => Inferred::None,
        [axis] => Inferred::Axis(Axis::Kept(axis)),
        _ => Inferred::Several(axes),
    }
}

/// Whether g has a shape for that axis of v.
pub(super) fn fits(v: &[usize], g: &[usize], axis: Axis) -> bool {
    let shape = weightnorm::norms_shape(v, axis);
    let count = shape.iter().product::<usize>();
    match axis {
        Axis::Kept(k) if k >= v.len() => false,
        _ => g == shape || g == [count] || (count == 1 && g.iter().all(|&n| n == 1) && g.len() <= v.len()),
    }
}

/// Whether g has a number for each of v, and not because the kept axis 0 has so many rows of one element, as that of a
/// bias has.
pub(super) fn is_elementwise(v: &[usize], g: &[usize]) -> bool {
    g == v && !v.is_empty() && weightnorm::norms_shape(v, Axis::Kept(0)) != g
}

/// Whether g has as many numbers as that axis of v has rows, whatever its shape.
pub(super) fn counts(v: &[usize], g: &[usize], axis: Axis) -> bool {
    let count = |shape: &[usize]| shape.iter().product::<usize>();
    !matches!(axis, Axis::Kept(k) if k >= v.len()) && count(g) == count(&weightnorm::norms_shape(v, axis))
}
