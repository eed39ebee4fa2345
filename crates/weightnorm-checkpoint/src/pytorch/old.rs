//! The form of before PyTorch 1.6, which `_use_new_zipfile_serialization=False` still writes: no archive, but five
//! pickles one behind the other (a number, a version, what the machine was like, the value, the names of its storages),
//! and the storages in the order of those names: the count of elements in 8 bytes, and the elements.
use std::collections::HashMap;
use std::fs::File;

use super::contents::Contents;
use super::pickle::{self, MAX_PICKLE};
use super::value::{Element, Object, Value, Values};
use super::zip::Place;
use crate::at::read_at;

/// What such a file begins with: a pickle of protocol 2 to 5 of its number.
const NUMBER: &[u8] = b"\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.";
const PICKLES: usize = 5;

pub fn is(first: &[u8]) -> bool {
    first.starts_with(b"\x80") && first.get(2..).is_some_and(|rest| NUMBER.starts_with(rest) && rest.len() > 8)
}

/// Reads all but the numbers.
pub fn read(file: &File, size: u64) -> Result<Contents<'static>, String> {
    let length = size.min(MAX_PICKLE) as usize;
    let mut bytes = vec![];
    bytes.try_reserve_exact(length).map_err(|e| e.to_string())?;
    bytes.resize(length, 0);
    read_at(file, &mut bytes, 0).map_err(|e| e.to_string())?;
    let (values, roots, end) = pickle::read_several(bytes, PICKLES)?;
    let &[_, Value::Int(1001), machine, root, names] = &roots[..] else {
        return Err("its version is not 1001".to_owned());
    };
    let little = values.dict(machine).and_then(|entries| {
        let is = |&&(key, _): &&(Value, Value)| matches!(key, Value::Text(key) if values.text(key) == b"little_endian");
        entries.iter().find(is).map(|&(_, value)| value)
    });
    let is_big_endian = match little {
        Some(Value::Bool(little)) => !little,
        _ => return Err("its byte order is not said".to_owned()),
    };
    let storages = if is_big_endian { HashMap::new() } else { storages(file, size, &values, names, end)? };
    Ok(Contents { values, root, storages, archive: None, is_big_endian })
}

/// Where they lie, by their names.
fn storages(
    file: &File,
    size: u64,
    values: &Values,
    names: Value,
    mut at: u64,
) -> Result<HashMap<Vec<u8>, Place>, String> {
    // Bytes of an element, by the name of the storage.
    let mut known = HashMap::new();
    for object in &values.objects {
        let Object::Storage(storage) = object else { continue };
        let bytes = match storage.element {
            Element::Of(dtype) => dtype.bits() / 8,
            Element::Untyped => 1,
            // Whatever its size is, what stands behind it cannot be found.
            Element::Other(name) => {
                let name = String::from_utf8_lossy(values.text(name));
                return Err(format!("it has a {name}, whose length is not known here"));
            }
        };
        known.insert(values.text(storage.key), (bytes, storage.count));
    }
    let mut storages = HashMap::new();
    for &name in values.elements(names).ok_or("the names of its storages are no list")? {
        let Value::Text(name) = name else { return Err("the name of a storage is no text".to_owned()) };
        let name = values.text(name);
        let text = || String::from_utf8_lossy(name).into_owned();
        let &(bytes, expected) = known.get(name).ok_or_else(|| format!("nothing is said of its storage {}", text()))?;
        let mut count = [0; 8];
        let begin = at.checked_add(8).filter(|&begin| begin <= size);
        let begin = begin.ok_or_else(|| format!("its storage {} is missing", text()))?;
        read_at(file, &mut count, at).map_err(|e| e.to_string())?;
        let count = i64::from_le_bytes(count);
        if count != expected {
            return Err(format!("its storage {} has {count} elements where {expected} were to come", text()));
        }
        let length = u64::try_from(count).ok().and_then(|count| count.checked_mul(bytes));
        let end = length.and_then(|length| begin.checked_add(length)).filter(|&end| end <= size);
        let end = end.ok_or_else(|| format!("its storage {} of {count} elements is cut off", text()))?;
        if storages.insert(name.to_vec(), Place { header: at, begin, end }).is_some() {
            return Err(format!("its storage {} is there twice", text()));
        }
        at = end;
    }
    Ok(storages)
}
