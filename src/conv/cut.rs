//! Which images, groups and channels of a convolution one dispatch binds.
//!
//! The weight joins the channels of c to those of a. So of each of the three tensors a binding holds the elements from
//! the first to the last of some images, groups, and channels within a group, whichever of them a product makes.
use super::geometry::Sides;
use crate::windows::{Capacities, windows};
use crate::{Error, LimitError};

/// Images, groups, channels of c in a group, channels of a in a group: indices of what follows.
pub(crate) const IMAGES: usize = 0;
pub(crate) const GROUPS: usize = 1;
pub(crate) const WIDE: usize = 2;
pub(crate) const CHANNELS: usize = 3;

/// How many of each.
pub(crate) type Extents = [u64; 4];

/// The first of each, and how many.
pub(crate) type Region = [(u64, u64); 4];

/// The first element, and how many from there to the last.
pub(crate) type Range = (u64, u64);

/// Bytes of an element of a, of c, and of the weight.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Widths {
    pub a: u64,
    pub c: u64,
    pub weight: u64,
}

/// What the host may know of a channel takes most: a Scale.
const CHANNEL_BYTES: u64 = 8;

impl Sides {
    pub fn extents(&self) -> Extents {
        [self.batch, self.groups, self.wide / self.groups, self.channels].map(|n| n as u64)
    }

    /// Elements of a channel of a.
    pub fn a_plane(&self) -> u64 {
        self.a_size.map(|n| n as u64).iter().product()
    }

    /// Elements of a channel of c.
    pub fn c_plane(&self) -> u64 {
        self.c_size.map(|n| n as u64).iter().product()
    }

    /// Taps of a kernel.
    pub fn taps(&self) -> u64 {
        self.kernel.map(|n| n as u64).iter().product()
    }

    /// Channels of a among all of them.
    pub fn channels_of(&self, region: &Region) -> Range {
        among(region[GROUPS], region[CHANNELS], self.channels as u64)
    }

    /// Channels of c among all of them.
    pub fn wide_of(&self, region: &Region) -> Range {
        among(region[GROUPS], region[WIDE], self.extents()[WIDE])
    }

    pub fn a_range(&self, region: &Region) -> Range {
        let channels = (self.groups * self.channels) as u64;
        scaled(among(region[IMAGES], self.channels_of(region), channels), self.a_plane())
    }

    pub fn c_range(&self, region: &Region) -> Range {
        scaled(among(region[IMAGES], self.wide_of(region), self.wide as u64), self.c_plane())
    }

    pub fn weight_range(&self, region: &Region) -> Range {
        scaled(among(self.wide_of(region), region[CHANNELS], self.channels as u64), self.taps())
    }

    /// As many of each as bindings hold at once: of an image all channels, else some groups, else channels of a group;
    /// then as many images.
    pub fn fitting(&self, capacities: Capacities, widths: Widths) -> Result<Extents, Error> {
        let all = self.extents();
        let fits = |extents: Extents| {
            let region = extents.map(|n| (0, n));
            let bytes = [
                self.a_range(&region).1 * widths.a,
                self.c_range(&region).1 * widths.c,
                self.weight_range(&region).1 * widths.weight,
                self.channels_of(&region).1 * CHANNEL_BYTES,
                self.wide_of(&region).1 * CHANNEL_BYTES,
            ];
            bytes.into_iter().all(|bytes| bytes <= capacities.binding)
        };
        let mut extents = [all[IMAGES].min(1), all[GROUPS], all[WIDE], all[CHANNELS]];
        extents[GROUPS] = most(all[GROUPS], |n| fits([extents[IMAGES], n, all[WIDE], all[CHANNELS]]));
        if extents[GROUPS] == 0 {
            let one = extents[IMAGES];
            extents[GROUPS] = 1;
            extents[CHANNELS] = most(all[CHANNELS], |n| fits([one, 1, all[WIDE].min(1), n]));
            extents[WIDE] = most(all[WIDE], |n| fits([one, 1, n, extents[CHANNELS]]));
        }
        if (0..4).any(|i| extents[i] == 0 && all[i] > 0) {
            let channel = (self.a_plane() * widths.a).max(self.c_plane() * widths.c);
            let (what, size) = match channel > capacities.binding {
                true => ("a channel of an image in bytes", channel),
                false => ("the taps of a kernel in bytes", self.taps() * widths.weight),
            };
            return Err(LimitError::TooLarge { what, size, limit: capacities.binding }.into());
        }
        let [_, groups, wide, channels] = extents;
        extents[IMAGES] = most(all[IMAGES], |n| fits([n, groups, wide, channels]));
        // Scales of taps are bound whole.
        let taps = self.kernel.map(|n| n as u64 * CHANNEL_BYTES).into_iter().max().unwrap_or(0);
        if taps > capacities.binding {
            let (what, limit) = ("the scales of the taps of a kernel in bytes", capacities.binding);
            return Err(LimitError::TooLarge { what, size: taps, limit }.into());
        }
        Ok(extents)
    }
}

/// The range of `inner` of `outer`, each of which has `size`.
fn among(outer: (u64, u64), inner: (u64, u64), size: u64) -> Range {
    let count = if outer.1 == 0 || inner.1 == 0 { 0 } else { (outer.1 - 1) * size + inner.1 };
    (outer.0 * size + inner.0, count)
}

fn scaled((first, count): Range, by: u64) -> Range {
    (first * by, count * by)
}

/// The most, up to `limit`, of which it is true that they fit, given that fewer fit as well; 0 if not even 1 does.
fn most(limit: u64, fits: impl Fn(u64) -> bool) -> u64 {
    if fits(limit) {
        return limit;
    }
    let (mut yes, mut no) = (0, limit + 1);
    while no - yes > 1 {
        let middle = yes + (no - yes) / 2;
        if fits(middle) { yes = middle } else { no = middle }
    }
    yes
}

/// All of `whole`, in pieces of at most `step` along the axes named, the last of which changes first.
pub(crate) fn regions(whole: Region, step: Extents, axes: &[usize]) -> Vec<Region> {
    axes.iter().fold(vec![whole], |regions, &axis| {
        let cut = |region: Region| {
            let (first, count) = region[axis];
            windows(count, step[axis].max(1)).map(move |(at, count)| {
                let mut part = region;
                part[axis] = (first + at, count);
                part
            })
        };
        regions.into_iter().flat_map(cut).collect()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ConvGeometry;

    const WIDTHS: Widths = Widths { a: 4, c: 4, weight: 4 };

    fn sides(x: &[usize], v: &[usize], groups: usize) -> Sides {
        Sides::of_conv("conv", &ConvGeometry::default().groups(groups), x, v).unwrap()
    }

    fn fitting(sides: &Sides, binding: u64) -> Result<Extents, Error> {
        sides.fitting(Capacities { binding, ..Capacities::LARGE }, WIDTHS)
    }

    /// Whole images, then groups, then channels.
    #[test]
    fn images_are_cut_before_groups_and_groups_before_channels() {
        let of_groups = sides(&[5, 8, 100], &[12, 2, 1], 4);
        assert_eq!(fitting(&of_groups, 1 << 20).unwrap(), [5, 4, 3, 2]);
        assert_eq!(fitting(&of_groups, 2 * 12 * 400).unwrap(), [2, 4, 3, 2]);
        assert_eq!(fitting(&of_groups, 12 * 400).unwrap(), [1, 4, 3, 2]);
        assert_eq!(fitting(&of_groups, 11 * 400).unwrap(), [1, 3, 3, 2]);
        assert_eq!(fitting(&of_groups, 3 * 400).unwrap(), [1, 1, 3, 2]);
        assert_eq!(fitting(&of_groups, 2 * 400).unwrap(), [1, 1, 2, 2]);
        assert_eq!(fitting(&of_groups, 400).unwrap(), [1, 1, 1, 1]);
        assert!(matches!(fitting(&of_groups, 396), Err(Error::Limit(LimitError::TooLarge { size: 400, .. }))));
        // The weight alone: rows of it.
        assert_eq!(fitting(&sides(&[3, 10, 9], &[100, 10, 3], 1), 3600).unwrap(), [1, 1, 30, 10]);
    }

    /// Every weight and every element of an output is in one region.
    #[test]
    fn regions_cover_all_once() {
        let sides = sides(&[5, 6, 10], &[9, 2, 1], 3);
        let whole = sides.extents().map(|n| (0, n));
        for step in [[2, 3, 3, 2], [1, 2, 3, 2], [1, 1, 2, 1]] {
            let mut found = vec![0; 5 * 3 * 3 * 2];
            for region in regions(whole, step, &[GROUPS, WIDE, IMAGES, CHANNELS]) {
                let axis = |i: usize| region[i].0..region[i].0 + region[i].1;
                for image in axis(IMAGES) {
                    for group in axis(GROUPS) {
                        for wide in axis(WIDE) {
                            for channel in axis(CHANNELS) {
                                found[(((image * 3 + group) * 3 + wide) * 2 + channel) as usize] += 1;
                            }
                        }
                    }
                }
            }
            assert!(found.iter().all(|&n| n == 1), "{step:?}");
        }
    }
}
