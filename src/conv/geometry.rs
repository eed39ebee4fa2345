//! Where the taps of a convolution fall: stride, padding, dilation, groups, and the sizes that follow.
use crate::Error;
use crate::{ArgumentError, LimitError};

/// What a convolution reads beside its input: PyTorch's `padding_mode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum PadMode {
    /// Zeros.
    #[default]
    Zero,
    /// The input mirrored at its first and last element, which are not repeated: 3 2 1 | 0 1 2 3.
    Reflect,
    /// The first and the last element.
    Replicate,
}

/// A value for all spatial axes alike, or one for each of two.
///
/// `3` is for all axes, `[3, 1]` for height and width; of a padding `(3, 1)` are the sides before and after along each
/// axis, `[(3, 1), (0, 0)]` those of height and of width.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PerAxis<T> {
    /// The same for all.
    All(T),
    /// Height and width.
    Each([T; 2]),
}

impl From<usize> for PerAxis<usize> {
    fn from(all: usize) -> Self {
        PerAxis::All(all)
    }
}

impl From<[usize; 2]> for PerAxis<usize> {
    fn from(each: [usize; 2]) -> Self {
        PerAxis::Each(each)
    }
}

impl From<usize> for PerAxis<(usize, usize)> {
    fn from(all: usize) -> Self {
        PerAxis::All((all, all))
    }
}

impl From<[usize; 2]> for PerAxis<(usize, usize)> {
    fn from(each: [usize; 2]) -> Self {
        PerAxis::Each(each.map(|side| (side, side)))
    }
}

impl From<(usize, usize)> for PerAxis<(usize, usize)> {
    fn from(all: (usize, usize)) -> Self {
        PerAxis::All(all)
    }
}

impl From<[(usize, usize); 2]> for PerAxis<(usize, usize)> {
    fn from(each: [(usize, usize); 2]) -> Self {
        PerAxis::Each(each)
    }
}

/// Stride, padding, dilation and groups of a convolution or a transposed one. `ConvGeometry::default()` has stride and
/// dilation 1, no padding and one group.
///
/// Tap κ of a convolution meets, for output position u, the input position u·stride + κ·dilation − padding before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct ConvGeometry {
    /// Input positions from one output position to the next; of a transposed convolution the other way round.
    pub stride: PerAxis<usize>,
    /// Positions before and after; of a transposed convolution those that are cut off its output.
    pub padding: PerAxis<(usize, usize)>,
    /// What is read there. [`PadMode::Zero`] for a transposed convolution.
    pub pad_mode: PadMode,
    /// Positions from one tap to the next.
    pub dilation: PerAxis<usize>,
    /// Groups of channels that do not see each other.
    pub groups: usize,
    /// More positions at the end of the output of a transposed convolution; less than its stride or its dilation.
    pub output_padding: PerAxis<usize>,
}

impl Default for ConvGeometry {
    fn default() -> Self {
        let (one, none) = (PerAxis::All(1), PerAxis::All(0));
        let (padding, pad_mode) = (PerAxis::All((0, 0)), PadMode::Zero);
        ConvGeometry { stride: one, padding, pad_mode, dilation: one, groups: 1, output_padding: none }
    }
}

impl ConvGeometry {
    /// Sets the stride.
    pub fn stride(self, stride: impl Into<PerAxis<usize>>) -> Self {
        ConvGeometry { stride: stride.into(), ..self }
    }

    /// Sets the padding: see [`PerAxis`].
    pub fn padding(self, padding: impl Into<PerAxis<(usize, usize)>>) -> Self {
        ConvGeometry { padding: padding.into(), ..self }
    }

    /// Sets what is read in the padding.
    pub fn pad_mode(self, pad_mode: PadMode) -> Self {
        ConvGeometry { pad_mode, ..self }
    }

    /// Sets the dilation.
    pub fn dilation(self, dilation: impl Into<PerAxis<usize>>) -> Self {
        ConvGeometry { dilation: dilation.into(), ..self }
    }

    /// Sets the groups.
    pub fn groups(self, groups: usize) -> Self {
        ConvGeometry { groups, ..self }
    }

    /// Sets the output padding.
    pub fn output_padding(self, output_padding: impl Into<PerAxis<usize>>) -> Self {
        ConvGeometry { output_padding: output_padding.into(), ..self }
    }

    /// The shape of y of a convolution:
    ///
    /// ```text
    /// U = ⌊(T + before + after − dilation·(k − 1) − 1) / stride⌋ + 1
    /// ```
    ///
    /// - `x_shape`: `[B, in, T]` or `[B, in, H, W]`. `v_shape`: `[out, in / groups, k]` or `[.., kh, kw]`.
    ///
    /// # Errors
    /// [`ArgumentError::Shape`] if they do not fit each other or the groups, and where no output position is left;
    /// [`ArgumentError::Number`] for a stride, dilation or number of groups of 0, or one past 2²⁴.
    pub fn conv_shape(&self, x_shape: &[usize], v_shape: &[usize]) -> Result<Vec<usize>, Error> {
        Sides::of_conv("conv", self, x_shape, v_shape).map(|sides| sides.c_shape())
    }

    /// The shape of y of a transposed convolution:
    ///
    /// ```text
    /// T = (U − 1)·stride + dilation·(k − 1) + 1 + output padding − before − after
    /// ```
    ///
    /// - `x_shape`: `[B, in, U]` or `[B, in, H, W]`. `v_shape`: `[in, out / groups, k]` or `[.., kh, kw]`.
    ///
    /// # Errors
    /// As [`ConvGeometry::conv_shape`]; [`ArgumentError::Number`] for an output padding of stride and dilation or more.
    pub fn conv_transposed_shape(&self, x_shape: &[usize], v_shape: &[usize]) -> Result<Vec<usize>, Error> {
        Sides::of_transposed("conv_transposed", self, x_shape, v_shape).map(|sides| sides.a_shape())
    }
}

/// No axis is longer than a tensor may be, so that sums of its length and of paddings do not overflow.
fn check_axes(what: &'static str, shape: &[usize]) -> Result<(), Error> {
    let limit = u32::MAX as usize - 2 * LARGEST;
    match shape.iter().find(|&&size| size > limit) {
        Some(&size) => {
            let (shape, limit) = (shape.to_vec(), limit as u64);
            Err(LimitError::TensorTooLarge { what, shape, size: size as u64, unit: "elements along an axis", limit }
                .into())
        }
        None => Ok(()),
    }
}

/// The largest stride, dilation, padding and number of groups: sums of them and of sizes are far from overflowing.
const LARGEST: usize = 1 << 24;

/// A convolution or a transposed one, with all that follows from its shapes. One in 1-D has height 1.
///
/// It stands between a, with the positions that taps lie on, and c, with a window of them for each of its own:
///
/// ```text
/// c[b, p, u] = Σ v[p, q, κ] · a[b, gQ + q, u·stride + κ·dilation − before]        p in group g
/// ```
///
/// A convolution makes c of a, a transposed one a of c, by the sum over p in place of q.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sides {
    /// Spatial axes.
    pub rank: usize,
    pub batch: usize,
    pub groups: usize,
    /// P, channels of c.
    pub wide: usize,
    /// Q, channels of a in a group.
    pub channels: usize,
    /// Below, of height and width.
    pub kernel: [usize; 2],
    /// T, positions of a.
    pub a_size: [usize; 2],
    /// U, positions of c.
    pub c_size: [usize; 2],
    pub stride: [usize; 2],
    pub dilation: [usize; 2],
    pub before: [usize; 2],
    pub pad_mode: PadMode,
}

impl Sides {
    /// Of a convolution: x is a.
    pub fn of_conv(
        op: &'static str,
        geometry: &ConvGeometry,
        x_shape: &[usize],
        v_shape: &[usize],
    ) -> Result<Sides, Error> {
        let mut sides = Sides::of_weight(op, geometry, v_shape)?;
        let expected =
            |what: String| Error::from(ArgumentError::Shape { op, arg: "x", got: x_shape.to_vec(), expected: what });
        check_axes("x", x_shape)?;
        let axes = if sides.rank == 1 { "T" } else { "H, W" };
        let channels = sides.groups.checked_mul(sides.channels).filter(|c| x_shape.get(1) == Some(c));
        if channels.is_none() || x_shape.len() != v_shape.len() {
            return Err(expected(format!("[B, {}, {axes}]", sides.groups as u128 * sides.channels as u128)));
        }
        sides.numbers(op, "the output padding", geometry.output_padding, 0, 0)?;
        (sides.batch, sides.a_size) = (x_shape[0], spatial(x_shape, sides.rank));
        let padding = sides.padding(op, geometry)?;
        for (axis, (before, after)) in padding.into_iter().enumerate() {
            let size = sides.a_size[axis];
            let reach = sides.reach(axis);
            let padded = (size + before) as u64 + after as u64;
            if padded < reach {
                return Err(expected(format!("{reach} positions with the padding, as many as the kernel spans")));
            }
            let most = match geometry.pad_mode {
                PadMode::Zero => usize::MAX,
                PadMode::Reflect => size.saturating_sub(1),
                PadMode::Replicate => {
                    if size == 0 {
                        0
                    } else {
                        usize::MAX
                    }
                }
            };
            if before.max(after) > most {
                return Err(expected(format!("more than {} positions, to pad by them", before.max(after))));
            }
            sides.c_size[axis] = ((padded - reach) / sides.stride[axis] as u64) as usize + 1;
        }
        Ok(sides)
    }

    /// Of a transposed convolution: x is c.
    pub fn of_transposed(
        op: &'static str,
        geometry: &ConvGeometry,
        x_shape: &[usize],
        v_shape: &[usize],
    ) -> Result<Sides, Error> {
        let mut sides = Sides::of_weight(op, geometry, v_shape)?;
        let expected =
            |what: String| Error::from(ArgumentError::Shape { op, arg: "x", got: x_shape.to_vec(), expected: what });
        check_axes("x", x_shape)?;
        let axes = if sides.rank == 1 { "U" } else { "H, W" };
        if x_shape.len() != v_shape.len() || x_shape[1] != sides.wide {
            return Err(expected(format!("[B, {}, {axes}]", sides.wide)));
        }
        if geometry.pad_mode != PadMode::Zero {
            let reason = "a transposed convolution cuts its padding off".to_owned();
            return Err(ArgumentError::Variant { op, got: format!("{:?}", geometry.pad_mode), reason }.into());
        }
        (sides.batch, sides.c_size) = (x_shape[0], spatial(x_shape, sides.rank));
        let padding = sides.padding(op, geometry)?;
        let more = sides.numbers(op, "the output padding", geometry.output_padding, 0, LARGEST)?;
        for (axis, (before, after)) in padding.into_iter().enumerate() {
            let (stride, dilation) = (sides.stride[axis], sides.dilation[axis]);
            if more[axis] > 0 && more[axis] >= stride.max(dilation) {
                let (what, expected) = ("the output padding", "less than the stride or the dilation");
                return Err(ArgumentError::Number { op, what, got: more[axis] as f64, expected }.into());
            }
            let all = match sides.c_size[axis] {
                0 => 0,
                size => (size as u64 - 1) * stride as u64 + sides.reach(axis) + more[axis] as u64,
            };
            let cut = (before + after) as u64;
            if all <= cut {
                return Err(expected(format!("more positions: {all} come of them, {cut} are cut off")));
            }
            sides.a_size[axis] = usize::try_from(all - cut).unwrap_or(usize::MAX);
        }
        Ok(sides)
    }

    /// What follows from the weight alone.
    pub fn of_weight(op: &'static str, geometry: &ConvGeometry, v_shape: &[usize]) -> Result<Sides, Error> {
        let fail = |expected: &str| {
            Err(ArgumentError::Shape { op, arg: "weight", got: v_shape.to_vec(), expected: expected.to_owned() }.into())
        };
        let (&[wide, channels, _] | &[wide, channels, _, _]) = v_shape else {
            return fail("[.., .., k] or [.., .., kh, kw]");
        };
        let rank = v_shape.len() - 2;
        let groups = geometry.groups;
        let mut sides = Sides {
            rank,
            batch: 0,
            groups,
            wide,
            channels,
            kernel: spatial(v_shape, rank),
            a_size: [1; 2],
            c_size: [1; 2],
            stride: [1; 2],
            dilation: [1; 2],
            before: [0; 2],
            pad_mode: geometry.pad_mode,
        };
        sides.numbers(op, "the number of groups", PerAxis::All(groups), 1, LARGEST)?;
        sides.stride = sides.numbers(op, "the stride", geometry.stride, 1, LARGEST)?;
        sides.dilation = sides.numbers(op, "the dilation", geometry.dilation, 1, LARGEST)?;
        check_axes("weight", v_shape)?;
        if sides.kernel.contains(&0) {
            return fail("a kernel of at least one tap");
        }
        if !wide.is_multiple_of(groups) {
            return fail(&format!("a first axis that {groups} groups divide"));
        }
        Ok(sides)
    }

    /// One number for height and width each; 1-D has height 1.
    fn numbers(
        &self,
        op: &'static str,
        what: &'static str,
        numbers: PerAxis<usize>,
        least: usize,
        most: usize,
    ) -> Result<[usize; 2], Error> {
        let fail = |got: usize, expected| Err(ArgumentError::Number { op, what, got: got as f64, expected }.into());
        let each = match numbers {
            PerAxis::All(n) if self.rank == 1 => [least, n],
            PerAxis::All(n) => [n, n],
            PerAxis::Each(_) if self.rank == 1 => return fail(2, "one number, not two, for a kernel of one axis"),
            PerAxis::Each(each) => each,
        };
        match each.into_iter().find(|n| !(least..=most).contains(n)) {
            Some(got) if most == 0 => fail(got, "0: it is for transposed convolutions"),
            Some(got) if least == 0 => fail(got, "0 to 2²⁴"),
            Some(got) => fail(got, "1 to 2²⁴"),
            None => Ok(each),
        }
    }

    fn padding(&mut self, op: &'static str, geometry: &ConvGeometry) -> Result<[(usize, usize); 2], Error> {
        let side = |pick: fn((usize, usize)) -> usize| match geometry.padding {
            PerAxis::All(all) => PerAxis::All(pick(all)),
            PerAxis::Each(each) => PerAxis::Each(each.map(pick)),
        };
        self.before = self.numbers(op, "the padding", side(|(before, _)| before), 0, LARGEST)?;
        let after = self.numbers(op, "the padding", side(|(_, after)| after), 0, LARGEST)?;
        Ok([0, 1].map(|axis| (self.before[axis], after[axis])))
    }

    /// Positions that the kernel spans.
    fn reach(&self, axis: usize) -> u64 {
        self.dilation[axis] as u64 * (self.kernel[axis] as u64 - 1) + 1
    }

    /// The same over a with its padding, as far as windows reach, in place of a.
    pub fn padded(&self) -> Sides {
        let a_size = [0, 1].map(|axis| {
            let reached = (self.c_size[axis] - 1) as u64 * self.stride[axis] as u64 + self.reach(axis);
            (self.before[axis] + self.a_size[axis]).max(usize::try_from(reached).unwrap_or(usize::MAX))
        });
        Sides { a_size, before: [0; 2], pad_mode: PadMode::Zero, ..*self }
    }

    fn shape(&self, channels: usize, size: [usize; 2]) -> Vec<usize> {
        [&[self.batch, channels][..], &size[2 - self.rank..]].concat()
    }

    /// `[B, G·Q, T]`
    pub fn a_shape(&self) -> Vec<usize> {
        self.shape(self.groups * self.channels, self.a_size)
    }

    /// `[B, P, U]`
    pub fn c_shape(&self) -> Vec<usize> {
        self.shape(self.wide, self.c_size)
    }

    /// Along an axis the position of a that tap κ of the window at u meets; none in a padding of zeros.
    pub fn position(&self, axis: usize, u: usize, tap: usize) -> Option<usize> {
        let (size, before) = (self.a_size[axis], self.before[axis]);
        let padded = u * self.stride[axis] + tap * self.dilation[axis];
        match self.pad_mode {
            PadMode::Zero => padded.checked_sub(before).filter(|&t| t < size),
            PadMode::Replicate => Some(padded.saturating_sub(before).min(size - 1)),
            // Twice the last position is the mirror's image of position 0 beyond it.
            PadMode::Reflect => {
                let t = padded.abs_diff(before);
                Some(t.min((2 * (size - 1)).abs_diff(t)))
            }
        }
    }
}

/// The last axes as height and width.
fn spatial(shape: &[usize], rank: usize) -> [usize; 2] {
    let axes = &shape[2..];
    if rank == 1 { [1, axes[0]] } else { [axes[0], axes[1]] }
}
