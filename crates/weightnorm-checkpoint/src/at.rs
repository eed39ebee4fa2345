//! Bytes at positions of files, and room for them.
use std::fs::File;
use std::io;
use std::path::Path;

use super::Error;
use super::error::failed;

/// Room for so many elements more, of what is read from that file, or an error: a file or a caller may ask for more
/// than there is, and Rust would end the process.
pub(super) fn reserve<T>(vec: &mut Vec<T>, count: usize, path: &Path) -> Result<(), Error> {
    vec.try_reserve(count).map_err(|_| failed("reading", path)(io::ErrorKind::OutOfMemory.into()))
}

/// So many elements to be overwritten, likewise.
pub(super) fn buffer<T: Clone + Default>(count: usize, path: &Path) -> Result<Vec<T>, Error> {
    let mut vec = vec![];
    reserve(&mut vec, count, path)?;
    vec.resize(count, T::default());
    Ok(vec)
}

/// How many bytes of a file are looked at at each end.
const LOOKED_AT: u64 = 1 << 16;

/// The first bytes of a file, and the last ones: enough to know it by.
pub(super) fn ends(file: &File, size: u64) -> io::Result<(Vec<u8>, Vec<u8>)> {
    let count = size.min(LOOKED_AT);
    let (mut head, mut tail) = (vec![0; count as usize], vec![0; count as usize]);
    read_at(file, &mut head, 0)?;
    read_at(file, &mut tail, size - count)?;
    Ok((head, tail))
}

#[cfg(unix)]
pub(super) fn read_at(file: &File, bytes: &mut [u8], offset: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, bytes, offset)
}

#[cfg(unix)]
pub(super) fn write_at(file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::write_all_at(file, bytes, offset)
}

#[cfg(windows)]
pub(super) fn read_at(file: &File, mut bytes: &mut [u8], mut offset: u64) -> io::Result<()> {
    while !bytes.is_empty() {
        match std::os::windows::fs::FileExt::seek_read(file, bytes, offset)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            count => {
                bytes = &mut bytes[count..];
                offset += count as u64;
            }
        }
    }
    Ok(())
}

#[cfg(windows)]
pub(super) fn write_at(file: &File, mut bytes: &[u8], mut offset: u64) -> io::Result<()> {
    while !bytes.is_empty() {
        match std::os::windows::fs::FileExt::seek_write(file, bytes, offset)? {
            0 => return Err(io::ErrorKind::WriteZero.into()),
            count => {
                bytes = &bytes[count..];
                offset += count as u64;
            }
        }
    }
    Ok(())
}
