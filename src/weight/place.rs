//! What items reach of buffers, and the parts of these that are bound.
use crate::Tensor;
use crate::binding::{Span, View};
use crate::memory::Memory;
use crate::weight::item::{Kind, SLOTS};
use crate::windows::Capacities;

/// A buffer: one that is known, or scratch memory, which each recording may have anew.
#[derive(Debug, PartialEq, Eq, Hash, Clone)]
pub(crate) enum Source {
    Given(Memory),
    Sums,
    Scales,
}

/// From a byte of a buffer on.
#[derive(Debug, Clone)]
pub(crate) struct Region {
    pub source: Source,
    pub offset: u64,
}

impl Region {
    pub fn of(tensor: &Tensor) -> Region {
        Region { source: Source::Given(tensor.memory().clone()), offset: tensor.offset() }
    }

    pub fn view(view: &View<'_>) -> Region {
        Region { source: Source::Given(view.memory.clone().into_owned()), offset: view.offset }
    }
}

/// What an item needs of a buffer: bytes `begin` to `end`. Its place is that of byte `origin`, in units of `unit`
/// bytes.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    pub source: Source,
    pub origin: u64,
    pub begin: u64,
    pub end: u64,
    pub unit: u64,
}

pub(crate) type Places = [Option<Place>; SLOTS];

/// A part of a buffer that is bound.
#[derive(Debug, Clone)]
pub(crate) struct Window {
    source: Source,
    offset: u64,
    pub size: u64,
}

/// What one dispatch binds.
#[derive(Debug, Clone, Default)]
pub(crate) struct Windows([Option<Window>; SLOTS]);

impl Windows {
    /// Those that hold these places too.
    pub fn with(&self, places: &Places, capacities: Capacities) -> Windows {
        let mut wider = self.clone();
        for (window, place) in wider.0.iter_mut().zip(places) {
            let Some(place) = place else { continue };
            let begin = place.begin / capacities.alignment * capacities.alignment;
            let (offset, end) = match window {
                None => (begin, place.end),
                Some(w) => (w.offset.min(begin), (w.offset + w.size).max(place.end)),
            };
            *window = Some(Window { source: place.source.clone(), offset, size: end - offset });
        }
        wider
    }

    pub fn fit(&self, capacities: Capacities) -> bool {
        self.0.iter().flatten().all(|w| w.size <= capacities.whole_binding)
    }

    /// Whether an item with these places can go with those that the windows are of: what it does not need may be
    /// anything.
    pub fn share_buffers(&self, places: &Places) -> bool {
        let same = |(w, p): (&Option<Window>, &Option<Place>)| match (w, p) {
            (Some(window), Some(place)) => window.source == place.source,
            _ => true,
        };
        self.0.iter().zip(places).all(same)
    }

    /// The places within them.
    pub fn words(&self, places: &Places) -> [u32; SLOTS] {
        let mut words = [0; SLOTS];
        for ((word, place), window) in words.iter_mut().zip(places).zip(&self.0) {
            if let (Some(place), Some(window)) = (place, window) {
                // Modulo 2^32: a window may begin behind the origin.
                *word = ((place.origin as i64 - window.offset as i64) / place.unit as i64) as u32;
            }
        }
        words
    }

    /// As a kernel's bindings.
    pub fn spans<'a>(&'a self, kind: Kind, scratch: [&'a Memory; 2]) -> impl Iterator<Item = Option<Span<'a>>> {
        let [sums, scales] = scratch;
        kind.slots().iter().map(move |&slot| {
            let window = self.0[slot].as_ref()?;
            let memory = match &window.source {
                Source::Given(memory) => memory,
                Source::Sums => sums,
                Source::Scales => scales,
            };
            Some(Span::new(memory, window.offset, window.size))
        })
    }
}
