//! What a file of PyTorch's own holds, whichever form it has.
use std::collections::HashMap;

use super::pickle;
use super::value::{Value, Values};
use super::zip::{Archive, Place};

/// What a file holds, before a dictionary is chosen.
pub struct Contents<'a> {
    pub values: Values,
    pub root: Value,
    /// Where the storages lie, by their names; of an archive those that were looked up.
    pub storages: HashMap<Vec<u8>, Place>,
    /// Where they are looked up, and what all names begin with.
    pub archive: Option<(Archive<'a>, Vec<u8>)>,
    pub is_big_endian: bool,
}

/// Of the form since PyTorch 1.6.
pub fn of_archive(archive: Archive<'_>) -> Result<Option<Contents<'_>>, String> {
    let is_top = |prefix: &&[u8]| prefix.ends_with(b"/") && prefix.iter().filter(|&&byte| byte == b'/').count() == 1;
    let prefixes = archive.names().filter_map(|name| name.strip_suffix(b"data.pkl")).filter(is_top);
    let prefix = match prefixes.take(2).collect::<Vec<_>>()[..] {
        [] => return Ok(None),
        [prefix] => prefix.to_vec(),
        _ => return Err("two pickles are in it".to_owned()),
    };
    let named = |name: &[u8]| [&prefix, name].concat();
    // A program (TorchScript), not a file of tensors.
    if archive.names().any(|name| name == named(b"constants.pkl")) {
        return Ok(None);
    }
    let mut is_big_endian = false;
    if let Some(place) = archive.place(&named(b"byteorder"))? {
        let order = if place.end - place.begin > 16 { vec![] } else { archive.read(&place)? };
        is_big_endian = match order.trim_ascii() {
            b"little" => false,
            b"big" => true,
            _ => return Err("its byte order is neither little nor big".to_owned()),
        };
    }
    let place = archive.place(&named(b"data.pkl"))?.ok_or_else(|| "its pickle is missing".to_owned())?;
    if place.end - place.begin > pickle::MAX_PICKLE {
        let length = place.end - place.begin;
        return Err(format!("its pickle is {length} bytes long, the limit is {}", pickle::MAX_PICKLE));
    }
    let (values, root) = pickle::read(archive.read(&place)?)?;
    let archive = Some((archive, prefix));
    Ok(Some(Contents { values, root, storages: HashMap::new(), archive, is_big_endian }))
}
