//! Zip archives of stored entries, as `torch.save` writes them: which entries there are, and where their bytes lie.
//!
//! A local header (30 bytes, a name, extra fields) stands in front of the bytes of each entry. Behind them all is the
//! central directory with an entry for each (46 bytes, a name, extra fields, a comment), and then the end record (22
//! bytes, a comment). Where a size, a place or a count has no room, a zip64 field has it.
use std::collections::HashMap;
use std::fs::File;
use std::ops::Range;

use crate::at::read_at;

const LOCAL: &[u8] = b"PK\x03\x04";
const CENTRAL: &[u8] = b"PK\x01\x02";
const END: &[u8] = b"PK\x05\x06";
const END_64: &[u8] = b"PK\x06\x06";
const LOCATOR_64: &[u8] = b"PK\x06\x07";
const END_LENGTH: u64 = 22;
const LOCATOR_LENGTH: u64 = 20;
/// The longest central directory that is read: a million tensors take less.
const MAX_DIRECTORY: u64 = 100_000_000;

/// Where an entry lies, by the central directory.
#[derive(Debug, Clone, Copy)]
struct Entry {
    /// Of its local header.
    header: u64,
    size: u64,
    /// Whether its bytes stand there as they are.
    is_stored: bool,
}

/// The list of names of an archive.
pub struct Archive<'a> {
    file: &'a File,
    entries: HashMap<Vec<u8>, Entry>,
    /// Of the central directory: entries lie in front of it.
    directory: u64,
}

impl<'a> Archive<'a> {
    /// Reads the central directory. `size`: of the file.
    pub fn open(file: &'a File, size: u64) -> Result<Archive<'a>, String> {
        let (end, place) = find_end(file, size)?;
        let Range { start: directory, end: behind } = place;
        if behind > end || behind < directory {
            return Err(format!("its list of names is said to lie at {directory}..{behind}, the end record at {end}"));
        }
        if behind - directory > MAX_DIRECTORY {
            return Err(format!("its list of names is {} bytes long", behind - directory));
        }
        let bytes = read(file, directory, behind - directory)?;
        Ok(Archive { file, entries: parse_directory(&bytes)?, directory })
    }

    /// All names, in no order.
    pub fn names(&self) -> impl Iterator<Item = &[u8]> {
        self.entries.keys().map(Vec::as_slice)
    }

    /// Where the bytes of an entry lie in the file, with its local header in front of them as a check; `None` where
    /// there is no such entry.
    pub fn place(&self, name: &[u8]) -> Result<Option<Place>, String> {
        let Some(&Entry { header, size, is_stored }) = self.entries.get(name) else { return Ok(None) };
        let said = |what: &str| format!("its entry {} {what}", String::from_utf8_lossy(name));
        if !is_stored {
            return Err(said("is compressed or encrypted, which PyTorch's are not"));
        }
        if header.checked_add(30 + name.len() as u64).is_none_or(|end| end > self.directory) {
            return Err(said("is said to lie behind the list of names"));
        }
        let local = read(self.file, header, 30 + name.len() as u64)?;
        let length = u64::from(u16_at(&local, 26));
        if !local.starts_with(LOCAL) || length != name.len() as u64 || &local[30..] != name {
            return Err(said("is not where the list of names says"));
        }
        let begin = header + 30 + length + u64::from(u16_at(&local, 28));
        let end = begin.checked_add(size).filter(|&end| end <= self.directory);
        let end = end.ok_or_else(|| said("ends behind the list of names: the file is cut off or damaged"))?;
        Ok(Some(Place { header, begin, end }))
    }

    /// All bytes of an entry, which is there.
    pub fn read(&self, place: &Place) -> Result<Vec<u8>, String> {
        read(self.file, place.begin, place.end - place.begin)
    }
}

/// Where an entry lies in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// The first byte of its local header.
    pub header: u64,
    /// The first of its own bytes.
    pub begin: u64,
    /// Behind the last of them.
    pub end: u64,
}

/// The position of the end record, and the place of the central directory.
fn find_end(file: &File, size: u64) -> Result<(u64, Range<u64>), String> {
    let missing = || "its list of names is missing: the file is cut off".to_owned();
    let start = size.saturating_sub(END_LENGTH + u64::from(u16::MAX));
    let tail = read(file, start, size - start)?;
    let is_end = |at: &usize| {
        let rest = &tail[*at..];
        rest.starts_with(END) && rest.len() as u64 == END_LENGTH + u64::from(u16_at(rest, 20))
    };
    let last = tail.len().checked_sub(END_LENGTH as usize).ok_or_else(missing)?;
    let at = (0..=last).rev().find(is_end).ok_or_else(missing)?;
    let (record, end) = (&tail[at..], start + at as u64);
    let (length, begin) = (u64::from(u32_at(record, 12)), u64::from(u32_at(record, 16)));
    let small = begin..begin.saturating_add(length);
    let Some(locator) = end.checked_sub(LOCATOR_LENGTH) else { return Ok((end, small)) };
    let locator_bytes = read(file, locator, LOCATOR_LENGTH)?;
    if !locator_bytes.starts_with(LOCATOR_64) {
        return Ok((end, small));
    }
    let end_64 = u64_at(&locator_bytes, 8);
    if end_64.checked_add(56).is_none_or(|behind| behind > locator) {
        return Err(format!("its zip64 record is said to lie at {end_64}"));
    }
    let record = read(file, end_64, 56)?;
    if !record.starts_with(END_64) {
        return Err(format!("there is no zip64 record at {end_64}"));
    }
    let (length_64, begin_64) = (u64_at(&record, 40), u64_at(&record, 48));
    let differs = |small: u64, large: u64| small != u64::from(u32::MAX) && small != large;
    if differs(length, length_64) || differs(begin, begin_64) {
        return Err("its two end records do not say the same".to_owned());
    }
    Ok((end_64, begin_64..begin_64.saturating_add(length_64)))
}

fn parse_directory(bytes: &[u8]) -> Result<HashMap<Vec<u8>, Entry>, String> {
    let damaged = || "its list of names is damaged".to_owned();
    let (mut entries, mut rest) = (HashMap::new(), bytes);
    while !rest.is_empty() {
        let fixed = rest.get(..46).filter(|fixed| fixed.starts_with(CENTRAL)).ok_or_else(damaged)?;
        let [name, extra, comment] = [28, 30, 32].map(|at| usize::from(u16_at(fixed, at)));
        let all = rest.get(46..46 + name + extra + comment).ok_or_else(damaged)?;
        let (name, extra) = (&all[..name], &all[name..name + extra]);
        let [packed, size, header] = zip64([20, 24, 42].map(|at| u32_at(fixed, at)), extra).ok_or_else(damaged)?;
        let is_stored = u16_at(fixed, 10) == 0 && u16_at(fixed, 8) & 1 == 0 && packed == size;
        if entries.insert(name.to_vec(), Entry { header, size, is_stored }).is_some() {
            return Err(format!("its entry {} is there twice", String::from_utf8_lossy(name)));
        }
        rest = &rest[46 + all.len()..];
    }
    Ok(entries)
}

/// Packed size, size and place of an entry, those that have no room by its extra fields, where the size comes first.
fn zip64([packed, size, header]: [u32; 3], mut extra: &[u8]) -> Option<[u64; 3]> {
    let mut large: &[u8] = &[];
    while let [a, b, c, d, rest @ ..] = extra {
        let length = usize::from(u16::from_le_bytes([*c, *d]));
        let field = rest.get(..length)?;
        if u16::from_le_bytes([*a, *b]) == 1 {
            large = field;
        }
        extra = &rest[length..];
    }
    let mut take = |small: u32| match small {
        u32::MAX => {
            let (number, rest) = large.split_first_chunk()?;
            large = rest;
            Some(u64::from_le_bytes(*number))
        }
        small => Some(small.into()),
    };
    let size = take(size)?;
    Some([take(packed)?, size, take(header)?])
}

fn read(file: &File, begin: u64, length: u64) -> Result<Vec<u8>, String> {
    let mut bytes = vec![];
    let length = usize::try_from(length).map_err(|_| "it is too large".to_owned())?;
    bytes.try_reserve_exact(length).map_err(|_| format!("there is no memory for {length} bytes of it"))?;
    bytes.resize(length, 0);
    read_at(file, &mut bytes, begin).map_err(|error| format!("reading {length} bytes at {begin}: {error}"))?;
    Ok(bytes)
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from(u16_at(bytes, at)) | u32::from(u16_at(bytes, at + 2)) << 16
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}
